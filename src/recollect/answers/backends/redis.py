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

# Keys after the prefix: `m:id` fields of an entry, `b:id` its record, `o:id` its observations,
# `c:id` its continuations, `x:request` places -> ids, `used` and `used:category` ids by last use,
# `ids` ids by number, `expires` ids by expiry, `next` the last id, `about` schema and secret.
_REMOVE = """
local p = KEYS[1]
local function remove(first)
  local gone, waiting = {}, {first}
  while #waiting > 0 do
    local id = table.remove(waiting)
    local m = redis.call('HMGET', p..'m:'..id, 'request', 'place', 'category', 'parent')
    if m[1] then
      gone[#gone + 1] = tonumber(id)
      local at = p..'x:'..m[1]
      if redis.call('HGET', at, m[2]) == tostring(id) then redis.call('HDEL', at, m[2]) end
      redis.call('ZREM', p..'used:'..m[3], id)
      if m[4] ~= '' then redis.call('SREM', p..'c:'..m[4], id) end
      for _, child in ipairs(redis.call('SMEMBERS', p..'c:'..id)) do
        waiting[#waiting + 1] = child
      end
    end
    redis.call('DEL', p..'m:'..id, p..'b:'..id, p..'o:'..id, p..'c:'..id)
    for _, set in ipairs({'used', 'ids', 'expires'}) do redis.call('ZREM', p..set, id) end
  end
  return gone
end
"""
_ADD = (
    _REMOVE
    + """
local request, place, record, created, expires = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local millis, category, parent = tonumber(ARGV[6]), ARGV[7], ARGV[8]
local held = redis.call('HGET', p..'x:'..request, place)
if held then remove(held) end
local id = redis.call('INCR', p..'next')
redis.call('HSET', p..'m:'..id, 'request', request, 'place', place, 'category', category,
  'parent', parent, 'hits', 0, 'created', created, unpack(ARGV, 9))
if millis > 0 then
  redis.call('SET', p..'b:'..id, record, 'PX', millis)
else
  redis.call('SET', p..'b:'..id, record)
end
redis.call('HSET', p..'x:'..request, place, id)
redis.call('ZADD', p..'used', created, id)
redis.call('ZADD', p..'used:'..category, created, id)
redis.call('ZADD', p..'ids', id, id)
redis.call('ZADD', p..'expires', expires, id)
if parent ~= '' then redis.call('SADD', p..'c:'..parent, id) end
return id
"""
)
_DELETE = (
    _REMOVE
    + """
local all = {}
for _, id in ipairs(ARGV) do
  for _, gone in ipairs(remove(id)) do all[#all + 1] = gone end
end
return all
"""
)
_STATUS = (
    _REMOVE
    + """
local id, status = ARGV[1], ARGV[2]
local m = redis.call('HMGET', p..'m:'..id, 'request', 'place', 'writer')
if not m[1] then return 0 end
local place = ''
if status ~= 'live' then place = 'q'..m[3] end
local at = p..'x:'..m[1]
if redis.call('HGET', at, m[2]) == id then redis.call('HDEL', at, m[2]) end
local held = redis.call('HGET', at, place)
if held and held ~= id then remove(held) end
redis.call('HSET', at, place, id)
redis.call('HSET', p..'m:'..id, 'place', place, 'status', status)
return 1
"""
)
_TOUCH = """
local p, id, now = KEYS[1], ARGV[1], ARGV[2]
local category = redis.call('HGET', p..'m:'..id, 'category')
if category then
  redis.call('HINCRBY', p..'m:'..id, 'hits', 1)
  redis.call('ZADD', p..'used', now, id)
  redis.call('ZADD', p..'used:'..category, now, id)
end
"""
_OBSERVE = """
local p, id = KEYS[1], ARGV[1]
if redis.call('EXISTS', p..'m:'..id) == 1 then
  redis.call('RPUSH', p..'o:'..id, ARGV[2])
  redis.call('LTRIM', p..'o:'..id, -tonumber(ARGV[3]), -1)
end
"""
_EXACT = """
local p, found = KEYS[1], {}
for _, id in ipairs(redis.call('HVALS', p..'x:'..ARGV[1])) do
  local m = redis.call('HMGET', p..'m:'..id, 'status', 'hits')
  local record = redis.call('GET', p..'b:'..id)
  if m[1] and record then found[#found + 1] = {id, m[1], m[2], record} end
end
return found
"""


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
            raise StoreError(f"cannot read the URL {url}: {error}") from error
        self._prefix, self._ready = prefix, False
        self._scripts = {
            text: self._client.register_script(text)
            for text in (_ADD, _DELETE, _STATUS, _TOUCH, _OBSERVE, _EXACT)
        }
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
                    _ADD,
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
            rows = self._run(_EXACT, _request(partition, exact_fp))
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
                removed += self._run(_DELETE, *wanted[start : start + BATCH])
        return removed

    def set_status(self, entry_id: int, status: str) -> bool:
        with self._speaking():
            return bool(self._run(_STATUS, entry_id, checked_status(status)))

    def touch(self, entry_id: int, now: float) -> None:
        with self._speaking():
            self._run(_TOUCH, entry_id, repr(now))

    def least_used(self, count: int, category: str | None = None) -> list[int]:
        with self._speaking():
            return [int(each) for each in self._client.zrange(self._used(category), 0, count - 1)]

    def count(self, category: str | None = None) -> int:
        with self._speaking():
            return int(self._client.zcard(self._used(category)))

    def observe(self, entry_id: int, observation: Observation) -> None:
        text = f"{observation.similarity!r} {int(observation.correct)}"
        with self._speaking():
            self._run(_OBSERVE, entry_id, text, OBSERVATIONS)

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
