"""Where entries live: the contract every backend keeps, and how one is opened by its URL.

A backend may lose entries; it never returns one that fails its checks, belongs to another
partition, or was deleted. It knows nothing of similarity, and time reaches it as an argument.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from recollect.answers.canonical import canonical
from recollect.answers.entry import Entry
from recollect.errors import RecipeError, StoreError

OBSERVATIONS = 256  # kept per entry, the latest


class Unreachable(StoreError):
    """The place does not answer: worth trying again later, not at once."""


class Denied(StoreError):
    """The place is there and does not let us in: a wrong user, password or database."""


@dataclass(frozen=True)
class Filter:
    """Which entries are meant; every field that is set must match.

    Attributes:
        ids: entry ids.
        exact_fp: one request, in every partition.
        scope_key: as in the partition.
        writer: keyed hash of who wrote.
        category, status: of the entry.
        before: created earlier than this, seconds.
        expired: dead at this time, seconds.
    """

    ids: tuple[int, ...] | None = None
    exact_fp: bytes | None = None
    scope_key: str | None = None
    writer: str | None = None
    category: str | None = None
    status: str | None = None
    before: float | None = None
    expired: float | None = None

    def matches(self, entry: Entry) -> bool:
        """Whether the entry is meant."""
        return (
            (self.ids is None or entry.id in self.ids)
            and (self.exact_fp is None or entry.exact_fp == self.exact_fp)
            and (self.scope_key is None or scope_key(entry.partition) == self.scope_key)
            and (self.writer is None or entry.writer == self.writer)
            and (self.category is None or entry.category == self.category)
            and (self.status is None or entry.status == self.status)
            and (self.before is None or entry.created_at < self.before)
            and (self.expired is None or entry.expires_at <= self.expired)
        )


class Observation(NamedTuple):
    """At this similarity the entry's answer was, or was not, the right one."""

    similarity: float
    correct: bool


class Backend(ABC):
    """Entries by id and by exact fingerprint. All methods may be called from any thread.

    Every method raises StoreError when the place is unreachable, full, or of a newer schema.
    """

    name: str = ""

    @abstractmethod
    def add(self, entry: Entry) -> int:
        """Store an entry and give its id, larger than all before.

        It takes the place of the live entry of the same partition and fingerprint, or of the
        quarantined one of the same writer.
        """

    @abstractmethod
    def get(self, entry_id: int) -> Entry | None:
        """The entry, or None when there is none or it fails its checks."""

    @abstractmethod
    def all_exact(self, partition: Sequence[str], exact_fp: bytes) -> list[Entry]:
        """All entries of a request: at most one live one, and one quarantined one per writer."""

    def by_exact(self, partition: Sequence[str], exact_fp: bytes, writer: str = "") -> Entry | None:
        """The live entry of a request, else the quarantined one that `writer` wrote."""
        entries = self.all_exact(partition, exact_fp)
        live = (entry for entry in entries if entry.status == "live")
        own = (entry for entry in entries if writer and entry.writer == writer)
        return next(live, None) or next(own, None)

    @abstractmethod
    def scan(self, which: Filter | None = None, *, after: int = 0) -> Iterator[Entry]:
        """Entries with an id above `after` that match, by rising id, expired ones included."""

    @abstractmethod
    def delete(self, ids: Iterable[int]) -> list[int]:
        """Remove entries and all that continue them (`parent`); the ids that were removed."""

    @abstractmethod
    def set_status(self, entry_id: int, status: str) -> bool:
        """Change an entry to ``live`` or ``quarantined``; False when there is none.

        One that becomes live takes the place of the live entry of its request.
        """

    @abstractmethod
    def touch(self, entry_id: int, now: float) -> None:
        """Count a hit. May be written later, and lost in a crash."""

    @abstractmethod
    def least_used(self, count: int, category: str | None = None) -> list[int]:
        """So many entries that were written or hit longest ago, of all or of one category."""

    @abstractmethod
    def count(self, category: str | None = None) -> int:
        """Entries stored, of all or of one category."""

    @abstractmethod
    def observe(self, entry_id: int, observation: Observation) -> None:
        """Append to an entry's observations; the last 256 are kept. Unknown ids are ignored."""

    @abstractmethod
    def observations(self, entry_id: int) -> list[Observation]:
        """What was observed of an entry, oldest first."""

    @abstractmethod
    def secret(self) -> bytes:
        """32 random bytes made when the store was: the key of scopes where none was given."""

    def ping(self) -> None:
        """Nothing, where the place answers. Raises StoreError otherwise."""
        self.secret()

    def close(self) -> None:
        """Write what was put off and let go of files and connections."""
        return


def open_backend(url: str, required: bool | None = None) -> Backend:
    """A backend by URL: ``memory``, ``sqlite:///path``, ``redis://…`` or ``postgresql://…``.

    Those behind a network are guarded: what does not answer in time is left alone for a while.
    `required` says what happens when it cannot be used at once, see `GuardedBackend`.
    """
    from recollect.answers.backends.guarded import GuardedBackend

    kind = url.partition(":")[0]
    if url == "memory":
        from recollect.answers.backends.memory import MemoryBackend

        return MemoryBackend()
    if url.startswith("sqlite:///"):
        from recollect.answers.backends.sqlite import SqliteBackend

        return SqliteBackend(url.removeprefix("sqlite:///"))
    if kind in ("redis", "rediss", "valkey", "valkeys", "unix"):
        from recollect.answers.backends.redis import RedisBackend

        return GuardedBackend(RedisBackend(url), required=required)
    if kind in ("postgresql", "postgres"):
        from recollect.answers.backends.postgres import PostgresBackend

        return GuardedBackend(PostgresBackend(url), required=required)
    raise RecipeError(
        f"unknown backend '{shown(url)}'; write memory, sqlite:///path, redis://host or postgresql://host"
    )


def shown(url: str) -> str:
    """A URL fit to be shown: without its password."""
    return re.sub(r"(://[^:/@]*:).*@", r"\1…@", url)


def scope_key(partition: Sequence[str]) -> str:
    """Whose entries these are, users named inside requests left aside (see `identity`)."""
    return partition[3].partition(":")[0] if len(partition) > 3 else ""


def partition_key(partition: Sequence[str]) -> bytes:
    """SHA-256 of a partition: 32 bytes that stand for it in an index."""
    return hashlib.sha256(canonical(list(partition))).digest()


def checked_status(status: str) -> str:
    """The status itself. Raises StoreError when it is not one."""
    if status not in ("live", "quarantined"):
        raise StoreError(f"unknown status '{status}'; entries are live or quarantined")
    return status
