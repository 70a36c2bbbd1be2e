"""Private Redis servers for the tests: real processes on unix sockets, gone when the test ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import redis

BINARY = shutil.which("redis-server") or shutil.which("valkey-server")
ABSENT = "needs redis-server or valkey-server: make redis"


class RedisServer:
    """One server without persistence; `kill` and `start` play its crashes, `freeze` its hangs."""

    def __init__(self, *options: str, password: str = "") -> None:
        assert BINARY, ABSENT
        # Not under pytest's folder: the path of a unix socket has at most 107 bytes.
        self._folder = tempfile.TemporaryDirectory(prefix="recollect-redis-")
        self.socket = Path(self._folder.name) / "redis.sock"
        self.password = password
        self._options = [*options, *(["--requirepass", password] if password else [])]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """Where it listens, with the password if it has one."""
        return f"unix://{f':{self.password}@' if self.password else ''}{self.socket}"

    def start(self) -> None:
        command = [str(BINARY), "--port", "0", "--unixsocket", str(self.socket), "--save", ""]
        self._process = subprocess.Popen(
            [*command, "--dir", self._folder.name, *self._options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(1000):
            try:
                with redis.Redis.from_url(self.url) as client:
                    client.ping()
                return
            except redis.ConnectionError:
                assert self._process.poll() is None, "redis-server ended while starting"
                time.sleep(0.01)
        raise AssertionError("redis-server did not answer in ten seconds")

    def kill(self) -> None:
        """What a crash does: no goodbye, and everything it held is lost."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """It keeps its connections and answers nothing."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        self._folder.cleanup()
