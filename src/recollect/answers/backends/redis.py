"""Entries in Redis or Valkey, shared by any number of processes.

What is searched or changes is a small hash per entry; its record is a key of its own that the
server lets expire. Every write is one script, so that no reader sees half of it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from recollect.answers.backends import redis_scripts as scripts
from recollect.answers.backends.base import (
    OBSERVATIONS,
    Backend,
    Denied,
    Filter,
    Observation,
    Unreachable,
    checked_status,
    partition_key,
    scope_key,
    shown,
)
from recollect.answers.entry import SCHEMA, Entry, pack, unpack
from recollect.errors import HostError, StoreError

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.exceptions import AuthenticationError, AuthorizationError
    from redis.retry import Retry
except ImportError as error:
    raise HostError("Redis needs its client: pip install recollect[answers]") from error

BATCH = 200
PREFIX = "{recollect:answers}:"  # the braces keep all keys on one node of a cluster


class RedisBackend(Backend):
    """Entries under one prefix of a server.

    Args:
        url: as redis-py takes it: ``redis://``, ``rediss://`` (TLS), ``unix://``.
        prefix: of all keys.
    """

    name = "redis"

    def __init__(self, url: str, prefix: str = PREFIX) -> None:
        url = url.replace("valkey", "redis", 1) if url.startswith("valkey") else url
        try:
            # Any: the client's own types allow answers of every mode it may be in.
            self._client: Any = redis.Redis.from_url(
                url, socket_timeout=5, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0)
            )
        except ValueError as error:
            raise StoreError(f"cannot read the URL {shown(url)}: {error}") from error
        self._prefix, self._ready = prefix, False
        self._scripts = {text: self._client.register_script(text) for text in scripts.ALL}
        self.damaged = 0

    def add(self, entry: Entry) -> int:
        lifetime = entry.expires_at - entry.created_at
        fields = {
            "status": checked_status(entry.status),
            "writer": entry.writer,
            "scope": scope_key(entry.partition),
            "exact": entry.exact_fp,
        }
        with self._speaking():
            return int(
                self._run(
                    scripts.ADD,
                    _request(entry.partition, entry.exact_fp),
                    "" if entry.status == "live" else "q" + entry.writer,
                    pack(entry),
                    repr(entry.created_at),
                    "inf" if math.isinf(entry.expires_at) else repr(entry.expires_at),
                    0 if math.isinf(lifetime) else max(1, math.ceil(lifetime * 1000)),
                    entry.category,
                    "" if entry.parent is None else entry.parent,
                    *(each for pair in fields.items() for each in pair),
                )
            )

    def get(self, entry_id: int) -> Entry | None:
        return next(self._load([entry_id]), None)

    def all_exact(self, partition: Sequence[str], exact_fp: bytes) -> list[Entry]:
        with self._speaking():
            rows = self._run(scripts.EXACT, _request(partition, exact_fp))
        return list(self._entries(rows))

    def scan(self, which: Filter | None = None, *, after: int = 0) -> Iterator[Entry]:
        which = which or Filter()
        while True:
            with self._speaking():
                found = self._client.zrange(
                    self._key("ids"), f"({after}", "+inf", byscore=True, offset=0, num=BATCH
                )
            if not found:
                return
            after = int(found[-1])
            for entry in self._load([int(each) for each in found]):
                if which.matches(entry):
                    yield entry

    def delete(self, ids: Iterable[int]) -> list[int]:
        wanted, removed = list(ids), list[int]()
        for start in range(0, len(wanted), BATCH):
            with self._speaking():
                removed += self._run(scripts.DELETE, *wanted[start : start + BATCH])
        return removed

    def set_status(self, entry_id: int, status: str) -> bool:
        with self._speaking():
            return bool(self._run(scripts.STATUS, entry_id, checked_status(status)))

    def touch(self, entry_id: int, now: float) -> None:
        with self._speaking():
            self._run(scripts.TOUCH, entry_id, repr(now))

    def least_used(self, count: int, category: str | None = None) -> list[int]:
        with self._speaking():
            return [int(each) for each in self._client.zrange(self._used(category), 0, count - 1)]

    def count(self, category: str | None = None) -> int:
        with self._speaking():
            return int(self._client.zcard(self._used(category)))

    def observe(self, entry_id: int, observation: Observation) -> None:
        text = f"{observation.similarity!r} {int(observation.correct)}"
        with self._speaking():
            self._run(scripts.OBSERVE, entry_id, text, OBSERVATIONS)

    def observations(self, entry_id: int) -> list[Observation]:
        with self._speaking():
            rows = self._client.lrange(self._key(f"o:{entry_id}"), 0, -1)
        pairs = (row.split() for row in rows)
        return [Observation(float(similarity), correct == b"1") for similarity, correct in pairs]

    def secret(self) -> bytes:
        with self._speaking():
            return self._client.hget(self._key("about"), "secret")

    def close(self) -> None:
        self._client.close()

    def _load(self, ids: list[int]) -> Iterator[Entry]:
        with self._speaking():
            pipe = self._client.pipeline(transaction=True)
            for entry_id in ids:
                pipe.hmget(self._key(f"m:{entry_id}"), "status", "hits")
                pipe.get(self._key(f"b:{entry_id}"))
            answers = pipe.execute()
        rows = zip(ids, answers[::2], answers[1::2], strict=True)
        expired = [i for i, (status, _), record in rows if status and record is None]
        if expired:  # the server dropped the record: drop what is left of the entry
            self.delete(expired)
        rows = zip(ids, answers[::2], answers[1::2], strict=True)
        return self._entries((i, *fields, record) for i, fields, record in rows if record)

    def _entries(self, rows: Iterable[Sequence[Any]]) -> Iterator[Entry]:
        """Entries of rows; a row whose record is damaged is removed and counted."""
        for entry_id, status, hits, record in rows:
            try:
                yield unpack(record, id=int(entry_id), status=status.decode(), hits=int(hits))
            except StoreError:
                self.damaged += 1
                self.delete([int(entry_id)])

    def _run(self, script: str, *values: Any) -> Any:
        return self._scripts[script](keys=[self._prefix], args=values)

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _used(self, category: str | None) -> str:
        return self._key("used" if category is None else f"used:{category}")

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """The server's errors as StoreError; at the first word, its schema is checked."""
        try:
            if not self._ready:
                self._prepare()
            yield
        except (AuthenticationError, AuthorizationError) as error:
            raise Denied(f"Redis lets nobody in with the store's URL: {error}") from error
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise Unreachable(f"Redis: {error}") from error
        except redis.RedisError as error:
            raise StoreError(f"Redis: {error}") from error

    def _prepare(self) -> None:
        about = self._key("about")
        self._client.hsetnx(about, "schema", SCHEMA)
        self._client.hsetnx(about, "secret", os.urandom(32))
        found = int(self._client.hget(about, "schema"))
        if found > SCHEMA:
            raise StoreError(
                f"the store was written by a newer version (schema {found}, this one reads "
                f"{SCHEMA}); upgrade recollect or give another prefix"
            )
        self._ready = True


def _request(partition: Sequence[str], exact_fp: bytes) -> str:
    return (partition_key(partition) + exact_fp).hex()
