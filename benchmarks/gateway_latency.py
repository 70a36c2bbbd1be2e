"""Question: what does the gateway add to a miss, and how fast is a hit?

    python benchmarks/gateway_latency.py                    # about a minute
    python benchmarks/gateway_latency.py --store sqlite:///bench.db --requests 2000

An upstream, the gateway and this client are processes of their own on loopback; the client speaks
HTTP over one kept-alive socket. Requests to the upstream itself, misses and hits are sent in turns,
so that a busy machine slows all alike; a miss's overhead is the difference of the medians. The
processor time is of the gateway's process alone. The semantic tier is in gateway_semantic.py, what
timing tells in gateway_timing.py, a store that is down in gateway_outage.py.
Results go to benchmarks/results/gateway_latency.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import random
import resource
import socket
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
PATH = "/v1/chat/completions"


def upstream_app(delay: tuple[float, float], calls: Any) -> Any:
    """An engine that answers with a document of about a kilobyte; a bare ASGI application."""
    usage = {"prompt_tokens": 50, "completion_tokens": 150, "total_tokens": 200}
    message = {"role": "assistant", "content": "word " * 150}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    head = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}
    body = json.dumps({**head, "choices": [choice], "usage": usage}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        with calls.get_lock():
            calls.value += 1
        if delay[1]:
            await asyncio.sleep(random.uniform(*delay))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def serve(kind: str, listener: socket.socket, settings: dict[str, Any], usage: Any) -> None:
    """A process: the upstream or the gateway."""
    import uvicorn

    if kind == "upstream":
        app = upstream_app(**settings)
    else:
        from recollect.gateway.app import create_app
        from recollect.gateway.config import build_config

        app = create_app(build_config(settings))
        inner = app

        async def metered(scope: Any, receive: Any, send: Any) -> None:
            used = resource.getrusage(resource.RUSAGE_SELF)
            usage.value = used.ru_utime + used.ru_stime
            await inner(scope, receive, send)

        app = metered
    config = uvicorn.Config(
        app,
        log_level="error",
        server_header=False,
        date_header=False,
        timeout_keep_alive=600,  # loading an encoder takes longer than the default
    )
    uvicorn.Server(config).run(sockets=[listener])


class Process:
    """A server; its address, and the processor seconds it has used."""

    def __init__(self, kind: str, **settings: Any) -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.usage = multiprocessing.Value("d", 0.0)
        target = (kind, listener, settings, self.usage)
        self._process = multiprocessing.Process(target=serve, args=target, daemon=True)
        self._process.start()

    def stop(self) -> None:
        self._process.terminate()
        self._process.join(10)


class Client:
    """One kept-alive connection."""

    def __init__(self, port: int, key: str = "alice") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = (
            f"POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
            "content-type: application/json\r\ncontent-length: "
        )

    def ask(self, seed: int) -> tuple[float, bytes]:
        """Seconds that an answer took, and its head."""
        return self.ask_text("why? " * 40, seed=seed)

    def ask_text(self, text: str, **fields: Any) -> tuple[float, bytes]:
        """The same for a text of one's own."""
        document = {"model": "m", "messages": [{"role": "user", "content": text}], **fields}
        body = json.dumps(document).encode()
        request = f"{self._head}{len(body)}\r\n\r\n".encode() + body
        start = time.perf_counter()
        self._socket.sendall(request)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._received()
        head, _, rest = data.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        while len(rest) < length:
            rest += self._received()
        seconds = time.perf_counter() - start
        assert head.startswith(b"HTTP/1.1 200"), head
        return seconds, head.lower()

    def _received(self) -> bytes:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("the server closed the connection")
        return data


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    cut = statistics.quantiles(seconds, n=100)
    return {"p50": 1e3 * cut[49], "p95": 1e3 * cut[94], "p99": 1e3 * cut[98]}


