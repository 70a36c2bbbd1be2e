"""The scheduler's half of the connector: which KV a request can be given, and what to save.

Knows requests by the few attributes it reads and nothing else of vLLM.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from recollect.store.costs import pairs
from recollect.vllm.identity import ChunkKeys
from recollect.vllm.messages import Load, Orders, Part, Report
from recollect.vllm.presence import Lookup, Presence
from recollect.vllm.worth import Always

logger = logging.getLogger(__name__)

# In kv_transfer_params. A proxy asks a prefill engine with vLLM's own word, and passes what that
# returns on to the decoding engine: how many chunks to expect in the store.
PREFILL_ONLY = "do_remote_decode"
HANDOFF = "recollect_chunks"


class Request(Protocol):
    """What is read of a vLLM request."""

    request_id: str
    num_tokens: int
    num_prompt_tokens: int
    num_computed_tokens: int
    block_hashes: Sequence[bytes]
    kv_transfer_params: dict[str, Any] | None


@dataclass(frozen=True)
class Policy:
    """When KV is moved. Sizes in tokens.

    `sync` and `later` say which ways of loading may be used; with both, what our own workers hold
    is loaded before the forward and the rest while other requests run. `hands_off`: every request
    ends with a message for the engine that decodes it.
    """

    chunk: int
    block: int
    sync: bool = True
    later: bool = True
    loads: bool = True
    saves: bool = True
    hands_off: bool = False
    save_generated: bool = True
    lookup_seconds: float = 0.05
    handoff_seconds: float = 2.0


@dataclass
class _Known:
    """A request on its way through the engine."""

    request: Request
    keys: list[bytes]
    lookup: Lookup
    patience: float
    local: int = 0
    passed: int = 0  # chunks that are saved, or need not be
    gave_up: bool = False
    hands_off: bool = False  # another engine waits for all its chunks
    ended: bool = False  # a chunk was not worth saving: those behind it could not be found
    asked: tuple[int, int] = (-1, -1)  # what the last decision was about: tokens from, and to
    wanted: int = 0  # how many of these to load


class Planner:
    """Turns what the scheduler does into orders for the workers."""

    def __init__(
        self,
        policy: Policy,
        keys: ChunkKeys,
        presence: Presence,
        *,
        worth: Always | None = None,
        near: str = "host",
        workers: int = 1,
        on_save: Callable[[bytes, Any, int], None] | None = None,
    ) -> None:
        """`worth` decides what is loaded and saved, everything if left out; `near` is the tier that
        takes saves; `on_save` is told key, request and number of every chunk about to be saved."""
        self.policy = policy
        self.worth = worth or Always()
        self.presence = presence
        self.counts: Counter[str] = Counter()
        self._keys = keys
        self._workers = workers
        self._on_save = on_save
        self._requests: dict[str, _Known] = {}
        self._near = near
        self._loads: list[Load] = []
        self._probes: list[bytes] = []
        self._half: Counter[bytes] = Counter()  # committed by some workers, not by all yet
        self._taint = 0

    def arrived(self, request: Request) -> None:
        """A request was added: start looking for its prefix."""
        keys: list[bytes] = []
        self._keys.extend(keys, request.block_hashes)
        params = request.kv_transfer_params or {}
        announced = params.get(HANDOFF, 0)
        expected = announced if type(announced) is int and announced > 0 else 0
        patience = self.policy.handoff_seconds if expected else self.policy.lookup_seconds
        if self.policy.loads:
            lookup = self.presence.look_up(keys, expected=expected, patience=patience)
        else:
            lookup = Lookup(done=True)
        self.worth.seen(keys)
        known = _Known(request, keys, lookup, patience)
        known.hands_off = self.policy.hands_off or bool(params.get(PREFILL_ONLY))
        self._requests[request.request_id] = known

    def matched(self, request: Request, local: int) -> tuple[int | None, bool]:
        """How many tokens beyond `local` the store can supply, and whether in the background.

        None: the shared tiers have not answered yet. Changes nothing but what it remembers of
        this very question, so it may be asked any number of times.
        """
        known = self._requests.get(request.request_id)
        if known is None or known.gave_up or not self.policy.loads:
            return 0, False
        if not known.lookup.is_due(known.patience):
            return None, False
        self._keys.extend(known.keys, request.block_hashes)
        present = self.presence.leading(known.keys, known.lookup.found) * self.policy.chunk
        usable = min(present, (request.num_tokens - 1) // self.policy.block * self.policy.block)
        known.local = local
        if known.asked != (local, usable):
            known.asked, known.wanted = (local, usable), self._worth_loading(known, local, usable)
        if not known.wanted:
            return 0, False
        return known.wanted, self._is_later(known, local, local + known.wanted)

    def allocated(self, request: Request, blocks: Sequence[int], external: int) -> None:
        """Blocks were allocated; the `external` tokens after the local ones are to be loaded."""
        known = self._requests.get(request.request_id)
        if external <= 0 or known is None:
            return
        end = known.local + external
        parts = tuple(self._parts(known, blocks, known.local, end))
        later = self._is_later(known, known.local, end)
        self._loads.append(Load(request.request_id, parts, later))
        self.counts["hit_tokens"] += external

    def sources(self, request: Request, external: int) -> tuple[int, int]:
        """Of the `external` tokens: how many our workers hold, and how many are elsewhere."""
        known = self._requests.get(request.request_id)
        if known is None:
            return 0, external
        block, chunk = self.policy.block, self.policy.chunk
        starts = range(known.local, known.local + external, block)
        ours = sum(known.keys[start // chunk] in self.presence for start in starts) * block
        return ours, external - ours

    def orders(
        self, scheduled: Mapping[str, int], blocks: Callable[[str], Sequence[int] | None]
    ) -> Orders:
        """This step's orders; what was pending is forgotten.

        Args:
            scheduled: request id -> tokens computed in this step.
            blocks: request id -> its block table.
        """
        orders = Orders(self._loads, probes=self._probes, taint=self._taint)
        self._loads, self._probes = [], []
        self._weigh(scheduled, orders)
        if self.policy.saves:
            try:
                for name, tokens in scheduled.items():
                    if known := self._requests.get(name):
                        self._save(known, tokens, blocks, orders.saves)
            except Exception:  # the loads were promised: they go out whatever saving comes to
                logger.exception("nothing is saved in this step")
        return orders

    def reported(self, report: Report) -> list[bytes]:
        """Learn what the workers did. Returns the keys that all of them have committed now."""
        self._taint = max(self._taint, report.taint)
        self.worth.heard(report)
        for key in report.lost | report.refused:
            self.presence.discard(key)
            del self._half[key]
            for known in self._requests.values():
                if key in known.keys:
                    at = known.keys.index(key)
                    known.passed = min(known.passed, at)
                    del known.lookup.tiers[at:]
                    known.asked = (-1, -1)
        for name in report.failed & self._requests.keys():
            self._requests[name].gave_up = True
        self._half.update(report.committed)
        whole = [key for key in dict.fromkeys(report.committed) if self._half[key] >= self._workers]
        for key in whole:
            del self._half[key]
        return whole

    def finished(self, request: Request) -> dict[str, Any] | None:
        """Forget a request. A producer tells its consumer how many chunks to expect."""
        known = self._requests.pop(request.request_id, None)
        if known is None or not self.policy.saves or not known.hands_off:
            return None
        return {HANDOFF: min(known.passed, request.num_prompt_tokens // self.policy.chunk)}

    def reset(self, nonce: bytes) -> None:
        """Everything stored so far is out of date: look for it no more."""
        self._keys.renew(nonce)
        self.presence.clear()
        for known in self._requests.values():
            known.keys.clear()
            known.lookup, known.passed = Lookup(done=True), 0

    def take_counts(self) -> dict[str, int]:
        """Counters since the last call."""
        counts, self.counts = self.counts, Counter()
        return dict(counts)

    def close(self) -> None:
        """End the lookups."""
        self.presence.close()

    def _worth_loading(self, known: _Known, local: int, usable: int) -> int:
        """How many of the tokens from `local` to `usable` to load."""
        chunk = self.policy.chunk
        chunks = range(local // chunk, -(-usable // chunk))
        if usable <= local:
            return 0
        tokens = [min(usable, (at + 1) * chunk) - max(local, at * chunk) for at in chunks]
        tiers = [self._tier(known, at) for at in chunks]
        count, probe = self.worth.loads(tiers, tokens, known.request.num_tokens, local)
        if probe:
            self._probes.append(known.keys[chunks[count]])
        wanted = sum(tokens[:count])
        self.counts["declined_tokens"] += usable - local - wanted
        return wanted

    def _tier(self, known: _Known, at: int) -> str:
        if known.keys[at] in self.presence:
            return self._near
        return known.lookup.tiers[at] or self._near

    def _worth_saving(self, known: _Known, chunks: list[int]) -> list[int]:
        keys = [known.keys[at] for at in chunks]
        count = self.worth.saves(keys, chunks[0] * self.policy.chunk)
        known.ended = count < len(chunks)
        self.counts["saves_declined"] += len(chunks) - count
        return chunks[:count]

    def _weigh(self, scheduled: Mapping[str, int], orders: Orders) -> None:
        """Say what this step computes, if it is more than decoding."""
        if sum(scheduled.values()) - len(scheduled) < self.policy.block:
            return
        for name, tokens in scheduled.items():
            known = self._requests.get(name)
            if known is None:  # not all of the step would be told
                orders.tokens = 0
                return
            orders.tokens += tokens
            orders.pairs += pairs(tokens, known.request.num_computed_tokens)

    def _is_later(self, known: _Known, start: int, end: int) -> bool:
        if not (self.policy.sync and self.policy.later):
            return self.policy.later
        wanted = known.keys[start // self.policy.chunk : -(-end // self.policy.chunk)]
        return not all(key in self.presence for key in wanted)

    def _parts(self, known: _Known, blocks: Sequence[int], start: int, end: int) -> list[Part]:
        block, chunk = self.policy.block, self.policy.chunk
        parts = []
        while start < end:
            at = start // chunk
            stop = min(end, (at + 1) * chunk)
            ids = tuple(blocks[start // block : stop // block])
            parts.append(Part(known.keys[at], ids, (start - at * chunk) // block))
            start = stop
        return parts

    def _save(
        self,
        known: _Known,
        tokens: int,
        blocks: Callable[[str], Sequence[int] | None],
        saves: list[Part],
    ) -> None:
        """Order the chunks that are complete after this step and not stored yet."""
        request, chunk = known.request, self.policy.chunk
        computed = request.num_computed_tokens + tokens
        if not self.policy.save_generated:
            computed = min(computed, request.num_prompt_tokens)
        if computed // chunk <= known.passed:
            return
        self._keys.extend(known.keys, request.block_hashes)
        complete = min(computed // chunk, len(known.keys))
        new = [
            at
            for at in range(known.passed, complete)
            if at >= known.lookup.found and known.keys[at] not in self.presence
        ]
        known.passed = complete
        if new and not known.hands_off:
            new = [] if known.ended else self._worth_saving(known, new)
        table = blocks(request.request_id) if new else None
        if table is None:
            return
        size = chunk // self.policy.block
        for at in new:
            ids = tuple(table[at * size : (at + 1) * size])
            saves.append(Part(known.keys[at], ids))
            self.presence.add(known.keys[at])
            if self._on_save is not None:
                self._on_save(known.keys[at], request, at)
