"""A private PostgreSQL server for the tests: a real one on a unix socket, gone when they end."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

_FOLDERS = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
INITDB = shutil.which("initdb", path=os.pathsep.join([os.environ["PATH"], *_FOLDERS]))
ABSENT = "needs a PostgreSQL server: sh scripts/install-postgres.sh"


class PostgresServer:
    """One server without fsync; `freeze` plays a hang, `kill` a crash."""

    def __init__(self) -> None:
        assert INITDB, ABSENT
        # PostgreSQL refuses to run as root: there it runs as the user its package made.
        self._user = "postgres" if os.getuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="recollect-pg-"))
        if self._user:
            account = pwd.getpwnam(self._user)
            os.chown(self._folder, account.pw_uid, account.pw_gid)
        self._run(INITDB, "-D", "data", "-U", "recollect", "-A", "trust", "-E", "UTF8", "-N")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"postgresql://recollect@/postgres?host={self._folder}"

    def start(self) -> None:
        binary = str(Path(str(INITDB)).resolve().with_name("postgres"))
        options = ["-F", "-h", "", "-k", str(self._folder), "-c", "shared_buffers=16MB"]
        self._process = subprocess.Popen(
            [binary, "-D", "data", *options],
            cwd=self._folder,
            user=self._user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(1500):
            try:
                psycopg.connect(self.url).close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, "postgres ended while starting"
                time.sleep(0.02)
        raise AssertionError("postgres did not answer in thirty seconds")

    def freeze(self) -> None:
        """It keeps its connections and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _signal(self, number: int) -> None:
        """To the server and to the processes of its connections."""
        assert self._process is not None
        main = self._process.pid
        children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        for pid in (main, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _run(self, *command: str) -> None:
        subprocess.run(
            command, cwd=self._folder, user=self._user, check=True, stdout=subprocess.DEVNULL
        )