def latency(store: str, requests: int) -> dict[str, Any]:
    """Direct, miss and hit, in turns."""
    calls = multiprocessing.Value("i", 0)
    upstream = Process("upstream", delay=(0.0, 0.0), calls=calls)
    gateway = Process("gateway", upstream=upstream.url, store=store)
    direct, through = Client(upstream.port), Client(gateway.port)
    found: dict[str, list[float]] = {"direct": [], "miss": [], "hit": []}
    fresh = int(time.time() * 1000) << 20  # a store on disk may know earlier runs
    while b"x-recollect-cache: hit" not in through.ask(fresh)[1]:
        time.sleep(0.01)  # it is stored just after it is delivered
    for number in range(requests + 50):
        if number == 50:
            found = {name: [] for name in found}
        found["direct"].append(direct.ask(0)[0])
        seconds, head = through.ask(fresh + 1 + number)
        assert b"x-recollect-cache: miss" in head
        found["miss"].append(seconds)
        seconds, head = through.ask(fresh)
        assert b"x-recollect-cache: hit" in head
        found["hit"].append(seconds)
    result: dict[str, Any] = {name: quantiles(values) for name, values in found.items()}
    before = gateway.usage.value
    for _ in range(requests):
        through.ask(fresh)
    result["hit"]["processor_ms"] = 1e3 * (gateway.usage.value - before) / requests
    before = gateway.usage.value
    for number in range(requests):
        through.ask(fresh + 10**6 + number)
    result["miss"]["processor_ms"] = 1e3 * (gateway.usage.value - before) / requests
    result["miss_overhead_p50"] = result["miss"]["p50"] - result["direct"]["p50"]
    gateway.stop()
    upstream.stop()
    return result


def single_flight(waiting: int) -> dict[str, int]:
    """Calls that identical requests at the same time make."""
    calls = multiprocessing.Value("i", 0)
    upstream = Process("upstream", delay=(1.0, 1.0), calls=calls)
    gateway = Process("gateway", upstream=upstream.url)
    Client(gateway.port).ask(0)
    before = calls.value
    clients = [Client(gateway.port) for _ in range(waiting)]
    with ThreadPoolExecutor(waiting) as pool:
        list(pool.map(lambda client: client.ask(1), clients))
    made = calls.value - before
    gateway.stop()
    upstream.stop()
    return {"requests": waiting, "upstream_calls": made}


def auc(first: list[float], second: list[float]) -> float:
    """The chance that a time of the first is below one of the second, the better way round."""
    below = sum((a < b) + 0.5 * (a == b) for a in first for b in second)
    share = below / (len(first) * len(second))
    return max(share, 1 - share)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", nargs="+", default=["memory"], help="as `Answers` takes it")
    parser.add_argument("--requests", type=int, default=1000)
    given = parser.parse_args()
    multiprocessing.set_start_method("spawn")

    console, rows = Console(width=100), {}
    table = Table(title="milliseconds on loopback")
    for heading in ("store", "", "p50", "p95", "p99", "processor"):
        table.add_column(heading, justify="left" if heading in ("store", "") else "right")
    for store in given.store:
        found = rows[store.partition(":")[0]] = latency(store, given.requests)
        for name in ("direct", "miss", "hit"):
            cells = [f"{found[name].get(q, float('nan')):.2f}" for q in
                     ("p50", "p95", "p99", "processor_ms")]  # fmt: skip
            table.add_row(store.partition(":")[0], name, *cells)
        table.add_row("", "a miss adds", f"{found['miss_overhead_p50']:.2f}", "", "", "")
    console.print(table)
    flight = single_flight(64)
    console.print(f"{flight['requests']} identical at once: {flight['upstream_calls']} call(s)")
    target = HERE / "results" / "gateway_latency.json"
    about = {
        "requests": given.requests,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "command": " ".join(["python benchmarks/gateway_latency.py", *sys.argv[1:]]),
    }
    result = {"about": about, "latency_ms": rows, "single_flight": flight}
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
