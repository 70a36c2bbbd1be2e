"""What a stage sees when it decides: tokens that could stay, and what queries told so far."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from recollect.kv.rope import LayerRope


@dataclass
class Candidates:
    """Tokens of one layer that may stay, oldest first, every head's tokens at the end.

    Attributes:
        k, v: (B, K, T, D), (B, K, T, Dv); views where nothing was dropped yet.
        padding: (B,) or (B, K) unused columns in front of each row's (head's) tokens, or None.
        columns: side data (B, K, T) by name: `position`, `bias`, `mass`.
    """

    k: torch.Tensor
    v: torch.Tensor
    padding: torch.Tensor | None
    columns: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, K, T."""
        batch, heads, total, _ = self.k.shape
        return batch, heads, total

    def lengths(self) -> torch.Tensor:
        """Real tokens (B, K) of every head."""
        batch, heads, total = self.shape
        lengths = torch.full((batch, heads), total, device=self.k.device)
        if self.padding is None:
            return lengths
        padding = self.padding if self.padding.dim() == 2 else self.padding[:, None]
        return lengths - padding

    def row_padding(self) -> torch.Tensor | None:
        """Padding (B,) where all heads of a row share one, as after prefill."""
        if self.padding is None or self.padding.dim() == 1:
            return self.padding
        assert bool((self.padding == self.padding[:, :1]).all())
        return self.padding[:, 0]

    def has_uneven_heads(self) -> bool:
        """Whether heads of one row hold different numbers of tokens."""
        return (
            self.padding is not None
            and self.padding.dim() == 2
            and not bool((self.padding == self.padding[:, :1]).all())
        )

    def per_head(self) -> Candidates:
        """The same candidates with every KV head as a batch row of its own: (B*K, 1, T, ·)."""
        batch, heads, total = self.shape
        padding = self.padding
        if padding is not None:
            padding = padding if padding.dim() == 2 else padding[:, None].expand(batch, heads)
            padding = padding.reshape(-1)
        return Candidates(
            self.k.reshape(batch * heads, 1, total, -1),
            self.v.reshape(batch * heads, 1, total, -1),
            padding,
            {n: c.reshape(batch * heads, 1, total) for n, c in self.columns.items()},
        )


@dataclass
class Memory:
    """What a layer remembers of its queries until the next decision.

    Attributes:
        queries: (B, H, w, D) the last w post-RoPE queries, w as the score asked for.
        statistics: running sums a score keeps over the prompt (expected attention).
    """

    queries: torch.Tensor | None = None
    statistics: dict[str, torch.Tensor] = field(default_factory=dict)

    def remember(self, q: torch.Tensor, window: int) -> None:
        """Keep the last `window` of the queries seen so far."""
        if window == 0:
            return
        q = q[:, :, -window:]
        if self.queries is not None and q.shape[2] < window:
            q = torch.cat([self.queries, q], 2)[:, :, -window:]
        self.queries = q.clone()

    def select_batch(self, index: torch.Tensor) -> None:
        """Keep the batch rows `index`."""
        if self.queries is not None:
            self.queries = self.queries.index_select(0, index.to(self.queries.device))
        self.statistics = {
            name: x.index_select(0, index.to(x.device)) for name, x in self.statistics.items()
        }

    def per_head(self, heads: int) -> Memory:
        """The same memory with every KV head as a batch row of its own."""

        def fold(x: torch.Tensor) -> torch.Tensor:
            if x.dim() == 1:
                return x.repeat_interleave(heads)
            return x.reshape(x.shape[0] * heads, x.shape[1] // heads, *x.shape[2:])

        queries = None if self.queries is None else fold(self.queries)
        return Memory(queries, {name: fold(x) for name, x in self.statistics.items()})

    @property
    def nbytes(self) -> int:
        """Bytes held between decisions."""
        tensors = [*self.statistics.values()] + ([] if self.queries is None else [self.queries])
        return sum(t.untyped_storage().nbytes() for t in tensors)


@dataclass
class Chunk:
    """One forward pass of a layer, as a score observes it.

    Attributes:
        q: (B, H, Q, D) post-RoPE queries; they are the last Q of the candidates.
        candidates: the tokens they could attend to, themselves included.
        scale: multiplies q·k.
        memory: what the layer remembers.
        next_position: (B,) position of the token to come in each row.
        rope: rotates and un-rotates this layer's vectors, where the recipe asked for it.
        first: whether these are the first tokens of the sequence.
        hidden: (B, Q, E) what queries and keys were made from, where the score asked for it.
    """

    q: torch.Tensor
    candidates: Candidates
    scale: float
    memory: Memory
    next_position: torch.Tensor
    rope: LayerRope | None = None
    first: bool = True
    hidden: torch.Tensor | None = None

    def even(self) -> Chunk:
        """The same pass with equally long heads in every row: where they differ, every KV head
        becomes a batch row of its own."""
        if not self.candidates.has_uneven_heads():
            return self
        heads = self.candidates.shape[1]
        batch, all_heads, new, width = self.q.shape
        return Chunk(
            self.q.reshape(batch * heads, all_heads // heads, new, width),
            self.candidates.per_head(),
            self.scale,
            self.memory.per_head(heads),
            self.next_position.repeat_interleave(heads),
            self.rope,
            self.first,
            None if self.hidden is None else self.hidden.repeat_interleave(heads, 0),
        )
