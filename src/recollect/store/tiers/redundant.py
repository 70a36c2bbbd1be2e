"""One tier out of n, any one of which may be lost: REFT's parity over host memory.

An entry is cut into n - 1 slices; the members keep one each and one keeps their XOR, which of them
rotates from entry to entry. A lost or damaged shard is rebuilt from the others and put back. Two
lost shards are a miss. REFT (Wang et al. 2023, arXiv 2310.12670) protects training snapshots so.
"""

from __future__ import annotations

import os
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from recollect.core.parity import bounds, parity_holder, rebuild, slice_length, xor_into
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
from recollect.store.tiers.disk import DiskTier
from recollect.store.tiers.reservation import CountedReservation

if TYPE_CHECKING:
    from typing_extensions import Buffer

HEAD = struct.Struct("<4sBBxxQQ8s32s")  # magic, slice, members, version, bytes, writer, key
MAGIC = b"RCP1"
DIGEST_BYTES = 16
OVERHEAD = HEAD.size + DIGEST_BYTES
OTHER_SLOT = bytes([0x5A]) * 32
MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class _Version:
    """One write of an entry: shards of different writes never mix."""

    number: int
    nbytes: int
    writer: bytes


class RedundantTier(Tier):
    """Entries over `members`, in this order ever after; at most one of them may fail.

    A key may be written anew with ``reserve(…, replace=True)``: the new version goes to a second
    slot, and the previous one stays readable until all of the new one is. A writer that dies
    leaves a torn version behind, which nobody reads and the next write removes.

    Overhead: ``1 / (n - 1)`` of the bytes, and `OVERHEAD` per shard.

    Args:
        members: 2 to 255 tiers: memory of several processes or machines, not of one.
    """

    def __init__(self, members: Sequence[Tier], *, name: str = "redundant") -> None:
        if not 2 <= len(members) <= 255:
            raise StoreError(f"parity needs 2 to 255 members, not {len(members)}")
        self.name = name
        self.members = tuple(members)
        self._lock = threading.RLock()  # leases may end, and count, in a garbage collection
        self._counts: Counter[str] = Counter()

    def reserve(
        self, key: bytes, nbytes: int, facts: Facts = NO_FACTS, *, replace: bool = False
    ) -> Reservation | None:
        """As for any tier; with `replace` also where there is an entry already.

        One member that does not answer is done without. Raises StoreError where two do not.
        """
        check_key(key)
        present = [self._complete(slot) for slot in _slots(key)]
        if any(present) and not replace:
            return None
        old = self._newest(key) if any(present) else None
        slot = _slots(key)[0 if old is None or old[0] == _slots(key)[1] else 1]
        if all(present):
            self._drop(slot)  # a writer died before it removed the previous version
        version = _Version(1 + (old[1].number if old else 0), nbytes, os.urandom(8))
        reservation = _ParityReservation(self, key, slot, version, old[0] if old else None)
        return reservation if reservation.begin(facts) else None

    def get(self, key: bytes) -> Lease | None:
        """The newest whole version. Raises StoreError where two members do not answer."""
        check_key(key)
        newest = self._newest(key)
        if newest is None:
            self._count("misses")
            return None
        slot, version, shards = newest
        whole = self._join(key, slot, version, shards)
        self._count("hits", "leases")
        return Lease(whole.data, lambda: self._count("leases", by=-1))

    def contains(self, key: bytes) -> bool:
        return any(self._complete(slot) for slot in _slots(key))

    def delete(self, key: bytes) -> bool:
        present = self.contains(key)
        for slot in _slots(key):
            self._drop(slot)
        return present

    def keys(self) -> Iterator[bytes]:
        """The keys of whole entries. Reads a shard of each: their names do not tell the slot."""
        held: Counter[bytes] = Counter()
        for member in self.members:
            with suppress(StoreError):
                held.update(member.keys())
        found: set[bytes] = set()
        for raw, count in held.items():
            if count < len(self.members) - 1:
                continue
            key = self._true_key(raw)
            if key is not None and key not in found:
                found.add(key)
                yield key

    def stat(self) -> TierStat:
        """Sums over the members; bytes and capacity are theirs without parity, to a byte or so."""
        stats = []
        for member in self.members:
            with suppress(StoreError):
                stats.append(member.stat())
        entries = max((stat.entries for stat in stats), default=0)
        occupied = sum(stat.bytes - OVERHEAD * stat.entries for stat in stats)
        share = (len(stats) - 1) / len(stats) if stats else 0
        limited = all(stat.capacity for stat in stats)
        return TierStat(
            self.name,
            entries=entries,
            bytes=round(occupied * share),
            capacity=round(sum(stat.capacity for stat in stats) * share) if limited else 0,
            hits=self._counts["hits"],
            misses=self._counts["misses"],
            evictions=max((stat.evictions for stat in stats), default=0),
            errors=self._counts["errors"] + sum(stat.errors for stat in stats),
            corrupt=self._counts["corrupt"] + sum(stat.corrupt for stat in stats),
            refused=self._counts["refused"],
            leases=self._counts["leases"],
            writing=self._counts["writing"],
        )

    @property
    def rebuilt(self) -> int:
        """Reads that needed a shard to be rebuilt."""
        return self._counts["rebuilt"]

    def close(self) -> None:
        for member in self.members:
            member.close()

    # -- shards ----------------------------------------------------------------------------------

    def holder(self, key: bytes, index: int) -> int:
        """Which member keeps slice `index` of an entry; the last index is the parity's."""
        count = len(self.members)
        return (parity_holder(key, count) + 1 + index) % count

    def _complete(self, slot: bytes) -> bool:
        """Whether all members but one have something in this slot."""
        absent = 0
        for member in self.members:
            try:
                absent += not member.contains(slot)
            except StoreError:
                absent += 1
            if absent > 1:
                return False
        return True

    def _newest(self, key: bytes) -> tuple[bytes, _Version, dict[int, memoryview]] | None:
        """(slot, version, shards by index) of the newest version of which one shard lacks at most.

        Raises StoreError where so many members failed that a whole version may be out of reach.
        """
        best, most = None, 0
        for slot in _slots(key):
            if slot != key and not self._complete(slot):
                continue
            shards, failures = self._read(key, slot)
            most = max(most, failures)
            for version, of_version in shards.items():
                whole = len(of_version) >= len(self.members) - 1
                if whole and (best is None or version.number > best[1].number):
                    best = slot, version, of_version
        if best is None and most > 1:
            raise StoreError(f"{most} of {len(self.members)} members of '{self.name}' failed")
        return best

    def _read(self, key: bytes, slot: bytes) -> tuple[dict[_Version, dict[int, memoryview]], int]:
        """Sound shards of a slot, by version and index; how many members failed to answer."""
        found: dict[_Version, dict[int, memoryview]] = {}
        failures = 0
        for index in range(len(self.members)):
            complete = len(found) == 1 and index == len(self.members) - 1
            if complete and len(next(iter(found.values()))) == index:
                break  # all data slices are there: the parity is not needed
            member = self.members[self.holder(key, index)]
            try:
                lease = member.get(slot)
            except StoreError:
                failures += 1
                self._count("errors")
                continue
            if lease is None:
                continue
            version = self._check(key, index, lease.data)
            if version is None:
                self._count("corrupt")
                with suppress(StoreError):
                    member.set_aside(slot)
                continue
            # The view keeps the bytes in place for as long as it is used.
            found.setdefault(version, {})[index] = lease.data[HEAD.size : -DIGEST_BYTES]
        return found, failures

    def _check(self, key: bytes, index: int, data: memoryview) -> _Version | None:
        """The version a shard belongs to, or None if it is not sound or not in its place."""
        if len(data) < OVERHEAD:
            return None
        if xxhash.xxh3_128_digest(data[:-DIGEST_BYTES]) != bytes(data[-DIGEST_BYTES:]):
            return None
        magic, at, members, number, nbytes, writer, name = HEAD.unpack_from(data)
        expected = (MAGIC, index, len(self.members), key)
        if (magic, at, members, name) != expected:
            return None
        version = _Version(number, nbytes, writer)
        return version if len(data) == OVERHEAD + self._length(index, nbytes) else None

    def _length(self, index: int, nbytes: int) -> int:
        """Bytes of slice `index` of an entry of `nbytes`."""
        slices = len(self.members) - 1
        if index == slices:
            return slice_length(nbytes, slices)
        first, end = bounds(nbytes, slices)[index]
        return end - first

    def _join(
        self, key: bytes, slot: bytes, version: _Version, shards: dict[int, memoryview]
    ) -> np.ndarray:
        """The whole entry; a slice that lacks is rebuilt, and put back where it belongs."""
        slices = len(self.members) - 1
        whole = np.empty(version.nbytes, np.uint8)
        places = bounds(version.nbytes, slices)
        for index, data in shards.items():
            if index < slices:
                whole[slice(*places[index])] = np.frombuffer(data, np.uint8)
        missing = next((i for i in range(slices) if i not in shards), None)
        if missing is not None:
            length = slice_length(version.nbytes, slices)
            lost = rebuild(list(shards.values()), length, self._length(missing, version.nbytes))
            whole[slice(*places[missing])] = lost
            self._count("rebuilt")
            self._put_back(key, slot, version, missing, lost)
        return whole

    def _put_back(
        self, key: bytes, slot: bytes, version: _Version, index: int, data: np.ndarray
    ) -> None:
        head = _head(key, version, index, len(self.members))
        digest = xxhash.xxh3_128(head)
        digest.update(data.data)
        with suppress(StoreError):
            member = self.members[self.holder(key, index)]
            member.put(slot, head + data.tobytes() + digest.digest())

    def _true_key(self, raw: bytes) -> bytes | None:
        for member in self.members:
            with suppress(StoreError):
                lease = member.get(raw)
                if lease is not None:
                    with lease:
                        if len(lease.data) >= OVERHEAD:
                            return bytes(HEAD.unpack_from(lease.data)[-1])
        return None

    def _drop(self, slot: bytes) -> None:
        for member in self.members:
            with suppress(StoreError):
                member.delete(slot)

    def _count(self, *names: str, by: int = 1) -> None:
        with self._lock:
            for name in names:
                self._counts[name] += by


