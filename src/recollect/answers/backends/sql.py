"""Entries in a SQL database: the schema and the statements that SQLite and PostgreSQL share.

A row holds an entry's record and, beside it, what is searched or changes: request, status, hits.
Hits are counted in memory and written with the next write.
"""

from __future__ import annotations

import os
import threading
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from recollect.answers.backends.base import (
    OBSERVATIONS,
    Backend,
    Filter,
    Observation,
    checked_status,
    partition_key,
    scope_key,
)
from recollect.answers.entry import SCHEMA, Entry, pack, unpack
from recollect.errors import StoreError

BATCH = 200  # rows or ids per statement
PENDING_HITS = 256  # counted before they are written

# {id}, {blob} and {real} are the dialect's types. `place` is empty for the live entry of a request
# and "q" with the writer for a quarantined one, so that the pair is unique.
TABLES = """
CREATE TABLE IF NOT EXISTS answers_meta (name TEXT PRIMARY KEY, value {blob} NOT NULL);
CREATE TABLE IF NOT EXISTS answers_entries (
  id {id}, request {blob} NOT NULL, place TEXT NOT NULL, exact_fp {blob} NOT NULL,
  scope TEXT NOT NULL, writer TEXT NOT NULL, category TEXT NOT NULL, status TEXT NOT NULL,
  parent BIGINT, created {real} NOT NULL, expires {real} NOT NULL, used {real} NOT NULL,
  hits BIGINT NOT NULL DEFAULT 0, record {blob} NOT NULL, UNIQUE (request, place));
CREATE INDEX IF NOT EXISTS answers_parent ON answers_entries (parent);
CREATE INDEX IF NOT EXISTS answers_used ON answers_entries (category, used);
CREATE INDEX IF NOT EXISTS answers_expires ON answers_entries (expires);
CREATE TABLE IF NOT EXISTS answers_observations (
  n {id}, entry BIGINT NOT NULL, similarity {real} NOT NULL, correct INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS answers_observed ON answers_observations (entry, n);
"""
_READ = "SELECT id, status, hits, record FROM answers_entries "


