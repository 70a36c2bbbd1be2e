"""One layer of the cache: takes new keys and values, attends, and keeps what the policy says.

Life of a token: `update` notes it, `attend` stores it and computes attention over everything held,
the schedule asks the policy what stays, and the codec encodes what has become old.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from recollect.core.codecs.affine import PackedKV
from recollect.errors import HostError, RecollectError
from recollect.kv import attention
from recollect.kv.arena import Tenant
from recollect.kv.candidates import Candidates, Chunk, Memory
from recollect.kv.decide import decide
from recollect.kv.handle import KVHandle
from recollect.kv.hidden import LayerHidden
from recollect.kv.host import HostAttention
from recollect.kv.policy import KVPolicy
from recollect.kv.rope import LayerRope
from recollect.kv.slab import Slab


@dataclass(frozen=True)
class LayerPlan:
    """What a layer is told when the cache is made.

    Attributes:
        policy: the policy of the whole cache.
        index: the layer's number in the model.
        rank, layers: its number among the layers the policy governs, and how many those are.
        kernel: `auto`, `host` or `ours`.
        rope: the layer's rotary embedding, where the policy needs it.
        tenant: the cache's place in an arena, where the policy stores in one.
        hidden: the layer's hidden states, where the score looks at them.
    """

    policy: KVPolicy
    index: int
    rank: int
    layers: int
    kernel: str
    rope: LayerRope | None = None
    tenant: Tenant | None = None
    hidden: LayerHidden | None = None

    @property
    def drops(self) -> bool:
        """Whether tokens are ever dropped or merged."""
        return self.policy.keep != 1.0


class KVLayer(CacheLayerMixin):
    """A cache layer for transformers whose `update` returns handles instead of tensors."""

    is_sliding = False
    supports_early_init = False
    slab: Slab | None = None

    def __init__(self, plan: LayerPlan) -> None:
        super().__init__()
        self.plan = plan
        self.owner: int | None = None  # id of the attention module that uses this layer
        self.deferred = False  # inside `cache.prefilling()`: decide when it ends
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        if self.slab is not None:
            self.slab.leave()
        self.is_initialized = False
        self.seen = 0
        self.padding: torch.Tensor | None = None  # (B,) left-padded tokens of each row
        self.slab = None
        self.packed: PackedKV | None = None
        self.memory = Memory()
        self.budget: torch.Tensor | None = None  # (B,) tokens per head
        self.prompt: torch.Tensor | None = None  # (B,) tokens the budget was computed for
        self.dropped = False  # some tokens are gone: storage and sequence differ
        self.steps = 0
        self.seconds = 0.0  # spent deciding and encoding
        self._pending: tuple[torch.Tensor, torch.Tensor] | None = None

    # -- what transformers asks ------------------------------------------------------------------

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        """Whether `crop` leaves no trace: not where every step may evict something for good."""
        return not (self.plan.drops and self.plan.policy.schedule.repeats)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(  # type: ignore[override]
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[KVHandle, KVHandle]:
        """Note new keys (B, K, Q, D) and values (B, K, Q, Dv); `attend` will store them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._check_batch(key_states)
        self._pending = (key_states, value_states)
        self.seen += key_states.shape[2]
        return KVHandle(self, key_states), KVHandle(self, value_states)

    def get_seq_length(self) -> int:
        """Tokens seen, kept or not: the position of the next one."""
        return self.seen

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The host's masks stay logical, over every token seen."""
        return self.seen + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens (negative number), or all after so many (positive, deprecated)."""
        remove = (
            -tokens_to_remove if tokens_to_remove <= 0 else max(self.seen - tokens_to_remove, 0)
        )
        if remove == 0 or self.slab is None:
            return
        if remove >= self.seen:
            self.reset()
            return
        if self.packed is not None and not self._exact_from(self.seen - remove):
            raise HostError(
                f"cannot crop {remove} tokens: some of them are encoded already; "
                "raise the codec's `recent` above the number of tokens to roll back"
            )
        if not self.dropped or remove <= self.slab.fresh:
            self.slab.drop_newest(remove)
        else:
            self.slab.drop_positions_from(self.seen - remove)
        self.seen -= remove

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Batch row i becomes what row `beam_idx[i]` was."""
        if self.slab is None:
            return
        index = beam_idx.to("cpu", torch.int64)
        self.slab = self.slab.select_batch(index)
        if self.packed is not None:
            self.packed = self.packed.select_batch(index)
        self.memory.select_batch(index)
        for name in ("padding", "budget", "prompt"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value[index.to(value.device)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these batch rows."""
        if self.slab is not None:
            self.reorder_cache(torch.arange(self.slab.batch)[indices.cpu()])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch row."""
        if self.slab is not None:
            self.reorder_cache(torch.arange(self.slab.batch).repeat_interleave(repeats))

    # -- what our attention function asks --------------------------------------------------------

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        mask: Any,
        host: HostAttention,
        options: dict[str, Any],
    ) -> tuple[torch.Tensor, Any]:
        """Attention of query (B, H, Q, D) over all tokens held, the new ones included.

        Returns (output (B, Q, H, Dv), None), as the host's attention functions do.
        """
        assert self._pending is not None
        (k, v), self._pending = self._pending, None
        held = None if self.slab is None else self.slab.longest
        try:
            self._check_owner(module)
            if self.slab is None:
                self.padding = attention.left_padding(mask, k.shape[2], strict=not self._is_plain)
                out = host(module, query, k, v, mask, **options)
                self._timed(self._start, query, k, v, _scale(options, query))
                return out
            if self.padding is not None and not self.dropped:
                self._learn_more_padding(mask, k.shape[2])
            self.slab.append(k, v, self.seen - k.shape[2])
            out = attention.attend(self, module, query, mask, host, options)
        except RecollectError:
            self._undo(k.shape[2], held)
            raise
        if not self._is_plain:
            self._timed(self._continue, query, _scale(options, query))
        return out

    def finish_prefill(self) -> None:
        """Decide now about everything seen while `deferred`."""
        self.deferred = False
        if self.slab is None or self._is_plain:
            return
        queries = self.memory.queries
        if queries is None:
            queries = self.slab.k.new_empty(
                self.slab.batch, self.slab.heads, 0, self.slab.k.shape[-1]
            )
        scale = self.slab.k.shape[-1] ** -0.5 if self._scale is None else self._scale
        self._timed(self._settle, self._chunk(queries, scale), self.plan.drops)

    def hold(self, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store first tokens k (B, K, T, D), v (B, K, T, Dv), all of them exact."""
        tenant = self.plan.tenant
        at = self.plan.index
        self.slab = Slab.from_dense(k, v) if tenant is None else tenant.hold(at, k, v)

    # -- figures ---------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes really held."""
        own = [t for t in (self.padding, self.budget, self.prompt) if t is not None]
        parts = [part.nbytes for part in (self.slab, self.packed, self.memory) if part is not None]
        return sum(t.untyped_storage().nbytes() for t in own) + sum(parts)

    @property
    def dense_nbytes(self) -> int:
        """What the host's cache would hold for the tokens seen."""
        if self.slab is None:
            return 0
        widths = self.slab.k.shape[-1] + self.slab.v.shape[-1]
        return self.slab.batch * self.slab.heads * self.seen * widths * self.slab.k.element_size()

    @property
    def kept(self) -> torch.Tensor:
        """Tokens held (B, K) by every head, exact and encoded."""
        if self.slab is None:
            return torch.zeros(0, 0, dtype=torch.int64)
        lengths = self.slab.lengths
        if self.packed is not None:
            lengths = lengths + self.packed.lengths.cpu()
        return lengths.view(self.slab.batch, self.slab.heads)

    # -- inside ----------------------------------------------------------------------------------

    @property
    def _is_plain(self) -> bool:
        return self.plan.policy.is_plain

    _scale: float | None = None

    def _undo(self, new: int, held: int | None) -> None:
        """After a refusal: be as before the tokens came (`held` of them in the longest head)."""
        if held is None:
            self.reset()
            return
        assert self.slab is not None
        self.seen -= new
        if self.slab.longest > held:
            self.slab.drop_newest(new)

    def _start(self, query: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> None:
        """Keep what the policy says of the first tokens."""
        self._scale = scale
        if self._is_plain:
            self.hold(k, v)
            return
        hidden = self.padding is not None and bool((self.padding >= k.shape[2]).any())
        if hidden and not self.deferred:
            raise HostError(
                "a row of the batch is nothing but padding so far; prefill in larger chunks"
            )
        candidates = Candidates(k, v, self.padding)
        chunk = Chunk(
            query, candidates, scale, self.memory, self._lengths(candidates), self.plan.rope
        )
        chunk.hidden = self.plan.hidden.take() if self.plan.hidden else None
        self._observe(chunk)
        self._settle(chunk, self.plan.drops and not self.deferred)

    def _continue(self, query: torch.Tensor, scale: float) -> None:
        """Keep what the policy says after later tokens."""
        schedule = self.plan.policy.schedule
        new = query.shape[2]
        if not self.plan.drops or not (schedule.repeats or self.deferred):
            self._flush()
            return
        chunk = self._chunk(query, scale)
        self._observe(chunk)
        due = schedule.every_chunk and new > 1
        if new == 1 and schedule.every_steps:
            self.steps += 1
            due = self.steps >= schedule.every_steps
        if due and not self.deferred:
            self._settle(chunk, True)

    def _learn_more_padding(self, mask: Any, new: int) -> None:
        """Rows that were all padding until now may go on being so in the next chunk of a prompt."""
        assert self.padding is not None
        if bool((self.padding >= self.seen - new).any()):
            padding = attention.left_padding(mask, self.seen, strict=not self._is_plain)
            self.padding = self.padding if padding is None else padding

    def _chunk(self, query: torch.Tensor, scale: float) -> Chunk:
        """A pass after the first one, over what the slab holds."""
        assert self.slab is not None
        if self.slab.length is not None:
            k, v = self.slab.dense()
            padding = None if self.dropped else self.padding
            columns = {name: self.slab.column(name) for name in self.slab.columns}
            candidates = Candidates(k, v, padding, columns)
        else:
            candidates = Candidates(*self.slab.aligned())
        next_position = self._lengths(candidates)
        hidden = self.plan.hidden.take() if self.plan.hidden else None
        return Chunk(
            query, candidates, scale, self.memory, next_position, self.plan.rope, False, hidden
        )

    def _lengths(self, candidates: Candidates) -> torch.Tensor:
        """Real tokens (B,) seen so far in every row."""
        seen = torch.full(candidates.shape[:1], self.seen, device=candidates.k.device)
        return seen if self.padding is None else seen - self.padding.to(seen.device)

    def _observe(self, chunk: Chunk) -> None:
        """Let the score see this pass; its side data goes to the tokens' columns."""
        score = self.plan.policy.score
        if not self.plan.drops or score is None:
            return
        self.memory.remember(chunk.q, score.queries)
        for name, values in score.observe(chunk).items():
            columns = chunk.candidates.columns
            columns[name] = columns[name].add_(values) if name in columns else values
            if self.slab is not None and self.slab.length is None:
                rows, _ = self.slab.aligned_rows()
                self.slab.columns[name].index_put_((rows,), values, accumulate=True)

    def _settle(self, chunk: Chunk, drop: bool) -> None:
        """Decide what stays of the candidates, store it, and encode what has become old."""
        policy, candidates = self.plan.policy, chunk.candidates
        if drop:
            self.steps = 0
            if self.budget is None or chunk.q.shape[2] > 1:
                self._set_budget(candidates)
            kept = decide(self, chunk)
            if kept is not None:
                self.slab, self.dropped = kept, True
            if not policy.schedule.repeats:
                self.memory = Memory()  # nothing will be decided again
        if self.slab is None:
            must_strip = policy.codec is not None and self.padding is not None
            self.slab = _without_padding(candidates) if must_strip else _whole(candidates)
            self.dropped = must_strip
        self._flush()

    def _set_budget(self, candidates: Candidates) -> None:
        """Tokens per head of every row, for the tokens seen so far."""
        policy = self.plan.policy
        self.prompt = self._lengths(candidates).cpu()
        # A number of tokens is a bound for sequences that are still to grow as well.
        grown = policy.keep if isinstance(policy.keep, int) and policy.schedule.repeats else 0
        window = policy.score.queries if policy.score is not None else 0

        def tokens(length: int) -> int:
            layers = self.plan.layers
            return policy.layers.tokens(policy.keep, max(length, grown), layers, window)[
                self.plan.rank
            ]

        by_length = {n: tokens(n) for n in set(self.prompt.tolist())}
        self.budget = torch.tensor([by_length[n] for n in self.prompt.tolist()])

    def _flush(self) -> None:
        """Move exact tokens that have become old into the codec."""
        codec, slab = self.plan.policy.codec, self.slab
        if codec is None or slab is None or self.deferred:
            return
        if slab.longest < codec.recent + codec.group:
            return
        counts = codec.encodable(slab.lengths)
        if not bool(counts.any()):
            return
        if self.packed is None:
            self.packed = codec.encode(slab, counts)
        else:
            counts[:] = counts.min()  # every head has received the same number of new tokens
            if int(counts[0]) == 0:
                return
            codec.append(self.packed, slab, int(counts[0]))
        slab.drop_oldest(counts)

    def _exact_from(self, position: int) -> bool:
        """Whether every token from `position` on is still exact."""
        assert self.slab is not None
        if "position" not in self.slab.columns:
            return self.seen - self.slab.longest <= position
        if not bool(self.slab.lengths.all()):
            return False
        oldest = self.slab.columns["position"][self.slab.starts.to(self.slab.k.device)]
        return int(oldest.max()) <= position

    def _timed(self, step: Any, *args: Any) -> None:
        started = time.perf_counter()
        step(*args)
        self.seconds += time.perf_counter() - started

    def _check_owner(self, module: torch.nn.Module) -> None:
        if self.owner is None:
            self.owner = id(module)
        elif self.owner != id(module):
            raise HostError(
                "this cache belongs to another model (or another layer of it); "
                "make a cache for each model with recollect.kv_cache(model, ...)"
            )

    def _check_batch(self, new: torch.Tensor) -> None:
        if self.slab is None:
            return
        held = (self.slab.batch, self.slab.heads, self.slab.k.shape[-1])
        if held != (new.shape[0], new.shape[1], new.shape[3]):
            raise HostError(
                f"this cache holds batch {held[0]}, {held[1]} KV heads of width {held[2]}, but got "
                f"keys {tuple(new.shape)}; make a new cache, or reset() this one"
            )


def _scale(options: dict[str, Any], query: torch.Tensor) -> float:
    scale = options.get("scaling")
    return float(scale) if scale is not None else query.shape[-1] ** -0.5


def _whole(candidates: Candidates) -> Slab:
    slab = Slab.from_dense(candidates.k, candidates.v)
    for name, column in candidates.columns.items():
        slab.add_column(name, column)
    return slab


def _without_padding(candidates: Candidates) -> Slab:
    """All real tokens of a left-padded batch, each row with its own length."""
    batch, heads, total = candidates.shape
    lengths = candidates.lengths().reshape(-1).cpu()
    first = torch.repeat_interleave(total - lengths, lengths)
    offsets = torch.cumsum(lengths, 0) - lengths
    index = first + torch.arange(int(lengths.sum())) - torch.repeat_interleave(offsets, lengths)
    position = torch.arange(total, dtype=torch.int32, device=candidates.k.device)
    columns = {"position": position.expand(batch, heads, total)}
    return Slab.gather(candidates.k, candidates.v, index, lengths, columns)
