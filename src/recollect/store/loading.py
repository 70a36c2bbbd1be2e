"""Loading the head of a prompt: as many stored chunks as are quicker to load than to compute.

The plan is made from measured costs and given up as soon as a chunk takes much longer than
predicted: a tier that became slow costs a request two chunks, not the whole load.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from recollect.errors import StoreError
from recollect.store.admission import Decision, Stored
from recollect.store.costs import SURPRISE
from recollect.store.tiers.partial import PartialLease

FIRST = 16  # of an entry whose bytes come later, this part is waited for

if TYPE_CHECKING:
    from recollect.store.store import Store
    from recollect.store.tiers.base import Lease


def plan_load(
    store: Store, keys: Sequence[bytes], total: int, *, nbytes: int, chunk: int
) -> tuple[Decision, list[Stored]]:
    """What `load_leading` would load now, and what is stored of the leading `keys`."""
    stored = [Stored(tier, nbytes, chunk) for tier in store.locate(keys)]
    return store.admission.decide(stored, total), stored


def load_leading(
    store: Store,
    keys: Sequence[bytes],
    total: int,
    *,
    nbytes: int,
    chunk: int,
    whole: bool = True,
) -> list[Lease]:
    """Leases on the leading entries worth loading; the caller releases them.

    Args:
        keys: of the chunks of a prompt, in order.
        total: tokens of the prompt.
        nbytes: of one entry.
        chunk: tokens that one entry stands for.
        whole: False to wait for the first bytes of every entry only, where the tier allows it.
    """
    decision, stored = plan_load(store, keys, total, nbytes=nbytes, chunk=chunk)
    wanted = decision.load
    leases: list[Lease] = []
    while len(leases) < wanted:
        here = stored[len(leases)]
        latency, per_byte = store.admission.reading(here.tier).prices
        began = store.clock()
        lease = store.get(keys[len(leases)], whole=whole)
        if lease is None:  # gone since we looked
            break
        try:
            amount = _wait(store, lease, here.tier, whole)
        except StoreError:
            break
        leases.append(lease)
        if store.clock() - began > SURPRISE * (latency + per_byte * amount):
            ready = len(leases) * chunk
            rest = store.admission.decide(stored[len(leases) :], total, ready=ready)
            wanted = len(leases) + rest.load
    if decision.probe is not None and len(leases) < len(stored):
        store.prefetch(keys[len(leases) : len(leases) + 1])
    return leases


def _wait(store: Store, lease: Lease, tier: str, whole: bool) -> int:
    """Have the bytes of an entry come, or the first of them; how many those are."""
    began = store.clock()
    amount = lease.nbytes if whole else -(-lease.nbytes // FIRST)
    if isinstance(lease, PartialLease):
        lease.require(0, amount)
    elif tier == "disk":  # its bytes come when they are touched
        touch(lease.data[:amount])
        store.admission.observe_read(tier, amount, store.clock() - began)
    else:
        amount = lease.nbytes
    return amount


def touch(data: memoryview) -> None:
    """Have every page of a memory-mapped entry read."""
    np.frombuffer(data, np.uint8)[:: mmap.PAGESIZE].max(initial=0)
