"""Everything that is not cached: models, files, audio … pass through with both bodies streaming."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from recollect.errors import GatewayError
from recollect.gateway import documents
from recollect.gateway import headers as hd
from recollect.gateway.gateway import Gateway
from recollect.gateway.protocols import Chat, Messages, Protocol
from recollect.gateway.refusals import Refusal
from recollect.gateway.replies import refuse, reply
from recollect.gateway.upstream import Response as Upwards


class Passing:
    """Hands requests up and answers down, untouched."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, request: Request) -> Response:
        """The upstream's answer."""
        pairs = hd.of_request(request.headers.raw)
        headers = dict(pairs)
        protocol: Protocol = Messages() if "anthropic-version" in headers else Chat()
        try:
            return await self._pass(request, pairs, headers, protocol)
        except Refusal as refusal:
            return refuse(protocol, refusal)

    async def _pass(
        self, request: Request, pairs: hd.Pairs, headers: dict[str, str], protocol: Protocol
    ) -> Response:
        opened = self._open(request, pairs, headers, protocol)
        response = await opened.__aenter__()

        async def down(response: Upwards = response) -> AsyncIterator[bytes]:
            try:
                async for chunk in response.chunks():
                    yield chunk
            finally:
                await opened.__aexit__(None, None, None)

        return reply(response.head.status, response.head.headers, down())

    def _open(
        self, request: Request, pairs: hd.Pairs, headers: dict[str, str], protocol: Protocol
    ) -> AbstractAsyncContextManager[Upwards]:
        """The request on its way up. Raises Refusal where this caller may send none."""
        gateway, config = self._gateway, self._gateway.config
        caller = gateway.callers.identify(headers)
        gateway.budgets.admit(caller.spends)
        path = request.scope.get("raw_path", request.url.path.encode()).decode("latin-1")
        query = request.scope.get("query_string", b"").decode("latin-1")
        url = config.address("", protocol.name) + path + (f"?{query}" if query else "")
        has_body = "content-length" in headers or "transfer-encoding" in headers
        up = hd.upwards(pairs, config.upstream_key, caller.known)
        if "content-length" in headers:
            up.append(("content-length", headers["content-length"]))
        body = _body(request) if has_body else None
        return gateway.upstream.open(request.method, url, up, body)


class Listing(Passing):
    """The list of models: the upstream's, and the name that asks to be routed."""

    async def _pass(
        self, request: Request, pairs: hd.Pairs, headers: dict[str, str], protocol: Protocol
    ) -> Response:
        examples = self._gateway.config.examples
        if examples is None:
            return await super()._pass(request, pairs, headers, protocol)
        readable = [pair for pair in pairs if pair[0] != "accept-encoding"]
        async with self._open(request, readable, headers, protocol) as response:
            body, head = await response.read(), response.head
        with suppress(GatewayError):  # what is no list is passed on as it came
            listed = documents.load_object(body)
            if isinstance(listed.get("data"), list):
                listed["data"].append(_entry(examples.model, protocol))
                body = documents.dump(listed)
        return reply(head.status, head.headers, body)


def _entry(name: str, protocol: Protocol) -> dict[str, Any]:
    if protocol.name == "messages":
        made = "1970-01-01T00:00:00Z"
        return {"type": "model", "id": name, "display_name": name, "created_at": made}
    return {"id": name, "object": "model", "created": 0, "owned_by": "recollect"}


async def _body(request: Request) -> AsyncIterator[bytes]:
    async for part in request.stream():
        if part:
            yield part
