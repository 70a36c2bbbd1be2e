"""The Store: entries by key on tiers, nearest first.

A put goes to the nearest tier and from there to the others; a get takes the first tier that has the
entry and brings it nearer. What goes wrong in a tier is a miss or a refused put, never an error of
the request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, cast

from recollect.errors import StoreError
from recollect.recipe import Composition
from recollect.store.build import build_tiers
from recollect.store.events import Event, EventLog
from recollect.store.keys import chain, root
from recollect.store.plan import StorePlan, store_plan
from recollect.store.tiers.base import Facts, Lease, Reservation, Tier, TierStat

if TYPE_CHECKING:
    from typing_extensions import Buffer

Verify = Callable[[memoryview], object]


class Background(Protocol):
    """Who does work off the critical path."""

    def submit(self, work: Callable[[], None], nbytes: int) -> bool:
        """Do it soon, in the order of submission. False: too much is waiting; it will not be done.

        `nbytes` is what the work keeps in memory until it is done.
        """

    def flush(self) -> None:
        """Wait until everything submitted is done."""

    def close(self) -> None:
        """Flush, and stop. Idempotent."""


class Inline:
    """Does the work at once, in the caller's time."""

    def submit(self, work: Callable[[], None], nbytes: int) -> bool:
        work()
        return True

    def flush(self) -> None: ...

    def close(self) -> None: ...


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
        background: who writes behind and promotes.
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
        log: str | Path | None = None,
        tiers: Sequence[Tier] | None = None,
        **arguments: Any,
    ) -> None:
        chosen = {"chunk": chunk, "replacement": replacement}
        arguments |= {name: value for name, value in chosen.items() if value is not None}
        self.plan = store_plan(recipe, **arguments)
        if self.plan.redundancy is not None and not tiers:
            raise StoreError("redundancy needs a redundant tier: pass tiers=[...]")
        self.namespace = namespace
        self.chunk = self.plan.chunks.chunk
        self._salt = salt
        self._verify = verify
        self._background = background or Inline()
        self._log = EventLog(path=log)
        self._lock = threading.Lock()
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
        )

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
        facts = Facts(self.namespace, cost_seconds, tokens)
        for depth, tier in enumerate(self.tiers):
            try:
                reservation = tier.reserve(key, nbytes, facts)
            except StoreError as error:
                self._failed(tier.name, key, error)
                continue
            if reservation is not None:
                done = partial(self._stored, key, nbytes, facts, depth)
                return _Stored(reservation, done)
            if self._has(tier, key):
                return None
        self._note("refused", "refused", key, nbytes=nbytes)
        return None

    def get(self, key: bytes) -> Lease | None:
        """The entry from the nearest tier that has it, or None."""
        for depth, tier in enumerate(self.tiers):
            lease = self._read(tier, key)
            if lease is None:
                continue
            self._note("hits", "hit", key, tier.name, lease.nbytes)
            if depth:
                self._copy(key, lease.data, Facts(self.namespace), self.tiers[:depth], "promoted")
            return lease
        self._note("misses", "miss", key)
        return None

    def contains(self, key: bytes) -> bool:
        """Whether any tier has the entry."""
        return any(self._has(tier, key) for tier in self.tiers)

    def longest(self, keys: Sequence[bytes]) -> int:
        """How many leading keys are present, on whatever tiers."""
        found, asked_all = 0, False
        while found < len(keys) and not asked_all:
            asked_all = True
            for tier in self.tiers:
                with suppress(StoreError):
                    more = tier.leading(keys[found:])
                    found += more
                    asked_all = asked_all and not more
        return found

    def prefetch(self, keys: Sequence[bytes]) -> None:
        """Bring entries to the nearest tier, off the critical path."""
        for key in keys:
            if not self._has(self.tiers[0], key):
                self._submit(partial(self._fetch, key), 0)

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

    def _stored(self, key: bytes, nbytes: int, facts: Facts, depth: int) -> None:
        """An entry was committed on one tier: the ones below get a copy."""
        self._note("puts", "put", key, self.tiers[depth].name, nbytes)
        below = self.tiers[depth + 1 :]
        lease = self._read(self.tiers[depth], key, check=False) if below else None
        if lease is not None:
            self._copy(key, lease.data, facts, below, "")

    def _copy(
        self, key: bytes, data: memoryview, facts: Facts, tiers: Sequence[Tier], event: str
    ) -> None:
        """Put the entry on other tiers soon. `data` keeps it where it is until then."""

        def work() -> None:
            for tier in tiers:
                try:
                    if tier.put(key, data, facts) and event:
                        self._note(event, event, key, tier.name, data.nbytes)
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

    def _read(self, tier: Tier, key: bytes, check: bool = True) -> Lease | None:
        """An entry of one tier; one that fails its check is set aside."""
        try:
            lease = tier.get(key)
        except StoreError as error:
            self._failed(tier.name, key, error)
            return None
        if lease is None or tier is self.tiers[0] or self._verify is None or not check:
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
    """A tier's reservation that tells the store of its commit."""

    def __init__(self, inner: Reservation, done: Callable[[], None]) -> None:
        self._inner, self._done = inner, done

    def write(self, data: Buffer) -> None:
        self._inner.write(data)

    def commit(self) -> None:
        self._inner.commit()
        self._done()

    def abort(self) -> None:
        self._inner.abort()
