"""Entries in Redis or Valkey, shared by every engine that names the same server.

An entry is one string, or several where it is longer than a piece; all of them carry the same hash
tag, so that one script makes them visible at once. What a crashed writer leaves expires by itself.
"""

from __future__ import annotations

import re
import struct
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from recollect.errors import StoreError
from recollect.store.tiers.base import (
    NO_FACTS,
    Facts,
    Lease,
    Reservation,
    Tier,
    TierStat,
    check_key,
)
from recollect.store.tiers.guarded import Denied, Unreachable
from recollect.store.tiers.partial import PartialLease
from recollect.store.tiers.reservation import CountedReservation

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ImportError as error:  # pragma: no cover
    raise StoreError("the Redis tier needs redis-py: pip install recollect[store]") from error

if TYPE_CHECKING:
    from typing_extensions import Buffer

SCHEMES = ("redis", "rediss", "unix", "valkey", "valkeys")
HEAD = struct.Struct("<4s16sQQ")  # magic, token of the write, bytes of the entry, bytes of a piece
MAGIC = b"RCR1"

# Every script is atomic. KEYS all belong to one entry. 'writing' holds the writer's token.
RESERVE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
return 0
"""
# KEYS: entry, writing, staged first piece, further pieces. ARGV: token, time to live in ms or 0.
COMMIT = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
for i = 3, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 then return 0 end
end
for i = 3, #KEYS do
  if ARGV[2] == '0' then redis.call('PERSIST', KEYS[i])
  else redis.call('PEXPIRE', KEYS[i], ARGV[2]) end
end
redis.call('RENAME', KEYS[3], KEYS[1])
redis.call('DEL', KEYS[2])
return 1
"""
# KEYS: writing, then everything to delete. ARGV: token.
ABORT = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
for i = 2, #KEYS do redis.call('UNLINK', KEYS[i]) end
"""


class RedisTier(Tier):
    """A namespace of a Redis server.

    Args:
        url: ``redis://[[user]:password@]host[:port][/db]``, ``rediss://`` (TLS), ``valkey://``,
            ``valkeys://`` or ``unix://[:password@]/path/to.sock``.
        namespace: entries of other namespaces are neither seen nor touched.
        ttl: seconds after which an entry expires; None keeps it for as long as the server does
            (its `maxmemory-policy` decides who goes first).
        connect_timeout: seconds to reach the server.
        timeout: seconds to wait for the next bytes of an answer.
        piece: bytes per Redis string; longer entries take several.
        writer_lease: seconds of silence after which a writer counts as dead.
        count_every: seconds for which `stat` believes its last walk over the namespace.

    Nothing is sent before the first operation. Counts of hits and misses are this process's own.
    """

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "default",
        ttl: float | None = None,
        connect_timeout: float = 0.25,
        timeout: float = 1.0,
        piece: int = 8 << 20,
        writer_lease: float = 30.0,
        count_every: float = 30.0,
        name: str = "redis",
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES:
            raise StoreError(f"'{parts.scheme}://' is no Redis; write {'://, '.join(SCHEMES)}://")
        if ttl is not None and ttl <= 0:
            raise StoreError(f"a time to live of {ttl} s keeps nothing; give a positive number")
        self.name = name
        self.ttl_ms = 0 if ttl is None else max(1, round(ttl * 1000))
        self.piece = piece
        self._count_every = count_every
        self.lease_ms = round(writer_lease * 1000)
        self._where = parts.hostname or parts.path
        self._prefix = b"recollect:%s:" % namespace.encode()
        try:
            self._client = redis.Redis.from_url(
                re.sub("^valkey", "redis", url),
                socket_connect_timeout=connect_timeout,
                socket_timeout=timeout,
                socket_read_size=1 << 20,
                # A pooled connection may have died with the old server: one fresh attempt.
                retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            )
        except ValueError as error:
            raise StoreError(f"cannot read the Redis URL of {self._where}: {error}") from error
        self._reserve = self._client.register_script(RESERVE)
        self._commit = self._client.register_script(COMMIT)
        self._abort = self._client.register_script(ABORT)
        self._lock = threading.RLock()  # leases may end, and count, in a garbage collection
        self._hits = self._misses = self._corrupt = self._refused = self._errors = 0
        self._writing = 0
        self._leases = 0
        self._counted: tuple[float, int, int] | None = None  # when, entries, bytes

    def reserve(self, key: bytes, nbytes: int, facts: Facts = NO_FACTS) -> Reservation | None:
        check_key(key)
        token = uuid.uuid4().bytes
        keys = [self._key(key, "entry"), self._key(key, "writing")]
        try:
            with self._speaking():
                granted = self._reserve(keys=keys, args=[token, self.lease_ms])
        except _Full:
            self._count("_refused")
            return None
        return _RedisReservation(self, key, nbytes, token) if granted else None

    def get(self, key: bytes) -> Lease | None:
        check_key(key)
        with self._speaking():
            raw = self._client.get(self._key(key, "entry"))
            if raw is None:
                self._count("_misses")
                return None
            data = self._body(key, raw)
        if data is None:  # the server evicted a piece, or somebody else wrote under our name
            self.delete(key)
            self._count("_misses", "_corrupt")
            return None
        self._count("_hits", "_leases")
        return Lease(data, lambda: self._count("_leases", by=-1))

    def open(self, key: bytes) -> Lease | None:
        check_key(key)
        with self._speaking():
            head = _read_head(self._client.getrange(self._key(key, "entry"), 0, HEAD.size - 1))
        if head is None:
            return self.get(key)  # which knows what to make of it
        self._count("_hits", "_leases")
        return PartialLease(
            head[1],
            lambda start, stop: self._range(key, head, start, stop),
            lambda: self._count("_leases", by=-1),
        )

    def contains(self, key: bytes) -> bool:
        with self._speaking():
            return bool(self._client.exists(self._key(key, "entry")))

    def leading(self, keys: Sequence[bytes]) -> int:
        with self._speaking(), self._client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.exists(self._key(key, "entry"))
            present = pipe.execute()
        return present.index(0) if 0 in present else len(keys)

    def delete(self, key: bytes) -> bool:
        check_key(key)
        entry = self._key(key, "entry")
        with self._speaking():
            head = _read_head(self._client.getrange(entry, 0, HEAD.size - 1))
            names = [entry, *(self._pieces(key, *head)[1:] if head else [])]
            return bool(self._client.unlink(*names)) and head is not None

    def keys(self) -> Iterator[bytes]:
        """By SCAN, a thousand at a time: the server stays responsive meanwhile."""
        found: set[bytes] = set()  # SCAN may tell one key twice
        pattern = re.sub(rb"([*?\[\]\\])", rb"\\\1", self._prefix) + b"{*}:entry"
        with self._speaking():
            for name in self._client.scan_iter(match=pattern, count=1000):
                with suppress(ValueError):
                    key = bytes.fromhex(name[len(self._prefix) + 1 : -len(b"}:entry")].decode())
                    if len(key) == 32 and key not in found:
                        found.add(key)
                        yield key

    def stat(self) -> TierStat:
        """Entries and bytes are counted by walking the namespace, but not at every call."""
        now = time.monotonic()
        if self._counted is None or now - self._counted[0] >= self._count_every:
            self._counted = (now, *self._walk())
        _, entries, nbytes = self._counted
        return TierStat(
            self.name,
            entries=entries,
            bytes=nbytes,
            hits=self._hits,
            misses=self._misses,
            errors=self._errors,
            corrupt=self._corrupt,
            refused=self._refused,
            leases=self._leases,
            writing=self._writing,
        )

    def close(self) -> None:
        self._client.close()

    def _walk(self) -> tuple[int, int]:
        entries = nbytes = 0
        batch: list[bytes] = []
        for key in self.keys():
            batch.append(self._key(key, "entry"))
            if len(batch) == 1000:
                entries, nbytes = entries + len(batch), nbytes + self._sizes(batch)
                batch = []
        return entries + len(batch), nbytes + self._sizes(batch)

    def _sizes(self, entries: list[bytes]) -> int:
        with self._speaking(), self._client.pipeline(transaction=False) as pipe:
            for entry in entries:
                pipe.getrange(entry, 0, HEAD.size - 1)
            heads = [_read_head(raw) for raw in pipe.execute()]
        return sum(head[1] for head in heads if head)

    def _body(self, key: bytes, raw: Any) -> Buffer | None:
        """The bytes of an entry whose first piece, with its head, is `raw`. None: not whole."""
        head = _read_head(raw)
        if head is None:
            return None
        _, nbytes, piece = head
        first = memoryview(raw)[HEAD.size :]
        if len(first) != min(nbytes, piece):
            return None
        if nbytes <= piece:
            return first
        whole = bytearray(nbytes)
        whole[: len(first)] = first
        for i, name in enumerate(self._pieces(key, *head)[1:], start=1):
            part: Any = self._client.get(name)
            begin, end = i * piece, min((i + 1) * piece, nbytes)
            if part is None or len(part) != end - begin:
                return None
            whole[begin:end] = part
        return whole

    def _range(self, key: bytes, head: tuple[bytes, int, int], start: int, stop: int) -> Buffer:
        """Bytes of an entry, from as many of its pieces as they lie on."""
        entry, (_, _, piece) = self._key(key, "entry"), head
        names = [entry, *self._pieces(key, *head)[1:]]
        with self._speaking(), self._client.pipeline(transaction=False) as pipe:
            pipe.getrange(entry, 0, HEAD.size - 1)  # still the same write?
            for number in range(start // piece, -(-stop // piece)):
                skip = number * piece - (HEAD.size if number == 0 else 0)
                begin, end = max(start, number * piece), min(stop, (number + 1) * piece)
                pipe.getrange(names[number], begin - skip, end - skip - 1)
            now, *parts = pipe.execute()
        if _read_head(now) != head:
            raise StoreError("the entry is gone")
        return b"".join(parts)

    def _key(self, key: bytes, part: str) -> bytes:
        return self._prefix + b"{%s}:%s" % (key.hex().encode(), part.encode())

    def _pieces(self, key: bytes, token: bytes, nbytes: int, piece: int) -> list[bytes]:
        """Where the pieces lie; the first one only until the commit."""
        count = max(1, -(-nbytes // piece))
        return [self._key(key, f"{token.hex()}:{i}") for i in range(count)]

    def _count(self, *names: str, by: int = 1) -> None:
        with self._lock:
            for name in names:
                setattr(self, name, getattr(self, name) + by)

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Errors of the client in our words, without the password that its URL may hold."""
        try:
            yield
        except redis.exceptions.OutOfMemoryError as error:
            raise _Full(f"Redis at {self._where} is full; raise its maxmemory") from error
        except (redis.exceptions.AuthenticationError, redis.exceptions.NoPermissionError) as error:
            self._count("_errors")
            raise Denied(
                f"Redis at {self._where} refuses the user or password ({error}); "
                "put the right ones in the URL: redis://user:password@host"
            ) from error
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            self._count("_errors")
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise Denied(
                    f"the certificate of Redis at {self._where} is not trusted ({error}); name who "
                    "vouches for it in the URL: rediss://host?ssl_ca_certs=/path/to/ca.pem"
                ) from error
            raise Unreachable(f"Redis at {self._where} does not answer: {error}") from error
        except redis.RedisError as error:
            self._count("_errors")
            raise StoreError(f"Redis at {self._where} says: {error}") from error


