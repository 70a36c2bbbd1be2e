"""The KV arena: exact keys and values that grow in place, as vAttention keeps them (2405.04437).

Per layer two virtual tensors (slots, context, K, D) are reserved once. A sequence owns the same
slot in all of them; pages come as its tokens do, and stay with the slot when it is freed, for the
next sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recollect.core.arena import SlotPool, VirtualTensor
from recollect.errors import HostError, RecipeError
from recollect.kv.slab import Slab


@dataclass(frozen=True)
class VirtualSlots:
    """Storage in slots of a virtual arena instead of buffers that are copied when they grow.

    Attributes:
        slots: sequences (rows of all batches together) the arena has room for. Addresses only.
        context: tokens per slot; None for as many as the model's context.
        reclaim: what becomes of a freed slot's memory: `deferred` keeps it for the next sequence,
            `at-once` returns it to the system.
        limit: bytes of memory at most, free slots' pages included; None for no limit. Before it
            is exceeded, free slots give theirs up, highest numbers first.
    """

    slots: int = 32
    context: int | None = None
    reclaim: str = "deferred"
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise RecipeError(f"slots must be at least 1, got {self.slots}")
        if self.context is not None and self.context < 1:
            raise RecipeError(f"context must be at least 1, got {self.context}")
        if self.reclaim not in ("deferred", "at-once"):
            raise RecipeError(f"reclaim is 'deferred' or 'at-once', not '{self.reclaim}'")
        if self.limit is not None and self.limit < 1:
            raise RecipeError(f"limit is a number of bytes or None, got {self.limit}")


class KVArena:
    """The virtual tensors of all layers, and which of their slots are free.

    One arena may serve several caches of one model: ``kv_cache(model, "vattention", arena=arena)``.

    Attributes:
        storage: the stage it was made for.
        context: tokens per slot.
    """

    def __init__(self, storage: VirtualSlots, context: int) -> None:
        self.storage = storage
        self.context = storage.context or context
        self._pool = SlotPool(storage.slots)
        self._layers: dict[int, tuple[VirtualTensor, VirtualTensor]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of memory behind all slots, free ones included."""
        return sum(sum(t.mapped) for t in self._tensors())

    @property
    def resident(self) -> int:
        """The same, measured: pages the system says are there."""
        slots = range(self.storage.slots)
        return sum(t.resident(slot) for t in self._tensors() for slot in slots)

    @property
    def free(self) -> int:
        """Number of free slots."""
        return len(self._pool.free)

    def lease(self, rows: int, tokens: int) -> Lease:
        """Adjacent slots for a batch of `rows`, those whose pages fit `tokens` best.

        Raises:
            HostError: there is no such run of free slots.
        """
        first = self._pool.take(rows, tokens)
        if first is None:
            raise HostError(
                f"the arena has {self.storage.slots} slots and no {rows} adjacent free ones "
                f"({self.free} are free); close caches, or make it with more slots"
            )
        return Lease(self, first, rows)

    def tensors(
        self, layer: int, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[VirtualTensor, VirtualTensor]:
        """The tensors of a layer, reserved when its first tokens k (B, K, T, D), v come."""
        if layer not in self._layers:
            self._layers[layer] = tuple(
                VirtualTensor(
                    self.storage.slots, self.context, (x.shape[1], x.shape[3]), x.dtype, x.device
                )
                for x in (k, v)
            )  # type: ignore[assignment]
        for tensor, x in zip(self._layers[layer], (k, v), strict=True):
            held = (tensor.data.shape[2:], tensor.data.dtype, tensor.data.device)
            if held != ((x.shape[1], x.shape[3]), x.dtype, x.device):
                raise HostError(
                    "an arena serves the caches of one model; make another for this one"
                )
        return self._layers[layer]

    def back(self, tensors: tuple[VirtualTensor, VirtualTensor], slots: range, tokens: int) -> None:
        """Make room for `tokens` tokens in slots of one layer.

        Raises:
            HostError: more tokens than a slot has addresses for, or more memory than the limit.
        """
        if tokens > self.context:
            raise HostError(
                f"{tokens} tokens are more than the arena's context of {self.context}; "
                f"make it with context={tokens} or more"
            )
        missing = sum(t.missing(slot, tokens) for t in tensors for slot in slots)
        limit = self.storage.limit
        if limit is not None and missing:
            self._shrink_to(limit - missing)
            if self.nbytes + missing > limit:
                raise HostError(
                    f"the arena is full: {self.nbytes:,} of {limit:,} bytes are in use and "
                    f"{missing:,} more are needed; close caches, or raise its limit"
                )
        for tensor in tensors:
            for slot in slots:
                tensor.back(slot, tokens)

    def trim(self) -> None:
        """Return the memory of all free slots to the system."""
        self._shrink_to(0)

    def give_back(self, slots: range) -> None:
        """Free slots; their pages stay or go as the storage says."""
        for slot in slots:
            if self.storage.reclaim == "at-once":
                self._discard(slot)
            warmth = [t.mapped[slot] // t.row_bytes for t in self._tensors()]
            self._pool.give(slot, min(warmth, default=0))

    def _shrink_to(self, nbytes: int) -> None:
        for slot in self._pool.reclaimable():
            if self.nbytes <= nbytes:
                return
            self._discard(slot)
            self._pool.cool(slot)

    def _discard(self, slot: int) -> None:
        for tensor in self._tensors():
            tensor.discard(slot)

    def _tensors(self) -> list[VirtualTensor]:
        return [tensor for pair in self._layers.values() for tensor in pair]


class Lease:
    """Adjacent slots in use by the layers of one cache; free again when the last layer leaves."""

    def __init__(self, arena: KVArena, first: int, rows: int) -> None:
        self.arena = arena
        self.slots = range(first, first + rows)
        self.layers: set[int] = set()

    def leave(self, layer: int) -> None:
        """Note that a layer needs the slots no more."""
        self.layers.discard(layer)
        if not self.layers:
            self.end()

    def end(self) -> None:
        """Free the slots, whoever holds them."""
        self.layers.clear()
        slots, self.slots = self.slots, range(0)
        self.arena.give_back(slots)


class Tenant:
    """One cache in an arena: its layers ask here for their slabs, and share one lease."""

    def __init__(self, arena: KVArena) -> None:
        self.arena = arena
        self.lease: Lease | None = None

    def hold(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> ArenaSlab:
        """Store the first tokens k (B, K, T, D), v (B, K, T, Dv) of a layer. Raises HostError."""
        tensors = self.arena.tensors(layer, k, v)
        if self.lease is None or len(self.lease.slots) != k.shape[0]:
            self.lease = self.arena.lease(k.shape[0], k.shape[2])
        self.lease.layers.add(layer)
        slab = ArenaSlab(self, self.lease, layer, tensors)
        try:
            slab.append(k, v, 0)
        except HostError:
            slab.leave()
            raise
        slab.fresh = 0
        return slab

    def close(self) -> None:
        """Free what the cache holds."""
        if self.lease is not None:
            self.lease.end()
            self.lease = None


class ArenaSlab(Slab):
    """A slab of one length in an arena's slots: growing it never moves a token.

    Its rows `k` (B * context * K, D) and `v` interleave the heads of a token, so that a slot has
    one growing end; `starts` therefore only tells which slots they are.
    """

    def __init__(
        self,
        tenant: Tenant,
        lease: Lease,
        layer: int,
        tensors: tuple[VirtualTensor, VirtualTensor],
    ) -> None:
        self._tenant, self._lease, self._layer, self._tensors = tenant, lease, layer, tensors
        first, batch = lease.slots.start, len(lease.slots)
        self._k, self._v = (t.data[first : first + batch] for t in tensors)
        context, heads = self._k.shape[1:3]
        starts = torch.arange(batch)[:, None] * (context * heads) + torch.arange(heads)
        super().__init__(
            self._k.view(-1, self._k.shape[-1]),
            self._v.view(-1, self._v.shape[-1]),
            batch,
            heads,
            starts.flatten(),
            torch.zeros(batch * heads, dtype=torch.int64),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the pages behind its slots, and side data."""
        pages = sum(t.mapped[slot] for t in self._tensors for slot in self._lease.slots)
        small = (self.starts, self.lengths)
        return pages + sum(t.untyped_storage().nbytes() for t in small)

    def dense(self) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(x[:, : self._length].transpose(1, 2) for x in (self._k, self._v))  # type: ignore[return-value]

    def append(self, k: torch.Tensor, v: torch.Tensor, position: int) -> None:
        held, new = self.longest, k.shape[2]
        self._lease.arena.back(self._tensors, self._lease.slots, held + new)
        for slots, x in ((self._k, k), (self._v, v)):
            slots[:, held : held + new] = x.transpose(1, 2)
        self.lengths += new
        self.fresh += new
        self._settle()

    def select_batch(self, index: torch.Tensor) -> Slab:
        """The batch rows `index`: in place while their number stays, else in other slots."""
        if len(index) != self.batch:
            moved = self._tenant.hold(self._layer, *(x[index.to(x.device)] for x in self.dense()))
            moved.fresh = self.fresh
            self.leave()
            return moved
        moving = (index != torch.arange(self.batch)).nonzero().flatten()
        for x in (self._k[:, : self._length], self._v[:, : self._length]):
            x[moving.to(x.device)] = x[index[moving].to(x.device)]
        return self

    def copy(self) -> Slab:
        return self.portable()

    def portable(self) -> Slab:
        slab = Slab.from_dense(*self.dense())
        slab.fresh = self.fresh
        return slab

    def leave(self) -> None:
        self._lease.leave(self._layer)

    def _settle(self) -> None:
        self._length = int(self.lengths[0])
        self._capacity = None
