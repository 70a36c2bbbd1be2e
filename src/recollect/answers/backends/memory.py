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


class MemoryBackend(Backend):
    """Entries in dictionaries under one lock."""

    name = "memory"

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._entries: OrderedDict[int, Entry] = OrderedDict()  # least recently used first
        # Request -> writer of a quarantined entry, or None for the live one -> id.
        self._exact: dict[tuple[tuple[str, ...], bytes], dict[str | None, int]] = {}
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
            self._place(entry)
            self._categories[entry.category] = self._categories.get(entry.category, 0) + 1
            if entry.parent is not None:
                self._children.setdefault(entry.parent, set()).add(entry.id)
            return entry.id

    def get(self, entry_id: int) -> Entry | None:
        return self._entries.get(entry_id)

    def all_exact(self, partition: Sequence[str], exact_fp: bytes) -> list[Entry]:
        with self._lock:
            places = self._exact.get((tuple(partition), exact_fp), {})
            return [self._entries[entry_id] for entry_id in places.values()]

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
            self._leave(entry)
            self._displace(changed)
            self._entries[entry_id] = changed
            self._place(changed)
            return True

    def touch(self, entry_id: int, now: float) -> None:
        with self._lock:
            entry = self._entries.get(entry_id)
            if entry is not None:
                self._entries[entry_id] = entry.with_hits(entry.hits + 1)
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
        held = self._exact.get(_request(entry), {}).get(_slot(entry))
        if held is not None and held != entry.id:
            self.delete([held])

    def _place(self, entry: Entry) -> None:
        self._exact.setdefault(_request(entry), {})[_slot(entry)] = entry.id

    def _leave(self, entry: Entry) -> None:
        places = self._exact.get(_request(entry), {})
        if places.get(_slot(entry)) == entry.id:
            del places[_slot(entry)]
            if not places:
                del self._exact[_request(entry)]

    def _forget(self, entry: Entry) -> None:
        self._leave(entry)
        self._categories[entry.category] -= 1
        self._observed.pop(entry.id, None)
        if entry.parent is not None:
            self._children.get(entry.parent, set()).discard(entry.id)


def _request(entry: Entry) -> tuple[tuple[str, ...], bytes]:
    return entry.partition, entry.exact_fp


def _slot(entry: Entry) -> str | None:
    return None if entry.status == "live" else entry.writer
