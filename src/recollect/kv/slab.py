"""Exact keys and values of one layer, as flat rows in which every KV head has its own length.

Segment s = b * K + h owns rows ``starts[s] : starts[s] + lengths[s]``; rows after that are slack
for tokens to come. With equal lengths the slab is an ordinary (B, K, T, D) cache seen through a
view; with different lengths memory is really what the heads keep, not what the longest one keeps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

# Side data of a token. A new one starts with its position, and 0 for everything else.
COLUMNS = {
    "position": torch.int32,  # of the token in its sequence
    "shift": torch.int32,  # positions its key was moved forward
    "bias": torch.float32,  # added to its logit
    "mass": torch.float32,  # attention it received
}


def growth(length: int) -> int:
    """Slack rows to leave when a segment of `length` rows has to grow: copies stay amortized."""
    return 32 + length // 32


@dataclass
class Slab:
    """Rows of keys (N, D) and values (N, Dv) of `batch` x `heads` segments.

    Attributes:
        starts, lengths: (B*K,) int64 on the CPU.
        columns: per-row side data (N,): `position` of a token in its sequence (absent while nothing
            was dropped), `bias` added to its logit, attention `mass` received so far.
        fresh: how many of the newest rows of every segment were appended since the last gather.
    """

    k: torch.Tensor
    v: torch.Tensor
    batch: int
    heads: int
    starts: torch.Tensor
    lengths: torch.Tensor
    columns: dict[str, torch.Tensor] = field(default_factory=dict)
    fresh: int = 0

    def __post_init__(self) -> None:
        self._settle()

    @classmethod
    def from_dense(cls, k: torch.Tensor, v: torch.Tensor, slack: int = 0) -> Slab:
        """Copy k (B, K, T, D) and v (B, K, T, Dv), leaving `slack` rows per head."""
        batch, heads, length, _ = k.shape
        capacity = length + slack

        def rows(x: torch.Tensor) -> torch.Tensor:
            buffer = x.new_empty(batch, heads, capacity, x.shape[-1])
            buffer[:, :, :length] = x
            return buffer.view(-1, x.shape[-1])

        starts = torch.arange(batch * heads) * capacity
        lengths = torch.full((batch * heads,), length)
        return cls(rows(k), rows(v), batch, heads, starts, lengths)

    @classmethod
    def gather(
        cls,
        k: torch.Tensor,
        v: torch.Tensor,
        index: torch.Tensor,
        lengths: torch.Tensor,
        columns: dict[str, torch.Tensor] | None = None,
        slack: int = 0,
    ) -> Slab:
        """Keep chosen tokens of dense k (B, K, T, D), v (B, K, T, Dv) and columns (B, K, T).

        `index` (sum(lengths),) lists the kept tokens of segment after segment; `lengths` (B*K,).
        """
        batch, heads, total, _ = k.shape
        token, segment = _with_slack(index, lengths.cpu(), slack)
        token, segment = token.to(k.device), segment.to(k.device)
        capacities = lengths.cpu() + slack
        kept = {
            name: column.reshape(batch * heads, total)[segment, token]
            for name, column in (columns or {}).items()
        }
        return cls(
            _rows(k, segment, token),
            _rows(v, segment, token),
            batch,
            heads,
            torch.cumsum(capacities, 0) - capacities,
            lengths.cpu().clone(),
            kept,
        )

    # -- reading ---------------------------------------------------------------------------------

    @property
    def length(self) -> int | None:
        """Common length of all heads, or None when they differ."""
        return self._length

    @property
    def longest(self) -> int:
        return int(self.lengths.max()) if self._length is None else self._length

    @property
    def nbytes(self) -> int:
        """Bytes really held, slack and side data included."""
        tensors = (self.k, self.v, self.starts, self.lengths, *self.columns.values())
        return sum(t.untyped_storage().nbytes() for t in tensors)

    def dense(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Views (B, K, T, D), (B, K, T, Dv) when all heads have one length; nothing is copied."""
        assert self._length is not None
        assert self._capacity is not None
        return tuple(
            x.view(self.batch, self.heads, self._capacity, x.shape[-1])[:, :, : self._length]
            for x in (self.k, self.v)
        )  # type: ignore[return-value]

    def column(self, name: str) -> torch.Tensor:
        """A column as a (B, K, T) view, for slabs of one length."""
        assert self._length is not None
        assert self._capacity is not None
        whole = self.columns[name].view(self.batch, self.heads, self._capacity)
        return whole[:, :, : self._length]

    def aligned(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Copies k, v (B, K, longest, ·) with every head's tokens at the end, the number of unused
        columns (B, K) in front of them, and the columns (B, K, longest)."""
        rows, padding = self.aligned_rows()
        columns = {name: column[rows] for name, column in self.columns.items()}
        return self.k[rows], self.v[rows], padding, columns

    def aligned_rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Row number of each right-aligned token (B, K, longest), and the padding (B, K)."""
        longest, shape = self.longest, (self.batch, self.heads)
        padding = longest - self.lengths
        rows = self.starts[:, None] + (torch.arange(longest) - padding[:, None]).clamp_min(0)
        rows = rows.clamp_max(max(len(self.k) - 1, 0))
        return (
            rows.view(*shape, longest).to(self.k.device),
            padding.view(*shape).to(self.k.device),
        )

    # -- changing --------------------------------------------------------------------------------

    def append(self, k: torch.Tensor, v: torch.Tensor, position: int) -> None:
        """Add tokens k (B, K, Q, D), v (B, K, Q, Dv), the first at `position` of its sequence."""
        new = k.shape[2]
        if not self._fits(new):
            self._grow(growth(self.longest) + new)
        if self._length is not None and self._capacity is not None:
            span = slice(self._length, self._length + new)
            for rows, x in ((self.k, k), (self.v, v)):
                rows.view(self.batch, self.heads, self._capacity, -1)[:, :, span] = x
            target = None
        else:
            target = (self.starts + self.lengths)[:, None] + torch.arange(new)
            target = target.flatten().to(self.k.device)
            self.k.index_copy_(0, target, k.reshape(-1, k.shape[-1]))
            self.v.index_copy_(0, target, v.reshape(-1, v.shape[-1]))
        for name, column in self.columns.items():
            self._start_column(name, column, position, new, target)
        self.lengths += new
        self.fresh += new
        if self._length is not None:
            self._length += new

    def add_column(self, name: str, values: torch.Tensor) -> None:
        """Attach side data (B, K, T) to a slab of one length."""
        assert self._capacity is not None
        column = torch.zeros(len(self.k), dtype=COLUMNS[name], device=self.k.device)
        column.view(self.batch, self.heads, self._capacity)[:, :, : self._length] = values
        self.columns[name] = column

    def drop_newest(self, tokens: int) -> None:
        """Forget the last `tokens` rows of every segment; they must be fresh ones."""
        self.lengths -= tokens
        self.fresh = max(self.fresh - tokens, 0)
        self._settle()

    def drop_oldest(self, counts: torch.Tensor) -> None:
        """Forget the first `counts` (B*K,) tokens of every segment and free their rows."""
        self.starts = self.starts + counts
        self.lengths -= counts
        self.fresh = min(self.fresh, int(self.lengths.min()))
        self._grow(growth(0))

    def drop_positions_from(self, position: int) -> None:
        """Forget every token at `position` or later."""
        rows, padding = self.aligned_rows()
        late = self.columns["position"][rows] >= position
        late &= torch.arange(rows.shape[-1], device=rows.device) >= padding[..., None]
        self.lengths -= late.sum(-1).flatten().cpu()
        self.fresh = 0
        self._settle()

    def select_batch(self, index: torch.Tensor) -> Slab:
        """A slab whose batch row i is row `index[i]` of this one."""
        index = index.cpu().to(torch.int64)
        segments = (index[:, None] * self.heads + torch.arange(self.heads)).flatten()
        lengths = self.lengths[segments]
        capacities = self._capacities()[segments]
        starts = torch.cumsum(capacities, 0) - capacities
        source = torch.repeat_interleave(self.starts[segments] - starts, capacities)
        rows = (source + torch.arange(int(capacities.sum()))).to(self.k.device)
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Slab(
            self.k.index_select(0, rows),
            self.v.index_select(0, rows),
            len(index),
            self.heads,
            starts,
            lengths,
            columns,
            self.fresh,
        )

    def copy(self) -> Slab:
        """An independent copy."""
        return self.select_batch(torch.arange(self.batch))

    def portable(self) -> Slab:
        """The slab as plain rows that can be written to a file: itself."""
        return self

    def leave(self) -> None:
        """Give up shared storage; rows of one's own need nothing."""

    # -- inside ----------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Recognize equal lengths and capacities, which have fast paths."""
        first = int(self.lengths[0]) if len(self.lengths) else 0
        self._length: int | None = first if bool((self.lengths == first).all()) else None
        capacities = self._capacities()
        capacity = int(capacities[0])
        self._capacity: int | None = capacity if bool((capacities == capacity).all()) else None
        if self._capacity is None:
            self._length = None

    def _capacities(self) -> torch.Tensor:
        ends = torch.cat([self.starts[1:], torch.tensor([len(self.k)])])
        return ends - self.starts

    def _fits(self, new: int) -> bool:
        if self._length is not None and self._capacity is not None:
            return self._length + new <= self._capacity
        return bool((self._capacities() - self.lengths).min() >= new)

    def _grow(self, slack: int) -> None:
        lengths = self.lengths
        starts = torch.cumsum(lengths + slack, 0) - (lengths + slack)
        source = torch.repeat_interleave(self.starts - starts, lengths + slack)
        rows = source + torch.arange(int((lengths + slack).sum()))
        rows = rows.clamp_max(max(len(self.k) - 1, 0)).to(self.k.device)
        if len(self.k):
            self.k, self.v = self.k.index_select(0, rows), self.v.index_select(0, rows)
            self.columns = {name: column[rows] for name, column in self.columns.items()}
        else:
            self.k = self.k.new_empty(len(rows), self.k.shape[-1])
            self.v = self.v.new_empty(len(rows), self.v.shape[-1])
            self.columns = {n: c.new_zeros(len(rows)) for n, c in self.columns.items()}
        self.starts = starts
        self._settle()

    def _start_column(
        self, name: str, column: torch.Tensor, position: int, new: int, target: torch.Tensor | None
    ) -> None:
        start: torch.Tensor = torch.zeros(new, dtype=column.dtype, device=column.device)
        if name == "position":
            start += torch.arange(position, position + new, device=column.device)
        if target is None:
            assert self._length is not None
            assert self._capacity is not None
            view = column.view(self.batch, self.heads, self._capacity)
            view[:, :, self._length : self._length + new] = start
        else:
            column[target] = start.repeat(self.batch * self.heads)


def _with_slack(
    index: torch.Tensor, lengths: torch.Tensor, slack: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token and segment of every row to be, slack rows (which repeat token 0) included."""
    segments = torch.arange(len(lengths))
    index = index.cpu()
    if slack == 0:
        return index, torch.repeat_interleave(segments, lengths)
    capacities = lengths + slack
    starts = torch.cumsum(capacities, 0) - capacities
    offsets = torch.cumsum(lengths, 0) - lengths
    target = torch.repeat_interleave(starts - offsets, lengths) + torch.arange(len(index))
    token = torch.zeros(int(capacities.sum()), dtype=torch.int64)
    token[target] = index
    return token, torch.repeat_interleave(segments, capacities)


def _rows(x: torch.Tensor, segment: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """Rows x[b, h, token] of a strided (B, K, T, D) tensor, without first making it contiguous."""
    batch, heads, total, width = x.shape
    if x.stride(3) != 1 or any(stride % width for stride in x.stride()[:3]) or not total:
        x = x.contiguous()
    by_batch, by_head, by_token = (stride // width for stride in x.stride()[:3])
    count = (batch - 1) * by_batch + (heads - 1) * by_head + (total - 1) * by_token + 1
    rows = x.as_strided((count, width), (width, 1))
    b, h = segment // heads, segment % heads
    return rows.index_select(0, b * by_batch + h * by_head + token * by_token)
