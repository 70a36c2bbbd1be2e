"""Entries in one SQLite file: the default. One process writes at a time, all read meanwhile.

Write-ahead logging: a process killed while writing leaves the last complete transaction behind.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from recollect.answers.backends.sql import TABLES, SqlBackend
from recollect.errors import StoreError

WAIT = 0.04  # seconds to wait for another process that writes


class SqliteBackend(SqlBackend):
    """Entries in a file; a connection per reading thread, one for writing.

    Args:
        path: of the file, made when it is missing. ``~`` is the home folder.

    Raises StoreError when it cannot be opened, is no such store, or is of a newer version.
    """

    name = "sqlite"

    def __init__(self, path: str) -> None:
        super().__init__()
        if not path:
            raise StoreError("no path in the URL; write sqlite:///answers.db")
        self._path = path
        self._readers = threading.local()
        self._all: list[sqlite3.Connection] = []
        self._lock = threading.RLock()
        with _speaking(path):
            self._writer = self._connect()
            # Two processes that open a new file at once wait for each other here.
            self._writer.execute("PRAGMA busy_timeout = 5000")
            self._writer.execute("PRAGMA journal_mode = WAL")
            for statement in TABLES.split(";\n"):
                self._writer.execute(
                    statement.format(
                        id="INTEGER PRIMARY KEY AUTOINCREMENT", blob="BLOB", real="REAL"
                    )
                )
            with self._writing() as cursor:
                self._prepare(cursor)
            self._writer.execute(f"PRAGMA busy_timeout = {int(WAIT * 1000)}")

    def close(self) -> None:
        with self._lock:
            if self._all:
                self._flush()
            for connection in self._all:
                connection.close()
            self._all.clear()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=WAIT, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA synchronous = NORMAL")
        with self._lock:
            self._all.append(connection)
        return connection

    def _read(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with _speaking(self._path):
            connection = getattr(self._readers, "connection", None)
            if connection is None:
                connection = self._readers.connection = self._connect()
            return connection.execute(statement, values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Cursor]:
        with self._lock, _speaking(self._path):
            if self._writer.in_transaction:  # within another write of this thread
                yield self._writer.cursor()
                return
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer.cursor()
            except BaseException:
                self._writer.execute("ROLLBACK")
                raise
            self._writer.execute("COMMIT")


@contextmanager
def _speaking(path: str) -> Iterator[None]:
    """SQLite's errors as StoreError."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"the store {path}: {error}") from error
