"""Every backend with a real server behind it; those whose server is missing are skipped."""

from __future__ import annotations

import pytest
from postgres_server import ABSENT as NO_POSTGRES
from postgres_server import INITDB, PostgresServer

from recollect.answers.backends.memory import MemoryBackend
from recollect.answers.backends.sqlite import SqliteBackend
from recollect.answers.clock import ManualClock
from redis_server import ABSENT as NO_REDIS
from redis_server import BINARY, RedisServer

BACKENDS = ["memory", "sqlite", "redis", "postgresql"]


@pytest.fixture(scope="session")
def postgres_server():
    if not INITDB:
        pytest.skip(NO_POSTGRES)
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def redis_server():
    if not BINARY:
        pytest.skip(NO_REDIS)
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def open_backend(tmp_path, request):
    """Makes a backend by kind, on an empty store; the same kind again opens the same store."""
    opened, emptied = [], set()

    def open_one(kind):
        if kind == "memory":
            backend = MemoryBackend()
        elif kind == "sqlite":
            backend = SqliteBackend(str(tmp_path / "answers.db"))
        elif kind == "redis":
            backend = _redis(request.getfixturevalue("redis_server"), kind in emptied)
        else:
            backend = _postgres(request.getfixturevalue("postgres_server"), kind in emptied)
        emptied.add(kind)
        opened.append(backend)
        return backend

    yield open_one
    for backend in opened:
        backend.close()


@pytest.fixture(params=BACKENDS)
def backend(request, open_backend):
    """Each backend in turn, empty."""
    return open_backend(request.param)


@pytest.fixture
def clock():
    return ManualClock(1_000_000.0)


def _redis(server, keep):
    import redis

    from recollect.answers.backends.redis import RedisBackend

    if not keep:
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
    return RedisBackend(server.url)


def _postgres(server, keep):
    import psycopg

    from recollect.answers.backends.postgres import PostgresBackend

    if not keep:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(
                "DROP TABLE IF EXISTS answers_meta, answers_entries, answers_observations"
            )
    return PostgresBackend(server.url)
