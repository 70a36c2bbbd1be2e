"""KV events of the store: which blocks it got, and which it turned out not to have.

Routers that follow vLLM's event stream see them beside the engine's own, with another medium.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm.distributed.kv_events import MEDIUM_CPU, MEDIUM_STORAGE, BlockRemoved, BlockStored
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

MOST = 10_000


class EventBook:
    """Remembers what entries stand for from the order to save them until the workers report."""

    def __init__(self, *, chunk: int, hashed: int, shared: bool) -> None:
        """`hashed`: tokens per block hash; `shared`: the tiers outlive this process."""
        self._chunk, self._hashed = chunk, hashed
        self._medium = MEDIUM_STORAGE if shared else MEDIUM_CPU
        self._stood_for: dict[bytes, BlockStored] = {}
        self._events: list[Any] = []

    def ordered(self, key: bytes, request: Any, at: int) -> None:
        """Chunk number `at` of a request is about to be saved."""
        size = self._chunk // self._hashed
        hashes = [maybe_convert_block_hash(h) for h in request.block_hashes[: (at + 1) * size]]
        lora = request.lora_request
        self._stood_for[key] = BlockStored(
            block_hashes=hashes[at * size :],
            parent_block_hash=hashes[at * size - 1] if at else None,
            token_ids=list(request.all_token_ids[at * self._chunk : (at + 1) * self._chunk]),
            block_size=self._hashed,
            lora_id=lora.adapter_id if lora else None,
            medium=self._medium,
            lora_name=lora.name if lora else None,
            group_idx=0,
            session_id=getattr(request, "session_id", None),
        )
        if len(self._stood_for) > MOST:
            del self._stood_for[next(iter(self._stood_for))]

    def committed(self, keys: Iterable[bytes]) -> None:
        """All workers have these now."""
        self._events += [self._stood_for[key] for key in keys if key in self._stood_for]

    def lost(self, keys: Iterable[bytes]) -> None:
        """These are not there."""
        for key in keys:
            if stored := self._stood_for.pop(key, None):
                self._events.append(BlockRemoved(stored.block_hashes, self._medium, group_idx=0))

    def take(self) -> list[Any]:
        """Events since the last call."""
        events, self._events = self._events, []
        return events