class _ParityReservation(CountedReservation):
    """Writes slices as they come and the parity at the end; done without one member if it fails."""

    def __init__(
        self, tier: RedundantTier, key: bytes, slot: bytes, version: _Version, old: bytes | None
    ) -> None:
        super().__init__(version.nbytes)
        self._tier, self._key, self._slot, self._version = tier, key, slot, version
        self._old = old
        self._slices = len(tier.members) - 1
        self._places = bounds(version.nbytes, self._slices)
        self._parity = np.zeros(slice_length(version.nbytes, self._slices), np.uint8)
        self._shards: dict[int, Reservation] = {}
        self._digests: dict[int, Any] = {}
        self._failures = 0
        tier._count("writing")

    def begin(self, facts: Facts) -> bool:
        """Reserve on the members. False: no room, or somebody else is writing.

        The parity's holder comes first and is committed last: who has it knows that nobody else is
        in the middle of a commit, and that shards found elsewhere are what a torn write left.
        """
        for index in reversed(range(self._slices + 1)):
            try:
                shard = self._reserve_shard(index, facts)
            except StoreError as error:
                self._lost(index, error)
                continue
            if shard is None:
                self._tier._count("refused")
                self.abort()
                return False
            self._shards[index] = shard
            self._digests[index] = xxhash.xxh3_128()
            self._send(index, _head(self._key, self._version, index, self._slices + 1))
        return True

    def _reserve_shard(self, index: int, facts: Facts) -> Reservation | None:
        tier = self._tier
        member = tier.members[tier.holder(self._key, index)]
        nbytes = OVERHEAD + tier._length(index, self._version.nbytes)
        shard = member.reserve(self._slot, nbytes, facts)
        if shard is None and member.contains(self._slot) and not tier._complete(self._slot):
            member.delete(self._slot)
            shard = member.reserve(self._slot, nbytes, facts)
        return shard

    def _store(self, view: memoryview, at: int) -> None:
        for index, (first, end) in enumerate(self._places):
            begin, stop = max(first, at), min(end, at + len(view))
            if begin < stop:
                part = view[begin - at : stop - at]
                xor_into(self._parity, part, begin - first)
                self._send(index, part)

    def _publish(self) -> None:
        self._send(self._slices, self._parity.data)
        for index in list(self._shards):
            self._send(index, self._digests[index].digest())
        for index, shard in sorted(self._shards.items()):  # the parity last, see `begin`
            try:
                shard.commit()
            except StoreError as error:
                self._lost(index, error)
        if self._old is not None and self._tier._complete(self._slot):
            self._tier._drop(self._old)

    def _discard(self) -> None:
        for shard in self._shards.values():
            shard.abort()

    def _end(self) -> None:
        super()._end()
        self._tier._count("writing", by=-1)

    def _send(self, index: int, data: Buffer) -> None:
        if index in self._shards:
            try:
                self._shards[index].write(data)
            except StoreError as error:
                self._lost(index, error)
            else:
                self._digests[index].update(data)

    def _lost(self, index: int, error: StoreError) -> None:
        """Go on without a member; with a second one lost nothing could be read back."""
        self._tier._count("errors")
        shard = self._shards.pop(index, None)
        if shard is not None:
            shard.abort()
        self._failures += 1
        if self._failures > 1:
            self.abort()
            self._tier._drop(self._slot)
            raise StoreError(f"two members of '{self._tier.name}' failed: {error}") from error


