"""The books of a tier with limited room: what it holds, who goes next, whose share is used up.

Memory and disk keep the same books and differ only in where the bytes lie.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from recollect.core.replacement import TTL, Replacement, policy
from recollect.core.slot_table import hash_key
from recollect.errors import StoreError
from recollect.store.index import MISSING, Index
from recollect.store.tiers.base import Facts, TierStat, check_key
from recollect.store.tiers.reservation import CountedReservation

if TYPE_CHECKING:
    pass


@dataclass(eq=False)
class Group:
    """One share of the room, with its own policy: a namespace with a quota, or all the others."""

    limit: int
    policy: Replacement
    used: int = 0


@dataclass(frozen=True, eq=False)
class Claim:
    """Room promised to an entry that is being written."""

    key: bytes
    nbytes: int
    cost: float
    group: int
    place: int


class Holdings:
    """Entries of one tier: index, replacement, quotas, pins, counters.

    Every method wants `lock` held; what ends leases and reservations elsewhere (the garbage
    collector, say) only puts a note in `later`, which `settle` works through.

    Args:
        name: of the tier, for errors and figures.
        capacity: bytes of payload; never exceeded by entries and reservations together.
        replacement: a policy by name, see `recollect.core.replacement`.
        quotas: namespace -> bytes it may use.
        ttl: seconds an entry lives; None for ever.
        clock: seconds, monotonic.
        leaving: called for a slot whose entry is about to be evicted or has expired.
        vacate: called for a slot whose bytes nobody reads any more.
    """

    def __init__(
        self,
        name: str,
        capacity: int,
        *,
        replacement: str = "s3fifo",
        quotas: Mapping[str, int] | None = None,
        ttl: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        leaving: Callable[[int], None] = lambda slot: None,
        vacate: Callable[[int], None] = lambda slot: None,
    ) -> None:
        if capacity < 1:
            raise StoreError(f"the {name} tier needs room for at least one byte, not {capacity}")
        self.name, self.capacity = name, capacity
        self.lock = threading.RLock()
        self.later: deque[Callable[[], None]] = deque()
        self.index = Index()
        self.used = self.leases = 0
        self.hits = self.misses = self.evictions = self.refused = self.errors = self.corrupt = 0
        self.writing: dict[bytes, Claim] = {}
        self.nbytes = self.index.column("Q")
        self.born = self.index.column("d")
        self._group = self.index.column("H")
        self._pins = self.index.column("H")
        self._clock = clock
        self._leaving, self._vacate = leaving, vacate
        self._groups = [Group(capacity, policy(replacement, capacity))]
        self._of: dict[str, int] = {}
        for namespace, limit in (quotas or {}).items():
            limit = min(limit, capacity)
            self._of[namespace] = len(self._groups)
            self._groups.append(Group(limit, policy(replacement, limit)))
        first = self._groups[0].policy
        self._renew = isinstance(first, TTL) and first.renew
        self._ttl = first.seconds if isinstance(first, TTL) else ttl

    def find(self, key: bytes) -> int:
        """The slot of an entry that is ready and alive, or MISSING."""
        self.settle()
        slot = self.index.find(key)
        if slot != MISSING and self._ttl is not None and self.age(slot) >= self._ttl:
            self._leaving(slot)
            self.remove(slot)
            return MISSING
        return slot

    def claim(self, key: bytes, nbytes: int, facts: Facts) -> Claim | None:
        """Promise room; evicts for it. None when there is none, or the key is taken."""
        check_key(key)
        self.settle()
        if key in self.writing or self.find(key) != MISSING:
            return None
        number = self._of.get(facts.namespace, 0)
        group = self._groups[number]
        place = group.policy.place(hash_key(key), nbytes)
        if not self._make_room(nbytes, group):
            self.refused += 1
            return None
        claim = Claim(key, nbytes, facts.cost_seconds, number, place)
        group.used += nbytes
        self.used += nbytes
        self.writing[key] = claim
        return claim

    def admit(self, claim: Claim) -> int:
        """The claimed entry is ready: its slot."""
        self.writing.pop(claim.key, None)
        slot = self.index.add(claim.key)
        self.nbytes[slot] = claim.nbytes
        self.born[slot] = self._clock()
        self._group[slot] = claim.group
        self._pins[slot] = 0
        replacement = self._groups[claim.group].policy
        replacement.admit(slot, self.index.hash(slot), claim.nbytes, claim.cost, claim.place)
        return slot

    def adopt(
        self,
        keys: np.ndarray,
        nbytes: np.ndarray,
        ages: np.ndarray,
        costs: np.ndarray,
        namespaces: Sequence[str],
    ) -> np.ndarray:
        """Enter entries that are ready already, and for which nobody made room: slots (N,).

        Args:
            keys: (N, 32) uint8, all different, none of them there.
            nbytes: (N,) sizes.
            ages: (N,) seconds since each was made.
            costs: (N,) seconds that computing each would take.
            namespaces: (N,) whose they are.
        """
        slots = self.index.extend(keys)
        numbers = np.array([self._of.get(name, 0) for name in namespaces], np.int64)
        for column, values in (
            (self.nbytes, nbytes),
            (self.born, self._clock() - ages),
            (self._group, numbers),
        ):
            np.frombuffer(column, column.typecode)[slots] = values  # the slots are new: no pins
        used = np.bincount(numbers, nbytes, len(self._groups)).astype(int).tolist()
        for group, more in zip(self._groups, used, strict=True):
            group.used += more
        self.used += sum(used)
        policies = [group.policy for group in self._groups]
        facts = (slots, self.index.hashes(slots), nbytes, costs, numbers)
        for slot, value, size, cost, number in zip(*(f.tolist() for f in facts), strict=True):
            replacement = policies[number]
            replacement.admit(slot, value, size, cost, replacement.place(value, size))
        return slots

    def adopt_one(self, key: bytes, nbytes: int, age: float, cost: float, namespace: str) -> int:
        """`adopt` for one entry: its slot."""
        slot = self.index.add(key)
        number = self._of.get(namespace, 0)
        group = self._groups[number]
        self.nbytes[slot], self.born[slot] = nbytes, self._clock() - age
        self._group[slot], self._pins[slot] = number, 0
        value = self.index.hash(slot)
        group.policy.admit(slot, value, nbytes, cost, group.policy.place(value, nbytes))
        group.used += nbytes
        self.used += nbytes
        return slot

    def cancel(self, claim: Claim) -> None:
        """The claimed entry will not come."""
        if self.writing.pop(claim.key, None) is not None:
            self._give_back(claim.group, claim.nbytes)

    def touch(self, slot: int) -> None:
        """An entry was read."""
        self.hits += 1
        self._groups[self._group[slot]].policy.touch(slot)
        if self._renew:
            self.born[slot] = self._clock()

    def pin(self, slot: int) -> Callable[[], None]:
        """Keep an entry's bytes in place until the function returned is called, once, anywhere."""
        self._pins[slot] += 1
        self.leases += 1
        return partial(self.later.append, partial(self._unpin, slot))

    def remove(self, slot: int) -> None:
        """Forget an entry. Its bytes are vacated when the last lease on it ends."""
        self._groups[self._group[slot]].policy.forget(slot)
        self._forget(slot)

    def evict(self) -> bool:
        """Make one entry go: from the group that uses most of its limit. False: all are pinned."""
        groups = sorted(self._groups, key=lambda group: group.used / group.limit, reverse=True)
        return any(self._evict_from(group) for group in groups)

    def age(self, slot: int) -> float:
        """Seconds since the entry was made (or last read, where reading renews it)."""
        return self._clock() - self.born[slot]

    def settle(self) -> None:
        """Work through what ended since."""
        while self.later:
            self.later.popleft()()

    def stat(self) -> TierStat:
        """Counts and sizes now."""
        self.settle()
        return TierStat(
            self.name,
            entries=len(self.index),
            bytes=self.used,
            capacity=self.capacity,
            hits=self.hits,
            misses=self.misses,
            evictions=self.evictions,
            errors=self.errors,
            corrupt=self.corrupt,
            refused=self.refused,
            leases=self.leases,
            writing=len(self.writing),
        )

    def memory(self) -> int:
        """Bytes the books themselves take."""
        return self.index.nbytes() + sum(group.policy.nbytes() for group in self._groups)

    def _make_room(self, nbytes: int, group: Group) -> bool:
        if nbytes > group.limit:
            return False
        while group.used + nbytes > group.limit:
            if not self._evict_from(group):
                return False
        while self.used + nbytes > self.capacity:
            if not self.evict():
                return False
        return True

    def _evict_from(self, group: Group) -> bool:
        slot = group.policy.evict(self._pinned)
        if slot is None:
            return False
        self.evictions += 1
        self._leaving(slot)
        self._forget(slot)
        return True

    def _pinned(self, slot: int) -> bool:
        return self._pins[slot] > 0

    def _unpin(self, slot: int) -> None:
        self._pins[slot] -= 1
        self.leases -= 1
        if not self._pins[slot] and not self.index.live(slot):
            self._free(slot)

    def _forget(self, slot: int) -> None:
        self.index.remove(slot)
        if not self._pins[slot]:
            self._free(slot)

    def _free(self, slot: int) -> None:
        self._give_back(self._group[slot], self.nbytes[slot])
        self._vacate(slot)
        self.index.release(slot)

    def _give_back(self, group: int, nbytes: int) -> None:
        self._groups[group].used -= nbytes
        self.used -= nbytes


class ClaimedReservation(CountedReservation):
    """A reservation against claimed room, which is given back with the books' lock held."""

    def __init__(self, books: Holdings, claim: Claim) -> None:
        super().__init__(claim.nbytes)
        self._books, self._claim = books, claim

    def abort(self) -> None:
        if not self._ended:
            with self._books.lock:
                super().abort()

    def __del__(self) -> None:
        if not getattr(self, "_ended", True):
            self._books.later.append(self._discard)
