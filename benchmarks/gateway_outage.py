"""Question: how much longer does a request take while the gateway's store is down?

    python benchmarks/gateway_outage.py                  # redis-server, killed and frozen
    python benchmarks/gateway_outage.py --seconds 10 --clients 8

A Redis of the benchmark's own, an upstream that answers at once, and the gateway are processes on
loopback. Clients send requests that were never asked before, so that each is looked up and stored,
and in turns the same to the upstream itself: `direct` shows how busy the machine is. `up` is before
the outage, `killed` after SIGKILL (connections are refused), `frozen` after SIGSTOP (connections
stay and nothing answers). What an outage adds is the difference of the quantiles; the goal is less
than 50 ms. The processor time is that of the gateway's process, in milliseconds a request. `back`
is the time from the server's return to the first hit.
Results go to benchmarks/results/gateway_outage.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway_latency import Client, Process, quantiles

HERE = Path(__file__).resolve().parent


class Redis:
    """A server without persistence on a unix socket."""

    def __init__(self, folder: str) -> None:
        self._binary = shutil.which("redis-server") or shutil.which("valkey-server")
        if self._binary is None:
            raise SystemExit("needs redis-server or valkey-server")
        self._folder, self.url = folder, f"unix://{folder}/redis.sock"
        self.start()

    def start(self) -> None:
        options = ["--port", "0", "--unixsocket", f"{self._folder}/redis.sock", "--save", ""]
        self.process = subprocess.Popen(
            [str(self._binary), *options, "--dir", self._folder], stdout=subprocess.DEVNULL
        )

    def signal(self, number: int) -> None:
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait()


def traffic(ports: list[int], seconds: float, clients: int, seeds: Any) -> list[list[float]]:
    """Seconds that requests took, sent for a while by so many clients, each a new question.

    Each client asks all ports in turns; a list for each port.
    """
    taken: list[list[float]] = [[] for _ in ports]
    end = time.perf_counter() + seconds

    def ask() -> None:
        servers = [Client(port) for port in ports]
        while time.perf_counter() < end:
            seed = next(seeds)
            for client, times in zip(servers, taken, strict=True):
                times.append(client.ask(seed)[0])
            time.sleep(0.005)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


def until_hit(port: int, seed: int) -> float:
    """Seconds until a repeated request hits."""
    client, start = Client(port), time.perf_counter()
    while b"x-recollect-cache: hit" not in client.ask(seed)[1]:
        time.sleep(0.01)
    return time.perf_counter() - start


def row(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    return {**quantiles(seconds), "max": 1e3 * max(seconds), "requests": len(seconds)}


def measure(seconds: float, clients: int) -> dict[str, Any]:
    """Both kinds of outage, on one gateway."""
    calls = multiprocessing.Value("i", 0)
    upstream = Process("upstream", delay=(0.0, 0.0), calls=calls)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        redis, seeds = Redis(folder), count(1)
        time.sleep(0.5)
        gateway = Process("gateway", upstream=upstream.url, store=redis.url)
        until_hit(gateway.port, 0)
        for name, number in (("killed", signal.SIGKILL), ("frozen", signal.SIGSTOP)):
            ports = [gateway.port, upstream.port]
            used = [gateway.usage.value]
            up, calm = traffic(ports, seconds, clients, seeds)
            used.append(gateway.usage.value)
            redis.signal(number)
            down, meanwhile = traffic(ports, seconds, clients, seeds)
            used.append(gateway.usage.value)
            if number == signal.SIGKILL:
                redis.start()
            else:
                redis.signal(signal.SIGCONT)
            back = until_hit(gateway.port, next(seeds))
            rows: dict[str, Any] = {"up": row(up), "direct, up": row(calm), "down": row(down)}
            rows["direct, down"] = row(meanwhile)
            rows["back_seconds"] = back
            for phase, times, start in (("up", up, 0), ("down", down, 1)):
                seconds_used = used[start + 1] - used[start]
                rows[phase]["processor_ms"] = 1e3 * seconds_used / len(times)
            rows["added"] = {q: rows["down"][q] - rows["up"][q] for q in ("p50", "p95", "p99")}
            found[name] = rows
        gateway.stop()
        redis.signal(signal.SIGKILL)
    upstream.stop()
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each phase")
    parser.add_argument("--clients", type=int, default=4)
    given = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    found = measure(given.seconds, given.clients)
    table = Table(title="milliseconds through the gateway, questions never asked before")
    for heading in ("outage", "store", "p50", "p95", "p99", "max", "processor", "requests"):
        table.add_column(heading, justify="left" if heading in ("outage", "store") else "right")
    for name, rows in found.items():
        for phase in ("up", "direct, up", "down", "direct, down"):
            cells = [f"{rows[phase][q]:.1f}" for q in ("p50", "p95", "p99", "max")]
            used = f"{rows[phase]['processor_ms']:.2f}" if "processor_ms" in rows[phase] else ""
            table.add_row(name, phase, *cells, used, str(rows[phase]["requests"]))
        added = [f"{rows['added'][q]:+.1f}" for q in ("p50", "p95", "p99")]
        table.add_row("", "added", *added, "", "", f"back after {rows['back_seconds']:.2f} s")
    Console(width=100).print(table)
    about = {
        "seconds": given.seconds,
        "clients": given.clients,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "busy": os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1),
        "python": platform.python_version(),
        "command": " ".join(["python benchmarks/gateway_outage.py", *sys.argv[1:]]),
    }
    target = HERE / "results" / "gateway_outage.json"
    target.write_text(json.dumps({"about": about, "milliseconds": found}, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