class _Full(StoreError):
    """The server has no room."""


class _RedisReservation(CountedReservation):
    """Pieces lie under names that only this write knows, and expire until they are committed."""

    def __init__(self, tier: RedisTier, key: bytes, nbytes: int, token: bytes) -> None:
        super().__init__(nbytes)
        self._tier, self._key, self._token = tier, key, token
        self._pieces = tier._pieces(key, token, nbytes, tier.piece)
        self._sent = 0
        self._waiting = bytearray(HEAD.pack(MAGIC, token, nbytes, tier.piece))
        tier._count("_writing")

    def _store(self, view: memoryview, at: int) -> None:
        while view:
            room = self._piece_length() - len(self._waiting)
            self._waiting += view[:room]
            view = view[room:]
            if len(self._waiting) == self._piece_length() and self._sent + 1 < len(self._pieces):
                self._send()

    def _publish(self) -> None:
        tier = self._tier
        self._send()
        names = [tier._key(self._key, "entry"), tier._key(self._key, "writing")]
        with tier._speaking():
            kept = tier._commit(keys=[*names, *self._pieces], args=[self._token, tier.ttl_ms])
        if not kept:
            raise StoreError("the write took too long or was evicted meanwhile; write it again")

    def _discard(self) -> None:
        names = [self._tier._key(self._key, "writing"), *self._pieces]
        with suppress(StoreError), self._tier._speaking():  # out of reach: all of it expires
            self._tier._abort(keys=names, args=[self._token])

    def _end(self) -> None:
        super()._end()
        self._waiting = bytearray()
        self._tier._count("_writing", by=-1)

    def _piece_length(self) -> int:
        return self._tier.piece + (HEAD.size if self._sent == 0 else 0)

    def _send(self) -> None:
        tier = self._tier
        with tier._speaking(), tier._client.pipeline(transaction=False) as pipe:
            pipe.set(self._pieces[self._sent], memoryview(self._waiting), px=tier.lease_ms)
            for name in (tier._key(self._key, "writing"), *self._pieces[: self._sent]):
                pipe.pexpire(name, tier.lease_ms)
            pipe.execute()
        self._sent += 1
        self._waiting = bytearray()


def _read_head(raw: Any) -> tuple[bytes, int, int] | None:
    """(token, bytes, bytes per piece) of an entry, or None for something else."""
    if len(raw) < HEAD.size:
        return None
    magic, token, nbytes, piece = HEAD.unpack_from(raw)
    return (token, nbytes, piece) if magic == MAGIC and piece > 0 else None
