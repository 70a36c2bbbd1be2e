"""What happened to entries: the last events in memory, and all of them in a file if wanted."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from recollect.errors import StoreError

KINDS = ("put", "refused", "hit", "miss", "promoted", "deleted", "corrupt", "error")


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        time: seconds since 1970, by the wall clock.
        kind: one of `KINDS`.
        key: the entry, in hexadecimal.
        tier: where; empty for the store as a whole.
        nbytes: of payload.
        detail: the error, in words.
    """

    time: float
    kind: str
    key: str
    tier: str = ""
    nbytes: int = 0
    detail: str = ""


class EventLog:
    """The last `keep` events, and optionally JSON lines in a file of bounded size.

    Args:
        keep: events held in memory.
        path: file to append to; when it would pass `limit` bytes it becomes ``path.1``, replacing
            the one before. None: memory only.
    """

    def __init__(
        self,
        keep: int = 10_000,
        path: str | Path | None = None,
        limit: int = 16 << 20,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._events: deque[Event] = deque(maxlen=keep)
        self._clock, self._limit = clock, limit
        self._path = Path(path).expanduser() if path is not None else None
        self._lock = threading.Lock()
        if self._path is not None:
            try:
                self._file = self._path.open("a", encoding="utf-8")
            except OSError as error:
                raise StoreError(f"cannot write the event log {self._path}: {error}") from error

    def add(self, kind: str, key: bytes, tier: str = "", nbytes: int = 0, detail: str = "") -> None:
        """Note an event. A log file that cannot be written loses lines, never a request."""
        event = Event(self._clock(), kind, key.hex(), tier, nbytes, detail)
        self._events.append(event)
        if self._path is not None:
            with self._lock:
                self._append(json.dumps(asdict(event)) + "\n")

    def __iter__(self) -> Iterator[Event]:
        """From the oldest on, as of now."""
        return iter(list(self._events))

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._path is not None:
            with self._lock:
                self._file.close()

    def _append(self, line: str) -> None:
        assert self._path is not None
        try:
            if self._file.closed:
                return
            if self._file.tell() + len(line) > self._limit:
                self._file.close()
                os.replace(self._path, self._path.with_name(self._path.name + ".1"))
                self._file = self._path.open("a", encoding="utf-8")
            self._file.write(line)
            self._file.flush()
        except OSError:
            pass