def in_shared_memory(
    name: str, nbytes: int, holders: int, *, folder: Path | None = None, **options: Any
) -> RedundantTier:
    """A redundant tier in memory that outlives its writers: files of a memory file system.

    Processes that give the same name share it, and it stays when all of them end; it is gone when
    the machine restarts, or with ``rm -r /dev/shm/recollect-…``.

    Args:
        name: tells tiers of one user apart.
        nbytes: room over all holders, parity included.
        holders: how many shards an entry has.
        folder: where a memory file system is mounted; `MEMORY` if left out.
        options: of each holder, see `DiskTier`.
    """
    folder = folder or MEMORY
    if not folder.is_dir():
        raise StoreError(f"redundancy needs a memory file system at {folder}; there is none here")
    root = folder / f"recollect-{os.getuid()}-{name.encode().hex()}"
    members = [
        DiskTier(root / f"{index}-of-{holders}", nbytes // holders, **options)
        for index in range(holders)
    ]
    return RedundantTier(members, name="host")


def _slots(key: bytes) -> tuple[bytes, bytes]:
    """Names under which members keep the versions of an entry."""
    other = int.from_bytes(key, "big") ^ int.from_bytes(OTHER_SLOT, "big")
    return key, other.to_bytes(32, "big")


def _head(key: bytes, version: _Version, index: int, members: int) -> bytes:
    return HEAD.pack(MAGIC, index, members, version.number, version.nbytes, version.writer, key)
