"""The Store: entries by key on tiers, nearest first.

A put goes to the nearest tier and from there to the others; a get takes the first tier that has the
entry and brings it nearer. What goes wrong in a tier is a miss or a refused put, never an error of
the request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from recollect.errors import StoreError
from recollect.recipe import Composition
from recollect.store.admission import Admission
from recollect.store.background import Background, BackgroundThreads, Inline
from recollect.store.build import build_tiers
from recollect.store.events import Event, EventLog
from recollect.store.keys import chain, root
from recollect.store.loading import load_leading
from recollect.store.plan import StorePlan, store_plan
from recollect.store.tiers.base import Facts, Lease, Reservation, Tier, TierStat, check_key
from recollect.store.tiers.disk import DiskTier
from recollect.store.tiers.host import HostTier
from recollect.store.tiers.partial import PartialLease

if TYPE_CHECKING:
    from typing_extensions import Buffer

WAITING = 256 << 20  # bytes that may wait to be written behind
Verify = Callable[[memoryview], object]

# Their bytes come when they are touched: how long `get` took says nothing.
MAPPED = (HostTier, DiskTier)


@dataclass(frozen=True)
class StoreStats:
    """A store at one moment: its own counts, and its tiers, nearest first.

    `skipped` counts copies to other tiers that were not made because too much was waiting.
    """

    puts: int
    refused: int
    hits: int
    misses: int
    corrupt: int
    promoted: int
    errors: int
    skipped: int
    tiers: tuple[TierStat, ...]


class Store:
    """Entries by key, on memory, disk and what lies behind a network.

        store = Store("~/.cache/recollect", host="8GiB", disk="100GiB", remote="redis://localhost")
        keys = store.chunk_keys(fingerprint, tokens)
        store.put(keys[0], frame)
        with store.get(keys[0]) as lease: ...

    Args:
        path: folder of the disk tier; several processes may share it.
        host, disk: room in each of these tiers, e.g. ``"8GiB"``; None or 0 leaves it out.
        remote: URL of a Redis, Valkey or object store, a `Tier`, or several of these.
        namespace: whose entries these are; other namespaces share nothing.
        salt: a secret that enters every key, so that nobody without it can name an entry.
        recipe: of area ``store``, e.g. ``"lmcache + cachegen(level=2)"``; becomes `plan`: the chunk
            length, the codec of frames, and what else is not said here.
        replacement: policy of host and disk by name, see `recollect.core.replacement`; S3-FIFO if
            left out.
        quota: bytes this namespace may use in each of host and disk, or a mapping by namespace.
        encryption_key: for what leaves memory; see `recollect.store.tiers.encrypted`.
        chunk: tokens per chunk, instead of the recipe's.
        ttl: seconds an entry lives in host and disk.
        verify: called with the bytes of an entry that comes from below the host tier; raises
            StoreError (or returns False) where they are corrupt.
        background: who writes behind and promotes; threads of the store's own if left out.
        admission: what is worth loading and storing; measured costs if left out.
        log: a file to which every event is appended as a line of JSON.
        tiers: tiers of your own, nearest first, instead of those above.
        arguments: any other parameter of the recipe.

    Raises:
        StoreError: the configuration makes no sense, or the folder holds something else.
        RecipeError: unknown recipe or argument.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        host: int | str | None = "1GiB",
        disk: int | str | None = None,
        remote: str | Tier | Sequence[str | Tier] | None = None,
        namespace: str = "default",
        salt: str = "",
        recipe: str | Composition | StorePlan = "lmcache",
        replacement: str | None = None,
        quota: int | str | Mapping[str, int | str] | None = None,
        encryption_key: bytes | str | None = None,
        chunk: int | None = None,
        ttl: float | None = None,
        verify: Verify | None = None,
        background: Background | None = None,
        admission: Admission | None = None,
        log: str | Path | None = None,
        tiers: Sequence[Tier] | None = None,
        **arguments: Any,
    ) -> None:
        chosen = {"chunk": chunk, "replacement": replacement}
        arguments |= {name: value for name, value in chosen.items() if value is not None}
        self.plan = store_plan(recipe, **arguments)
        self.namespace = namespace
        self.chunk = self.plan.chunks.chunk
        self._salt = salt
        self._verify = verify
        self.admission = admission or Admission()
        self.clock = time.perf_counter  # what transfers are timed with
        self._log = EventLog(path=log)
        self._lock = threading.Lock()
        self._writing: set[bytes] = set()
        self._counts = dict.fromkeys(
            ("puts", "refused", "hits", "misses", "corrupt", "promoted", "errors", "skipped"), 0
        )
        self.tiers: tuple[Tier, ...] = tuple(tiers or ()) or build_tiers(
            path,
            host=host,
            disk=disk,
            remote=remote,
            namespace=namespace,
            replacement=self.plan.replacement.replacement,
            quota=quota,
            encryption_key=encryption_key,
            ttl=ttl,
            check=verify is None,
            holders=self.plan.redundancy.holders if self.plan.redundancy else None,
        )
        self._background = background or self._own_background()

    def put(
        self,
        key: bytes,
        data: Buffer | Sequence[Buffer],
        *,
        cost_seconds: float = 0.0,
        tokens: int = 0,
    ) -> bool:
        """Keep an entry. True: it will be readable. False: no tier has room, or all are down.

        Args:
            key: 32 bytes, see `chunk_keys`.
            data: the bytes, or parts of them in order.
            cost_seconds: what it took to compute; GDSF and admission weigh by it.
            tokens: how many tokens it stands for.

        An entry that is there already stays as it is.
        """
        whole = not isinstance(data, list | tuple)
        parts = [memoryview(part) for part in (cast("Sequence[Buffer]", [data] if whole else data))]
        nbytes = sum(part.nbytes for part in parts)
        reservation = self.reserve(key, nbytes, cost_seconds=cost_seconds, tokens=tokens)
        if reservation is None:
            return self.contains(key)
        try:
            with reservation:
                for part in parts:
                    reservation.write(part)
                reservation.commit()
        except StoreError as error:
            self._failed("", key, error)
            return False
        return True

    def reserve(
        self, key: bytes, nbytes: int, *, cost_seconds: float = 0.0, tokens: int = 0
    ) -> Reservation | None:
        """Room for an entry that is written piece by piece; readable after its `commit`.

        None: no tier has room, or the entry is there or being written already.
        """
        check_key(key)
        with self._lock:
            if key in self._writing:
                return None
            self._writing.add(key)
        facts = Facts(self.namespace, cost_seconds, tokens)
        for depth, tier in enumerate(self.tiers):
            try:
                reservation = tier.reserve(key, nbytes, facts)
            except StoreError as error:
                self._failed(tier.name, key, error)
                continue
            if reservation is not None:
                done = partial(self._stored, key, nbytes, facts, depth)
                return _Stored(reservation, done, partial(self._writing.discard, key))
            if self._has(tier, key):
                break
        else:
            self._note("refused", "refused", key, nbytes=nbytes)
        self._writing.discard(key)
        return None

    def get(self, key: bytes, *, whole: bool = True) -> Lease | None:
        """The entry from the nearest tier that has it, or None.

        With `whole` False it may be a `PartialLease`, whose bytes come when they are required.
        """
        for depth, tier in enumerate(self.tiers):
            lease = self._read(tier, key, whole)
            if lease is None:
                continue
            lease.tier = tier.name
            self._note("hits", "hit", key, tier.name, lease.nbytes)
            self.admission.observe_reuse(reused=1)
            if depth:
                facts, nearer = Facts(self.namespace), self.tiers[:depth]
                promote = partial(self._copy, key, facts=facts, tiers=nearer, event="promoted")
                if isinstance(lease, PartialLease):
                    lease.finished = promote
                else:
                    promote(lease.data)
            return lease
        self._note("misses", "miss", key)
        return None

    def contains(self, key: bytes) -> bool:
        """Whether any tier has the entry."""
        return any(self._has(tier, key) for tier in self.tiers)

    def longest(self, keys: Sequence[bytes]) -> int:
        """How many leading keys are present, on whatever tiers."""
        return len(self.locate(keys))

    def locate(self, keys: Sequence[bytes]) -> list[str]:
        """Names of the nearest tiers that have the leading keys, up to the first that none has."""
        found: list[str] = []
        asked_all = False
        while len(found) < len(keys) and not asked_all:
            asked_all = True
            for tier in self.tiers:
                with suppress(StoreError):
                    more = tier.leading(keys[len(found) :])
                    found += [tier.name] * more
                    asked_all = asked_all and not more
        return found

    def load(
        self,
        keys: Sequence[bytes],
        total: int,
        *,
        nbytes: int,
        chunk: int | None = None,
        whole: bool = True,
    ) -> list[Lease]:
        """Leases on the leading entries that are quicker to load than to compute.

        Args:
            keys: of the chunks of a prompt, in order.
            total: tokens of the prompt.
            nbytes: of one entry.
            chunk: tokens per entry; None takes the store's.
            whole: False for leases whose bytes may come when they are required, see `get`.
        """
        return load_leading(
            self, keys, total, nbytes=nbytes, chunk=chunk or self.chunk, whole=whole
        )

    def prefetch(self, keys: Sequence[bytes]) -> None:
        """Bring entries to the nearest tier, off the critical path."""
        for key in keys:
            if not self._has(self.tiers[0], key):
                self._submit(partial(self._fetch, key), 0)

    def set_aside(self, key: bytes) -> None:
        """An entry turned out to be corrupt: a miss from now on, on every tier, and counted."""
        self._note("corrupt", "corrupt", key)
        for tier in self.tiers:
            try:
                tier.set_aside(key)
            except StoreError as error:
                self._failed(tier.name, key, error)

    def delete(self, key: bytes) -> bool:
        """Forget an entry on every tier. False: it was on none."""
        gone = False
        for tier in self.tiers:
            try:
                gone |= tier.delete(key)
            except StoreError as error:
                self._failed(tier.name, key, error)
        if gone:
            self._log.add("deleted", key)
        return gone

    def chunk_keys(
        self, model: str, tokens: Sequence[int], chunk: int | None = None, *, scope: str = ""
    ) -> list[bytes]:
        """Keys of the full chunks of a prompt; each covers all tokens before it.

        Args:
            model: fingerprint of the model, and of whatever else the bytes depend on.
            tokens: token ids (T,).
            chunk: tokens per chunk; None takes the store's.
            scope: what only requests of the same scope may share (a tenant's cache salt).
        """
        chunk = chunk or self.chunk
        parent = root(model, namespace=self.namespace, salt=self._salt, chunk=chunk)
        return chain(parent, tokens, chunk, [("scope", scope)] if scope else ())

    def flush(self) -> None:
        """Wait until write-behind and promotions are done."""
        self._background.flush()

    def close(self) -> None:
        """Flush and let go of everything. Idempotent."""
        self._background.close()
        for tier in self.tiers:
            with suppress(StoreError):
                tier.close()
        self._log.close()

    def stats(self) -> StoreStats:
        """Counts and sizes now."""
        with self._lock:
            counts = dict(self._counts)
        return StoreStats(**counts, tiers=tuple(self._stat(tier) for tier in self.tiers))

    def metrics(self) -> str:
        """Counts, sizes and measured costs in Prometheus' text format."""
        from recollect.store.metrics import metrics_text

        return metrics_text(self)

    def events(self) -> Iterator[Event]:
        """The last events, oldest first."""
        return iter(self._log)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _own_background(self) -> Background:
        """Threads where there is something to copy; what waits for them pins the nearest tier."""
        if len(self.tiers) == 1:
            return Inline()
        room = self._stat(self.tiers[0]).capacity
        return BackgroundThreads(nbytes=min(WAITING, room // 2) if room else WAITING)

    def _stored(self, key: bytes, nbytes: int, facts: Facts, depth: int) -> None:
        """An entry was committed on one tier: the ones below get a copy."""
        self._note("puts", "put", key, self.tiers[depth].name, nbytes)
        self.admission.observe_reuse(stored=1)
        below = self.tiers[depth + 1 :]
        lease = self.tiers[depth].peek(key) if below else None
        if lease is not None:
            self._copy(key, lease.data, facts, below, "")

    def _copy(
        self, key: bytes, data: memoryview, facts: Facts, tiers: Sequence[Tier], event: str
    ) -> None:
        """Put the entry on other tiers soon. `data` keeps it where it is until then."""

        def work() -> None:
            for tier in tiers:
                if not event and not self.admission.stores(tier.name, data.nbytes, facts.tokens):
                    continue
                began = self.clock()
                try:
                    kept = tier.put(key, data, facts)
                    if kept and event:
                        self._note(event, event, key, tier.name, data.nbytes)
                    if kept:
                        seconds = self.clock() - began
                        self.admission.observe_write(tier.name, data.nbytes, seconds)
                except StoreError as error:
                    self._failed(tier.name, key, error)

        self._submit(work, data.nbytes)

    def _fetch(self, key: bytes) -> None:
        for depth, tier in enumerate(self.tiers[1:], start=1):
            lease = self._read(tier, key)
            if lease is not None:
                with suppress(StoreError):
                    for nearer in self.tiers[:depth]:
                        nearer.put(key, lease.data, Facts(self.namespace))
                return

    def _submit(self, work: Callable[[], None], nbytes: int) -> None:
        if not self._background.submit(work, nbytes):
            with self._lock:
                self._counts["skipped"] += 1

    def _read(self, tier: Tier, key: bytes, whole: bool = True) -> Lease | None:
        """An entry of one tier; one that fails its check is set aside."""
        began = self.clock()
        try:
            lease = tier.get(key) if whole or self._verify is not None else tier.open(key)
        except StoreError as error:
            self._failed(tier.name, key, error)
            return None
        if isinstance(lease, PartialLease):
            lease.observe = partial(self.admission.observe_read, tier.name)
        elif lease is not None and not isinstance(tier, MAPPED):
            self.admission.observe_read(tier.name, lease.nbytes, self.clock() - began)
        if lease is None or tier is self.tiers[0] or self._verify is None:
            return lease
        try:
            if self._verify(lease.data) is not False:
                return lease
            raise StoreError("the entry fails its check")
        except StoreError as error:
            self._note("corrupt", "corrupt", key, tier.name, lease.nbytes, str(error))
            with suppress(StoreError):
                tier.set_aside(key)
        return None

    def _has(self, tier: Tier, key: bytes) -> bool:
        try:
            return tier.contains(key)
        except StoreError as error:
            self._failed(tier.name, key, error)
            return False

    def _stat(self, tier: Tier) -> TierStat:
        try:
            return tier.stat()
        except StoreError:
            return TierStat(tier.name, errors=1)

    def _failed(self, tier: str, key: bytes, error: StoreError) -> None:
        self._note("errors", "error", key, tier, detail=str(error))

    def _note(
        self, count: str, kind: str, key: bytes, tier: str = "", nbytes: int = 0, detail: str = ""
    ) -> None:
        with self._lock:
            self._counts[count] += 1
        self._log.add(kind, key, tier, nbytes, detail)


class _Stored(Reservation):
    """A tier's reservation that tells the store of its commit, and of its end."""

    def __init__(
        self, inner: Reservation, done: Callable[[], None], ended: Callable[[], None]
    ) -> None:
        self._inner, self._done = inner, done
        self._ended: Callable[[], None] | None = ended

    def write(self, data: Buffer) -> None:
        self._inner.write(data)

    def commit(self) -> None:
        self._inner.commit()
        self._end()
        self._done()

    def abort(self) -> None:
        self._inner.abort()
        self._end()

    def __del__(self) -> None:
        self._end()

    def _end(self) -> None:
        if self._ended is not None:
            self._ended()
            self._ended = None  # the key may be another writer's from now on
