"""A folder of entries: one immutable file each, and a journal that says which of them count.

An entry is written aside, moved into place, and exists from the moment its record is in the
journal; killed at any point before, it never existed. Several processes may share a folder. Reads
are memory-mapped: an entry that is deleted stays readable for whoever has it.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recollect.errors import StoreError
from recollect.store.holdings import Claim, ClaimedReservation, Holdings
from recollect.store.index import MISSING
from recollect.store.tiers.base import (
    KEY_BYTES,
    NO_FACTS,
    Facts,
    Lease,
    Reservation,
    Tier,
    TierStat,
)
from recollect.store.tiers.journal import (
    DELETE,
    NAMESPACE,
    PUT,
    Journal,
    last_of_each,
    name_of,
    record,
)
from recollect.store.tiers.mapping import checksum, mapped, new_checksum

OWN = ("journal", "journal.new", "lock", "entries", "writing", "quarantine")
BULK = 64  # journal records from which on they are taken in together
QUARANTINE = 64  # corrupt entries kept for inspection
COMPACT_FROM, COMPACT_AT = 10_000, 4  # journal records: at least, and per entry
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Entry:
    """What the journal says of an entry; `time` is when it was put, in seconds since 1970."""

    key: bytes
    namespace: str
    nbytes: int
    tokens: int
    cost_seconds: float
    time: float


@dataclass(frozen=True)
class Swept:
    """What `DiskTier.sweep` removed: files of their bytes, and records that had lost theirs."""

    files: int
    lost: int
    nbytes: int


class DiskTier(Tier):
    """Entries in a folder that processes of one machine may share.

    Args:
        folder: made if it is missing.
        capacity: bytes of entries, of all processes together.
        check: compare each entry's checksum when it is read.
        sync: wait for the medium at every commit, so that an entry survives a power cut too. A
            killed process loses nothing either way, and what a power cut tears fails its check.
        replacement, quotas, ttl, clock: see `Holdings`. Each process follows the uses it sees.
        wall: seconds since 1970. It may jump: an entry from the future counts as new.

    Raises:
        StoreError: the folder cannot be used, holds something else, or is of a newer version.
    """

    def __init__(
        self,
        folder: str | Path,
        capacity: int,
        *,
        replacement: str = "s3fifo",
        quotas: Mapping[str, int] | None = None,
        ttl: float | None = None,
        check: bool = True,
        sync: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        name: str = "disk",
    ) -> None:
        self.name = name
        self.folder = Path(folder).expanduser()
        self._entries = str(self.folder / "entries")
        self._check, self._sync, self._wall = check, sync, wall
        self._books = Holdings(
            name,
            capacity,
            replacement=replacement,
            quotas=quotas,
            ttl=ttl,
            clock=clock,
            leaving=self._erase,
        )
        self._checksum = self._books.index.column("Q")
        self._names: dict[int, str] = {}  # namespaces by their number in the journal
        try:
            self._prepare()
            self._journal = Journal(self.folder)
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"cannot use {self.folder} as a store: {error}") from error
        self._remove_abandoned()
        with self._books.lock, self._speaking():
            self._refresh()
            while self._books.used > capacity and self._books.evict():
                pass

    def reserve(self, key: bytes, nbytes: int, facts: Facts = NO_FACTS) -> Reservation | None:
        if len(facts.namespace.encode()) > KEY_BYTES:
            raise StoreError(f"the namespace '{facts.namespace}' is longer than {KEY_BYTES} bytes")
        with self._books.lock, self._speaking():
            self._refresh()
            claim = self._books.claim(key, nbytes, facts)
        if claim is None:
            return None
        try:
            return _DiskReservation(self, claim, facts)
        except OSError as error:
            with self._books.lock:
                self._books.cancel(claim)
                if error.errno in NO_ROOM:
                    self._books.refused += 1
                    return None
                self._books.errors += 1
            raise StoreError(f"cannot write to {self.folder}: {error}") from error

    def get(self, key: bytes) -> Lease | None:
        books = self._books
        with books.lock, self._speaking():
            self._refresh()
            slot = books.find(key)
            found = None if slot == MISSING else self._map(slot)
            if found is None:
                books.misses += 1
                return None
            expected = self._checksum[slot]
            books.touch(slot)
            lease = Lease(found, books.pin(slot))
        if self._check and checksum(found) != expected:
            self.set_aside(key)
            return None
        return lease

    def contains(self, key: bytes) -> bool:
        with self._books.lock, self._speaking():
            self._refresh()
            return self._books.find(key) != MISSING

    def delete(self, key: bytes) -> bool:
        return self._take_out(key, self._erase)

    def set_aside(self, key: bytes) -> None:
        with self._books.lock:
            self._books.corrupt += self._take_out(key, self._quarantine)

    def keys(self) -> Iterator[bytes]:
        index = self._books.index
        with self._books.lock, self._speaking():
            self._refresh()
            found = [index.key(slot) for slot in index.slots()]
        return iter(found)

    def stat(self) -> TierStat:
        with self._books.lock, self._speaking():
            self._refresh()
            return self._books.stat()

    def close(self) -> None:
        with self._books.lock:
            self._journal.close()

    def entries(self) -> list[Entry]:
        """What the journal says of each entry, the oldest first."""
        with self._books.lock, self._speaking(), self._journal.locked():
            self._refresh()
            final = last_of_each(self._journal.read_all())
        return [
            Entry(
                key=bytes(key),
                namespace=self._names.get(number, ""),
                nbytes=nbytes,
                tokens=tokens,
                cost_seconds=cost,
                time=when,
            )
            for kind, _, number, tokens, nbytes, when, cost, _, key, _ in map(np.void.item, final)
            if kind == PUT
        ]

    def sweep(self) -> Swept:
        """Remove what no entry needs: files of killed writers, what was set aside, records without
        a file; and rewrite the journal without them."""
        with self._books.lock, self._speaking(), self._journal.locked():
            self._refresh()
            index = self._books.index
            known = {index.key(slot).hex(): slot for slot in index.slots()}
            there = {path.name: path for path in Path(self._entries).glob("*/*")}
            useless = [path for name, path in there.items() if name not in known]
            useless += (self.folder / "quarantine").iterdir()
            nbytes = sum(path.stat().st_size for path in useless)
            for path in useless:
                path.unlink()
            abandoned = self._remove_abandoned()
            lost = [slot for name, slot in known.items() if name not in there]
            for slot in lost:
                self._erase(slot)
                self._books.remove(slot)
            self._compact()
        return Swept(len(useless) + abandoned, len(lost), nbytes)

    def path_of(self, key: bytes) -> str:
        """The file with the bytes of an entry."""
        name = key.hex()
        return f"{self._entries}/{name[:2]}/{name}"

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        foreign = next((name for name in os.listdir(self.folder) if name not in OWN), None)
        if foreign is not None and not (self.folder / "journal").exists():
            raise StoreError(
                f"{self.folder} holds other things ('{foreign}'); choose an empty folder"
            )
        for name in ("entries", "writing", "quarantine"):
            (self.folder / name).mkdir(exist_ok=True)

    def _remove_abandoned(self) -> int:
        """Delete what killed writers left: how many. One that lives has a lock on its file."""
        removed = 0
        for path in (self.folder / "writing").iterdir():
            with suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                removed += 1
        return removed

    def _refresh(self) -> None:
        """Take in what other processes wrote to the journal."""
        anew, found = self._journal.read()
        for named in found[found["kind"] == NAMESPACE] if len(found) else ():
            self._names[int(named["namespace"])] = name_of(named)
        if anew or len(found) > BULK:
            self._apply_many(last_of_each(found), anew)
        else:
            for change in found:
                self._apply(change)

    def _apply(self, change: np.void) -> None:
        """One put or delete of another process."""
        kind, _, number, _, nbytes, when, cost, checksum, key, _ = change.item()
        slot = self._books.index.find(bytes(key))
        if kind == DELETE and slot != MISSING:
            self._books.remove(slot)
        elif kind == PUT and slot == MISSING:
            age, namespace = max(self._wall() - when, 0.0), self._names.get(number, "")
            slot = self._books.adopt_one(bytes(key), nbytes, age, cost, namespace)
            self._checksum[slot] = checksum

    def _apply_many(self, final: np.ndarray, anew: bool) -> None:
        """The last change of each key; `anew`: what is not among them is gone."""
        books = self._books
        if len(books.index):
            slots = np.array([books.index.find(key.tobytes()) for key in final["key"]], np.int64)
        else:
            slots = np.full(len(final), MISSING, np.int64)
        if anew:
            gone = set(books.index.slots()) - set(slots[final["kind"] == PUT].tolist())
        else:
            gone = set(slots[final["kind"] == DELETE].tolist()) - {MISSING}
        same = np.frombuffer(self._checksum, np.uint64)[slots] if len(self._checksum) else slots
        changed = (final["kind"] == PUT) & (slots != MISSING) & (same != final["checksum"])
        for slot in gone | set(slots[changed].tolist()):
            books.remove(slot)
        new = final[(final["kind"] == PUT) & ((slots == MISSING) | changed)]
        ages = np.maximum(self._wall() - new["time"], 0.0)
        names = [self._names.get(number, "") for number in new["namespace"].tolist()]
        made = books.adopt(new["key"], new["nbytes"], ages, new["cost"], names)
        np.frombuffer(self._checksum, np.uint64)[made] = new["checksum"]

    def _map(self, slot: int) -> mmap.mmap | bytes | None:
        """The bytes of an entry; None when its file is gone or has another length."""
        expected = self._books.nbytes[slot]
        try:
            with open(self.path_of(self._books.index.key(slot)), "rb") as file:
                if os.fstat(file.fileno()).st_size == expected:
                    return mapped(file.fileno(), expected)
        except FileNotFoundError:  # deleted by another process just now, or by hand
            self._books.remove(slot)
            return None
        self._quarantine(slot)
        self._books.remove(slot)
        self._books.corrupt += 1
        return None

    def _take_out(self, key: bytes, how: Callable[[int], None]) -> bool:
        with self._books.lock, self._speaking():
            self._refresh()
            slot = self._books.find(key)
            if slot == MISSING:
                return False
            how(slot)
            self._books.remove(slot)
            return True

    def _erase(self, slot: int) -> None:
        """Strike an entry out of the journal, and delete its file."""
        with self._struck_out(slot) as path:
            os.unlink(path)

    def _quarantine(self, slot: int) -> None:
        """Strike an entry out of the journal, and keep its file for inspection."""
        aside = self.folder / "quarantine"
        with self._struck_out(slot) as path:
            os.replace(path, aside / f"{os.path.basename(path)}.{time.time_ns()}")
            oldest_first = sorted(aside.iterdir(), key=lambda path: path.suffix)
            for old in oldest_first[:-QUARANTINE]:
                old.unlink()

    @contextmanager
    def _struck_out(self, slot: int) -> Iterator[str]:
        """Nothing here fails: a disk without room for the record still has its file deleted."""
        key = self._books.index.key(slot)
        with suppress(OSError), self._journal.locked():
            with suppress(OSError):
                self._journal.append(record(DELETE, key))
            with suppress(OSError):
                yield self.path_of(key)
            if self._journal.length > COMPACT_FROM + COMPACT_AT * len(self._books.index):
                self._compact()

    def _compact(self) -> None:
        """Rewrite the journal without what was deleted."""
        with self._journal.locked():
            everything = self._journal.read_all()
            final = last_of_each(everything)
            names = everything[everything["kind"] == NAMESPACE]
            self._journal.replace(np.concatenate([names, final[final["kind"] == PUT]]))

    def _number(self, namespace: str) -> int:
        """The number of a namespace in the journal; the journal's lock must be held."""
        for number, name in self._names.items():
            if name == namespace:
                return number
        number = max(self._names, default=0) + 1
        self._journal.append(record(NAMESPACE, namespace.encode(), namespace=number))
        self._names[number] = namespace
        return number

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Errors of the system in our words."""
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            self._books.errors += 1
            raise StoreError(f"the store at {self.folder} fails: {error}") from error


class _DiskReservation(ClaimedReservation):
    """Bytes go to a file of their own in `writing`; a lock on it says that its writer lives."""

    def __init__(self, tier: DiskTier, claim: Claim, facts: Facts) -> None:
        super().__init__(tier._books, claim)
        self._tier, self._facts = tier, facts
        self._digest = new_checksum()
        self._path = f"{tier.folder}/writing/{uuid.uuid4().hex}"
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if claim.nbytes:
                os.posix_fallocate(self._file, 0, claim.nbytes)  # a full disk says so now
        except OSError:
            self._remove_file()
            self._ended = True
            raise

    def _store(self, view: memoryview, at: int) -> None:
        try:
            while view:
                written = os.pwrite(self._file, view, at)
                self._digest.update(view[:written])
                view, at = view[written:], at + written
        except OSError as error:
            self.abort()
            raise StoreError(f"cannot write to {self._tier.folder}: {error}") from error

    def _publish(self) -> None:
        tier, books, claim = self._tier, self._books, self._claim
        with books.lock, tier._journal.locked(), tier._speaking():
            if tier._sync:
                os.fdatasync(self._file)
            tier._refresh()
            if books.find(claim.key) != MISSING:  # another process was faster
                self._discard()
                return
            while books.used > books.capacity and books.evict():
                pass
            path = tier.path_of(claim.key)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.replace(self._path, path)
            try:
                self._append_record()
            except OSError:
                os.unlink(path)
                raise
            tier._checksum[books.admit(claim)] = self._digest.intdigest()
        os.close(self._file)

    def _append_record(self) -> None:
        entry = record(
            PUT,
            self._claim.key,
            namespace=self._tier._number(self._facts.namespace),
            tokens=self._facts.tokens,
            nbytes=self._claim.nbytes,
            time=self._tier._wall(),
            cost=self._facts.cost_seconds,
            checksum=self._digest.intdigest(),
        )
        self._tier._journal.append(entry)

    def _discard(self) -> None:
        self._books.cancel(self._claim)
        self._remove_file()

    def _remove_file(self) -> None:
        with suppress(OSError):
            os.unlink(self._path)
        with suppress(OSError):
            os.close(self._file)
