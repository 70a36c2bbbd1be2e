"""Real servers on real sockets: a gateway, and an upstream that does what a test tells it to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from streams import message, response, said, text_part

from recollect.gateway.app import create_app
from recollect.gateway.config import GatewayConfig
from recollect.gateway.gateway import Gateway
from recollect.gateway.protocols import GENERATING

RUNNING: list[Gateway] = []
PROTOCOLS = {protocol.path: protocol for protocol in GENERATING}


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """A server of an ASGI application on a free port; its address."""
    config = uvicorn.Config(app, log_level="warning", server_header=False, date_header=False)
    server = uvicorn.Server(config)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


class Upstream:
    """Answers every protocol; no two answers are alike, so that a stored one shows.

    Attributes:
        calls: by path.
        bodies, headers: of every request.
        answer: what to do instead, given the request and its document; None for the usual.
        gate: generations wait until it is set.
        cancelled: streams that the gateway gave up.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[Request, dict[str, Any]], Any] | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.cancelled = 0
        self.arrived = threading.Semaphore(0)
        paths = [*PROTOCOLS, "/v1/embeddings"]
        routes = [Route(path, self._generate, methods=["POST"]) for path in paths]
        routes.append(Route("/v1/models", self._models))
        routes.append(Route("/v1/files", self._files, methods=["POST"]))
        self.app = Starlette(routes=routes)

    @property
    def total(self) -> int:
        return self.calls.total()

    def reset(self) -> None:
        self.__dict__.update({k: v for k, v in Upstream().__dict__.items() if k != "app"})

    async def _generate(self, request: Request) -> Response:
        path = request.url.path
        self.calls[path] += 1
        number = self.calls[path]
        self.bodies.append(await request.body())
        self.headers.append(dict(request.headers))
        self.arrived.release()
        asked = json.loads(self.bodies[-1])
        if self.answer is not None:
            found = self.answer(request, asked)
            found = await found if asyncio.iscoroutine(found) else found
            if isinstance(found, Response):
                return found
            document = found
        else:
            document = usual(path, asked, number)
        if asked.get("stream"):
            return StreamingResponse(
                self._stream(path, document, asked), media_type="text/event-stream"
            )
        while not self.gate.is_set():
            await asyncio.sleep(0.005)
        return JSONResponse(document, headers={"x-request-id": f"r{number}"})

    async def _stream(self, path: str, document: Any, asked: Any) -> Any:
        finished = False
        try:
            for number, chunk in enumerate(PROTOCOLS[path].replay(document, asked)):
                yield chunk
                while number == 0 and not self.gate.is_set():
                    await asyncio.sleep(0.005)
            finished = True
        finally:
            self.cancelled += not finished

    async def _models(self, request: Request) -> Response:
        self.calls["/v1/models"] += 1
        self.headers.append(dict(request.headers))
        return JSONResponse({"object": "list", "data": [{"id": "m", "object": "model"}]})

    async def _files(self, request: Request) -> Response:
        return Response(await request.body(), media_type="application/octet-stream")


def usual(path: str, asked: dict[str, Any], number: int) -> dict[str, Any]:
    """An answer that names its number and repeats what was asked."""
    text = f"answer {number} to {last_text(asked)}"
    if path.endswith("/embeddings"):
        given = asked.get("input")
        given = given if isinstance(given, list) else [given]
        items = [given] if given and isinstance(given[0], int) else given
        data = [
            {"object": "embedding", "index": i, "embedding": [number, 0.10, 1e-7, len(str(item))]}
            for i, item in enumerate(items)
        ]
        usage = {"prompt_tokens": 2 * len(items), "total_tokens": 2 * len(items)}
        return {"object": "list", "data": data, "model": asked["model"], "usage": usage}
    if path.endswith("/messages"):
        return message({"type": "text", "text": text}, model=asked["model"])
    if path.endswith("/responses"):
        return response(said(text_part(text)), model=asked["model"])
    choices = range(asked.get("n") or 1)
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    head = {"id": f"cmpl-{number}", "created": number, "model": asked["model"]}
    if path.endswith("/chat/completions"):
        kind = "chat.completion"
        made = [
            {
                "index": i,
                "message": {"role": "assistant", "content": f"{text} ({i})"},
                "logprobs": None,
                "finish_reason": "stop",
            }
            for i in choices
        ]
    else:
        kind = "text_completion"
        made = [
            {"index": i, "text": text, "logprobs": None, "finish_reason": "stop"} for i in choices
        ]
    return {**head, "object": kind, "choices": made, "usage": usage}


def last_text(asked: dict[str, Any]) -> str:
    for name in ("messages", "input", "prompt"):
        found = asked.get(name)
        if isinstance(found, list) and found and isinstance(found[-1], dict):
            return str(found[-1].get("content"))
        if isinstance(found, str):
            return found
    return ""


@contextlib.contextmanager
def gateway_before(upstream: str, **settings: Any) -> Iterator[tuple[str, Gateway]]:
    """A gateway in front of an address; its own address and its parts."""
    names = ("answers", "clock", "tracing", "judge")
    parts = {name: settings.pop(name) for name in names if name in settings}
    gateway = Gateway(GatewayConfig(upstream=upstream, **settings), **parts)
    with serving(create_app(gateway=gateway)) as address:
        RUNNING.append(gateway)
        try:
            yield address, gateway
        finally:
            RUNNING.remove(gateway)


def settle() -> None:
    """Wait until every answer that was delivered is stored as well."""
    wait_until(lambda: not any(g.flights.settling or g.calls for g in RUNNING))


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def command_line(*arguments):
    """`recollect serve gateway` as a process of its own."""
    run = "from recollect.cli import main; main()"
    return [sys.executable, "-c", run, "serve", "gateway", *arguments]


def until_brace(stream):
    """The JSON at the start of a stream that goes on."""
    lines = []
    for line in iter(stream.readline, b""):
        lines.append(line)
        if line.rstrip() == b"}":
            break
    return b"".join(lines)
