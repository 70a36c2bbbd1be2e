"""Entries in this process: dictionaries, gone when it ends."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from recollect.answers.backends.base import (
    OBSERVATIONS,
    Backend,
    Filter,
    Observation,
    checked_status,
)
from recollect.answers.entry import Entry

# One live entry per request (None), and one quarantined entry per request and writer.
Slot = tuple[tuple[str, ...], bytes, str | None]


class MemoryBackend(Backend):
    """Entries in dictionaries under one lock."""

    name = "memory"

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._entries: OrderedDict[int, Entry] = OrderedDict()  # least recently used first
        self._exact: dict[Slot, int] = {}
        self._children: dict[int, set[int]] = {}
        self._categories: dict[str, int] = {}
        self._observed: dict[int, deque[Observation]] = {}
        self._last_id = 0
        self._secret = os.urandom(32)

    def add(self, entry: Entry) -> int:
        checked_status(entry.status)
        with self._lock:
            self._displace(entry)
            self._last_id += 1
            entry = replace(entry, id=self._last_id)
            self._entries[entry.id] = entry
            self._exact[_slot(entry)] = entry.id
            self._categories[entry.category] = self._categories.get(entry.category, 0) + 1
            if entry.parent is not None:
                self._children.setdefault(entry.parent, set()).add(entry.id)
            return entry.id

    def get(self, entry_id: int) -> Entry | None:
        return self._entries.get(entry_id)

    def by_exact(self, partition: Sequence[str], exact_fp: bytes, writer: str = "") -> Entry | None:
        key = tuple(partition)
        with self._lock:
            found = self._exact.get((key, exact_fp, None))
            if found is None and writer:
                found = self._exact.get((key, exact_fp, writer))
            return self._entries.get(found) if found is not None else None

    def scan(self, which: Filter | None = None, *, after: int = 0) -> Iterator[Entry]:
        which = which or Filter()
        with self._lock:
            found = [e for e in self._entries.values() if e.id > after and which.matches(e)]
        return iter(sorted(found, key=lambda entry: entry.id))

    def delete(self, ids: Iterable[int]) -> list[int]:
        removed: list[int] = []
        with self._lock:
            waiting = list(ids)
            while waiting:
                entry = self._entries.pop(waiting.pop(), None)
                if entry is None:
                    continue
                removed.append(entry.id)
                waiting.extend(self._children.pop(entry.id, ()))
                self._forget(entry)
        return removed

    def set_status(self, entry_id: int, status: str) -> bool:
        checked_status(status)
        with self._lock:
            entry = self._entries.get(entry_id)
            if entry is None:
                return False
            changed = replace(entry, status=status)
            if self._exact.get(_slot(entry)) == entry_id:
                del self._exact[_slot(entry)]
            self._displace(changed)
            self._entries[entry_id] = changed
            self._exact[_slot(changed)] = entry_id
            return True

    def touch(self, entry_id: int, now: float) -> None:
        with self._lock:
            entry = self._entries.get(entry_id)
            if entry is not None:
                self._entries[entry_id] = replace(entry, hits=entry.hits + 1)
                self._entries.move_to_end(entry_id)

    def least_used(self, count: int, category: str | None = None) -> list[int]:
        found: list[int] = []
        with self._lock:
            for entry in self._entries.values():
                if len(found) == count:
                    break
                if category is None or entry.category == category:
                    found.append(entry.id)
        return found

    def count(self, category: str | None = None) -> int:
        with self._lock:
            return len(self._entries) if category is None else self._categories.get(category, 0)

    def observe(self, entry_id: int, observation: Observation) -> None:
        with self._lock:
            if entry_id in self._entries:
                kept = self._observed.setdefault(entry_id, deque(maxlen=OBSERVATIONS))
                kept.append(observation)

    def observations(self, entry_id: int) -> list[Observation]:
        with self._lock:
            return list(self._observed.get(entry_id, ()))

    def secret(self) -> bytes:
        return self._secret

    def _displace(self, entry: Entry) -> None:
        """Remove the other entry that holds the place of this one."""
        held = self._exact.get(_slot(entry))
        if held is not None and held != entry.id:
            self.delete([held])

    def _forget(self, entry: Entry) -> None:
        if self._exact.get(_slot(entry)) == entry.id:
            del self._exact[_slot(entry)]
        self._categories[entry.category] -= 1
        self._observed.pop(entry.id, None)
        if entry.parent is not None:
            self._children.get(entry.parent, set()).discard(entry.id)


def _slot(entry: Entry) -> Slot:
    return entry.partition, entry.exact_fp, None if entry.status == "live" else entry.writer