class SqlBackend(Backend):
    """Everything but how to connect and how a dialect marks parameters."""

    mark = "?"

    def __init__(self) -> None:
        self.damaged = 0  # records that failed their checks and were removed
        self._hits: dict[int, tuple[int, float]] = {}
        self._hits_lock = threading.Lock()

    @abstractmethod
    def _read(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a SELECT. Raises StoreError."""

    @abstractmethod
    def _writing(self) -> AbstractContextManager[Any]:
        """A transaction; its cursor takes `execute(statement, values)`. Raises StoreError."""

    def _hold(self, cursor: Any, request: bytes) -> None:
        """Let one writer at a time at a request, where a dialect lets several write."""
        return

    def _prepare(self, cursor: Any) -> None:
        """Check who wrote the schema; the secret is made with the tables."""
        cursor.execute(
            self._sql("INSERT INTO answers_meta VALUES (?, ?), (?, ?) ON CONFLICT DO NOTHING"),
            ("schema", str(SCHEMA).encode(), "secret", os.urandom(32)),
        )
        cursor.execute("SELECT value FROM answers_meta WHERE name = 'schema'")
        found = int(bytes(cursor.fetchone()[0]))
        if found > SCHEMA:
            raise StoreError(
                f"the store was written by a newer version (schema {found}, this one reads "
                f"{SCHEMA}); upgrade recollect or give another store"
            )

    def add(self, entry: Entry) -> int:
        request, place = _request(entry.partition, entry.exact_fp), _place(entry)
        with self._writing() as cursor:
            self._write_hits(cursor)
            self._displace(cursor, request, place)
            cursor.execute(
                self._sql(
                    "INSERT INTO answers_entries (request, place, exact_fp, scope, writer, "
                    "category, status, parent, created, expires, used, record) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id"
                ),
                (
                    request,
                    place,
                    entry.exact_fp,
                    scope_key(entry.partition),
                    entry.writer,
                    entry.category,
                    checked_status(entry.status),
                    entry.parent,
                    entry.created_at,
                    entry.expires_at,
                    entry.created_at,
                    pack(entry),
                ),
            )
            return int(cursor.fetchone()[0])

    def get(self, entry_id: int) -> Entry | None:
        rows = self._read(self._sql(_READ + "WHERE id = ?"), (entry_id,))
        return next(self._entries(rows), None)

    def all_exact(self, partition: Sequence[str], exact_fp: bytes) -> list[Entry]:
        rows = self._read(self._sql(_READ + "WHERE request = ?"), (_request(partition, exact_fp),))
        return list(self._entries(rows))

    def scan(self, which: Filter | None = None, *, after: int = 0) -> Iterator[Entry]:
        which = which or Filter()
        if which.ids is not None and len(which.ids) > BATCH:
            raise StoreError(f"a scan takes {BATCH} ids at most")
        condition, values = _where(which)
        statement = self._sql(f"{_READ} WHERE id > ? AND {condition} ORDER BY id LIMIT {BATCH}")
        while rows := self._read(statement, (after, *values)):
            after = rows[-1][0]
            yield from self._entries(rows)

    def delete(self, ids: Iterable[int]) -> list[int]:
        wanted, removed = list(ids), list[int]()
        for start in range(0, len(wanted), BATCH):
            with self._writing() as cursor:
                removed += self._remove(cursor, wanted[start : start + BATCH])
        return removed

    def set_status(self, entry_id: int, status: str) -> bool:
        checked_status(status)
        with self._writing() as cursor:
            cursor.execute(
                self._sql("SELECT request, writer FROM answers_entries WHERE id = ?"), (entry_id,)
            )
            row = cursor.fetchone()
            if row is None:
                return False
            place = "" if status == "live" else "q" + row[1]
            self._displace(cursor, bytes(row[0]), place, keep=entry_id)
            cursor.execute(
                self._sql("UPDATE answers_entries SET status = ?, place = ? WHERE id = ?"),
                (status, place, entry_id),
            )
            return True

    def touch(self, entry_id: int, now: float) -> None:
        with self._hits_lock:
            hits, _ = self._hits.get(entry_id, (0, 0.0))
            self._hits[entry_id] = (hits + 1, now)
            full = len(self._hits) >= PENDING_HITS
        if full:
            self._flush()

    def least_used(self, count: int, category: str | None = None) -> list[int]:
        self._flush()
        condition = "" if category is None else "WHERE category = ?"
        values = () if category is None else (category,)
        rows = self._read(
            self._sql(f"SELECT id FROM answers_entries {condition} ORDER BY used, id LIMIT ?"),
            (*values, count),
        )
        return [row[0] for row in rows]

    def count(self, category: str | None = None) -> int:
        condition, values = ("", ()) if category is None else ("WHERE category = ?", (category,))
        statement = self._sql(f"SELECT count(*) FROM answers_entries {condition}")
        return int(self._read(statement, values)[0][0])

    def observe(self, entry_id: int, observation: Observation) -> None:
        with self._writing() as cursor:
            cursor.execute(
                self._sql(
                    "INSERT INTO answers_observations (entry, similarity, correct) "
                    "SELECT id, ?, ? FROM answers_entries WHERE id = ?"
                ),
                (observation.similarity, int(observation.correct), entry_id),
            )
            cursor.execute(
                self._sql(
                    "DELETE FROM answers_observations WHERE entry = ? AND n <= (SELECT n FROM "
                    "answers_observations WHERE entry = ? ORDER BY n DESC LIMIT 1 "
                    f"OFFSET {OBSERVATIONS})"
                ),
                (entry_id, entry_id),
            )

    def observations(self, entry_id: int) -> list[Observation]:
        statement = (
            "SELECT similarity, correct FROM answers_observations WHERE entry = ? ORDER BY n"
        )
        rows = self._read(self._sql(statement), (entry_id,))
        return [Observation(similarity, bool(correct)) for similarity, correct in rows]

    def secret(self) -> bytes:
        return bytes(self._read("SELECT value FROM answers_meta WHERE name = 'secret'")[0][0])

    def _entries(self, rows: Iterable[tuple[Any, ...]]) -> Iterator[Entry]:
        """Entries of rows; a row whose record is damaged is removed and counted."""
        for entry_id, status, hits, record in rows:
            pending = self._hits.get(entry_id, (0, 0.0))[0]
            try:
                yield unpack(bytes(record), id=entry_id, status=status, hits=hits + pending)
            except StoreError:
                self.damaged += 1
                self.delete([entry_id])

    def _displace(self, cursor: Any, request: bytes, place: str, keep: int = 0) -> None:
        """Remove the entry that holds a place, but not the one to `keep`."""
        self._hold(cursor, request)
        cursor.execute(
            self._sql("SELECT id FROM answers_entries WHERE request = ? AND place = ? AND id <> ?"),
            (request, place, keep),
        )
        held = cursor.fetchall()
        if held:
            self._remove(cursor, [row[0] for row in held])

    def _remove(self, cursor: Any, ids: list[int]) -> list[int]:
        marks = ", ".join("?" * len(ids))
        cursor.execute(
            self._sql(
                "WITH RECURSIVE gone (id) AS (SELECT id FROM answers_entries WHERE id IN "
                f"({marks}) UNION SELECT e.id FROM answers_entries e JOIN gone ON "
                "e.parent = gone.id) "
                "DELETE FROM answers_entries WHERE id IN (SELECT id FROM gone) RETURNING id"
            ),
            ids,
        )
        removed = [row[0] for row in cursor.fetchall()]
        for start in range(0, len(removed), BATCH):
            batch = removed[start : start + BATCH]
            marks = ", ".join("?" * len(batch))
            cursor.execute(
                self._sql(f"DELETE FROM answers_observations WHERE entry IN ({marks})"), batch
            )
        return removed

    def _flush(self) -> None:
        with self._writing() as cursor:
            self._write_hits(cursor)

    def _write_hits(self, cursor: Any) -> None:
        with self._hits_lock:
            pending, self._hits = self._hits, {}
        for entry_id, (hits, used) in sorted(pending.items()):  # one order: no deadlock
            cursor.execute(
                self._sql("UPDATE answers_entries SET hits = hits + ?, used = ? WHERE id = ?"),
                (hits, used, entry_id),
            )

    def _sql(self, statement: str) -> str:
        return statement if self.mark == "?" else statement.replace("?", self.mark)


def _where(which: Filter) -> tuple[str, tuple[Any, ...]]:
    """A filter as a condition and its values."""
    tests: list[tuple[str, Any]] = [
        ("exact_fp = ?", which.exact_fp),
        ("scope = ?", which.scope_key),
        ("writer = ?", which.writer),
        ("category = ?", which.category),
        ("status = ?", which.status),
        ("created < ?", which.before),
        ("expires <= ?", which.expired),
    ]
    conditions = ["1 = 1"] + [text for text, value in tests if value is not None]
    values = [value for _, value in tests if value is not None]
    if which.ids is not None:
        conditions.append(f"id IN ({', '.join('?' * len(which.ids)) or 'NULL'})")
        values += which.ids
    return " AND ".join(conditions), tuple(values)


def _request(partition: Sequence[str], exact_fp: bytes) -> bytes:
    return partition_key(partition) + exact_fp


def _place(entry: Entry) -> str:
    return "" if entry.status == "live" else "q" + entry.writer
