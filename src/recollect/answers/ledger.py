"""The audit log: every write, hit, promotion and deletion, each line chained to the one before.

A line holds the SHA-256 of itself and its predecessor, so that a changed, removed or inserted line
shows; who keeps the newest hash elsewhere also sees a cut end. Keys and hashes only, never text.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from recollect.errors import StoreError

START = "0" * 64
_TAIL = 1 << 16


class Verified(NamedTuple):
    """Lines checked, the hash of the last one, and the first that does not fit (None: all fit)."""

    lines: int
    head: str
    broken_at: int | None


class Ledger:
    """Append-only and hash-chained: in a file, which several processes may share, or in memory.

    Args:
        path: the file, made when it is missing; None keeps the latest `kept` lines in memory.
        kept: lines of a ledger in memory.
    """

    def __init__(self, path: str | Path | None = None, *, kept: int = 10_000) -> None:
        self._lock = threading.Lock()
        self._head, self._count = START, 0
        self._lines: deque[str] = deque(maxlen=kept)
        self._file: int | None = None
        self._size = 0
        if path is not None:
            try:
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            except OSError as error:
                raise StoreError(f"cannot open the ledger {path}: {error.strerror}") from error

    @property
    def head(self) -> str:
        """Hash of the newest line: keep it elsewhere to notice a cut end."""
        with self._lock:
            if self._file is not None:
                with _Locked(self._file):
                    self._catch_up()
            return self._head

    def append(self, event: str, at: float, **facts: Any) -> None:
        """Write one event. Raises StoreError when the file cannot be written."""
        with self._lock:
            if self._file is None:
                self._lines.append(self._next(event, at, facts))
                return
            try:
                with _Locked(self._file):
                    self._catch_up()
                    text = (self._next(event, at, facts) + "\n").encode()
                    if os.write(self._file, text) != len(text):
                        raise StoreError("the ledger's disk is full")
                    self._size += len(text)
            except OSError as error:
                raise StoreError(f"cannot write the ledger: {error}") from error

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The events, oldest first."""
        for line in self._read():
            try:
                yield json.loads(line)
            except ValueError:
                continue

    def verify(self) -> Verified:
        """Follow the chain from the first line that is kept.

        A torn line (a process killed while writing) is passed over where the next one owns to it.
        """
        previous = "" if self._file is None else START
        lines, count, torn = self._read(), 0, list[bytes]()
        for number, line in enumerate(lines):
            try:
                record = json.loads(line)
                claimed = record.pop("hash")
            except (ValueError, KeyError, AttributeError, TypeError):
                torn.append(line)
                continue
            previous = previous or record.get("prev", "")
            fits = record.get("prev") == previous and claimed == _hash(record)
            if not fits or record.get("torn", "") != (_hash_torn(torn) if torn else ""):
                return Verified(count, previous, number - len(torn))
            previous, torn, count = claimed, [], count + 1
        return Verified(count, previous or START, len(lines) - len(torn) if torn else None)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _next(self, event: str, at: float, facts: dict[str, Any]) -> str:
        record = {"event": event, "at": at, **facts, "prev": self._head}
        text = json.dumps(record, sort_keys=True)
        self._head = hashlib.sha256(text.encode()).hexdigest()
        return f'{text[:-1]}, "hash": "{self._head}"}}'

    def _catch_up(self) -> None:
        """Take the head from lines that other processes wrote; close off a torn one."""
        assert self._file is not None
        size = os.fstat(self._file).st_size
        if size == self._size:
            return
        *lines, rest = os.pread(self._file, _TAIL, max(0, size - _TAIL)).split(b"\n")
        torn = [rest] if rest else []
        self._head = START
        for line in reversed(lines):
            try:
                self._head = json.loads(line)["hash"]
                break
            except (ValueError, KeyError, TypeError):
                torn.insert(0, line)
        self._size = size
        if rest:
            line = self._next("recovered", 0.0, {"torn": _hash_torn(torn)}).encode()
            self._size += os.write(self._file, b"\n" + line + b"\n")

    def _read(self) -> list[bytes]:
        if self._file is None:
            with self._lock:
                return [line.encode() for line in self._lines]
        size = os.fstat(self._file).st_size
        data = b"".join(os.pread(self._file, 1 << 20, start) for start in range(0, size, 1 << 20))
        return data.split(b"\n")[: None if data[-1:] not in (b"\n", b"") else -1]


class _Locked:
    """An advisory lock on a file, against other processes."""

    def __init__(self, file: int) -> None:
        self._file = file

    def __enter__(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)


def _hash(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _hash_torn(lines: list[bytes]) -> str:
    return hashlib.sha256(b"\n".join(lines)).hexdigest()
