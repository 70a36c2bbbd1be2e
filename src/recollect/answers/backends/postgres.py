"""Entries in PostgreSQL, shared by any number of processes."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from recollect.answers.backends.base import Denied, Unreachable
from recollect.answers.backends.sql import TABLES, SqlBackend
from recollect.errors import HostError, StoreError

try:
    import psycopg
except ImportError as error:
    raise HostError("PostgreSQL needs psycopg: pip install recollect[answers]") from error

_LOCK = 0x5EC0_11EC  # one process at a time makes the tables
# libpq has no code for what a server says to one who connects. In a server of another language
# this does not match, and the place counts as unreachable.
_DENIED = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry"
    r"|(?:role|database) \".*\" does not exist|permission denied for database"
)


class PostgresBackend(SqlBackend):
    """Entries in the tables ``answers_*``; a connection per thread, made at its first call.

    Args:
        url: as libpq takes it, e.g. ``postgresql://user:password@host/database``.
    """

    name = "postgresql"
    mark = "%s"

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._local = threading.local()
        self._lock = threading.Lock()
        self._all: list[psycopg.Connection[Any]] = []
        self._ready = False

    def close(self) -> None:
        try:
            if self._hits:
                self._flush()
        finally:
            with self._lock:
                for connection in self._all:
                    connection.close()
                self._all.clear()

    def _read(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._speaking() as connection:
            return connection.execute(statement, values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[psycopg.Cursor[Any]]:
        with self._speaking() as connection, connection.transaction():
            yield connection.cursor()

    def _hold(self, cursor: Any, request: bytes) -> None:
        number = int.from_bytes(request[-8:], "big", signed=True)
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (number,))

    @contextmanager
    def _speaking(self) -> Iterator[psycopg.Connection[Any]]:
        """This thread's connection; PostgreSQL's errors as StoreError."""
        try:
            yield self._connection()
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            self._local.connection = None
            if _DENIED.search(str(error)):
                raise Denied(
                    f"PostgreSQL lets nobody in with the store's URL: {_line(error)}"
                ) from error
            raise Unreachable(f"PostgreSQL: {_line(error)}") from error
        except psycopg.Error as error:
            raise StoreError(f"PostgreSQL: {_line(error)}") from error

    def _connection(self) -> psycopg.Connection[Any]:
        connection = getattr(self._local, "connection", None)
        if connection is not None and not connection.closed:
            return connection
        connection = psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=2,
            options="-c statement_timeout=30000 -c client_min_messages=warning",
        )
        with self._lock:
            self._all = [*(each for each in self._all if not each.closed), connection]
            if not self._ready:
                self._make_tables(connection)
                self._ready = True
        self._local.connection = connection
        return connection

    def _make_tables(self, connection: psycopg.Connection[Any]) -> None:
        with connection.transaction(), connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            text = TABLES.format(id="BIGSERIAL PRIMARY KEY", blob="BYTEA", real="DOUBLE PRECISION")
            cursor.execute(text.encode())
            self._prepare(cursor)


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
