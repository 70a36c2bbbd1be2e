"""Our replacement policies for vLLM's own offloading framework, by name.

`eviction_policy` of the offloading connector may be any name of `core.replacement`: the entry point
registers them, and with ``"cache_policy_module_path": "recollect.vllm.policies"`` no entry point is
needed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from vllm.v1.kv_offload.base import OffloadKey, ReqContext
from vllm.v1.kv_offload.cpu.policies.base import CachePolicy, ChunkStatus, order_request_keys

from recollect.core.replacement import POLICIES, policy


class ReplacementPolicy(CachePolicy):
    """Any policy of `core.replacement` as a CachePolicy: chunks are entries of size 1.

    The policy knows slots, vLLM knows keys; this class keeps the two together. Chunks under
    transfer (``ref_cnt`` not 0) are never evicted.
    """

    spec = "lru"

    def __init__(self, cache_capacity: int) -> None:
        super().__init__(cache_capacity)
        self.clear()

    def get(self, key: OffloadKey) -> ChunkStatus | None:
        return self._chunks.get(key)

    def insert(self, key: OffloadKey, chunk: ChunkStatus) -> None:
        slot = self._free.pop() if self._free else len(self._keys)
        if slot == len(self._keys):
            self._keys.append(key)
        self._keys[slot] = key
        self._chunks[key], self._slots[key] = chunk, slot
        value = _value(key)
        place = self._places.pop(key, None)
        if place is None:
            place = self._policy.place(value, 1)
        self._policy.admit(slot, value, 1, place=place)
        if chunk.ref_cnt == 0:
            self._idle.add(key)

    def remove(self, key: OffloadKey) -> None:
        del self._chunks[key]
        self._idle.discard(key)
        slot = self._slots.pop(key)
        self._policy.forget(slot)
        self._free.append(slot)

    def touch(self, keys: Iterable[OffloadKey], req_context: ReqContext) -> None:
        # Tails first: what begins a prompt is worth more than what ends it.
        for key in reversed(list(keys)):
            slot = self._slots.get(key)
            if slot is not None:
                self._policy.touch(slot)

    def on_store_miss(self, keys: Iterable[OffloadKey], req_context: ReqContext) -> None:
        """Asked before room is made: where these will go (a ghost queue may know them)."""
        self._places.clear()
        self._places.update((key, self._policy.place(_value(key), 1)) for key in keys)

    def on_request_finished(
        self,
        key_groups: Sequence[Sequence[OffloadKey]],
        insertion_only_keys: set[OffloadKey],
        reused_keys: set[OffloadKey],
        req_context: ReqContext,
    ) -> None:
        """Only reuse counts as a use; entering does not."""
        ordered = order_request_keys(key_groups, req_context)
        self.touch([key for key in ordered if key in reused_keys], req_context)

    def evict(
        self, n: int, protected: set[OffloadKey]
    ) -> list[tuple[OffloadKey, ChunkStatus]] | None:
        if len(self._idle) - sum(key in self._idle for key in protected) < n:
            return None
        victims = []
        for _ in range(n):
            slot = self._policy.evict(lambda slot: self._is_pinned(slot, protected))
            if slot is None:
                break
            key = self._keys[slot]
            del self._slots[key]
            self._free.append(slot)
            self._idle.discard(key)
            victims.append((key, self._chunks.pop(key)))
        if len(victims) < n:  # all or nothing
            for key, chunk in victims:
                self.insert(key, chunk)
            return None
        return victims

    def clear(self) -> None:
        self._policy = policy(self.spec, self.cache_capacity)
        self._chunks: dict[OffloadKey, ChunkStatus] = {}
        self._slots: dict[OffloadKey, int] = {}
        self._keys: list[OffloadKey] = []
        self._free: list[int] = []
        self._idle: set[OffloadKey] = set()
        self._places: dict[OffloadKey, int] = {}

    def mark_evictable(self, key: OffloadKey) -> None:
        self._idle.add(key)

    def mark_non_evictable(self, key: OffloadKey) -> None:
        self._idle.discard(key)

    def _is_pinned(self, slot: int, protected: set[OffloadKey]) -> bool:
        key = self._keys[slot]
        return key not in self._idle or key in protected


@functools.cache
def cache_policy(spec: str) -> type[ReplacementPolicy]:
    """The CachePolicy class of a replacement policy. Raises RecipeError for an unknown name."""
    policy(spec, 1)
    return type(f"ReplacementPolicy_{spec}", (ReplacementPolicy,), {"spec": spec})


def __getattr__(name: str) -> type[ReplacementPolicy]:
    """vLLM looks policies up as attributes of this module."""
    if name in POLICIES:
        return cache_policy(name)
    raise AttributeError(
        f"there is no replacement policy '{name}'; there are {', '.join(POLICIES)}"
    )


def _value(key: OffloadKey) -> int:
    """64 bits of a key; block hashes are uniform."""
    return int.from_bytes(key[:8], "little")
