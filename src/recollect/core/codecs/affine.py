"""Keys and values as 1-8 bit integers: keys per channel over G tokens, values per token.

`PackedKV` holds flat rows, as the kernels read them: segment s = b * K + h owns rows
``starts[s] : starts[s] + lengths[s]``, both multiples of G, and rows after that are slack.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch

from recollect.core.codecs.base import Packed, Tile
from recollect.core.codecs.packing import check_width, pack, pack_words, unpack
from recollect.core.codecs.quantize import (
    dequantize_channels,
    dequantize_tokens,
    quantize_channels,
    quantize_tokens,
)
from recollect.errors import RecipeError

CHUNK = 1 << 18  # elements encoded at once: the working set stays in the processor's cache
TENSORS = ("k_codes", "k_scale", "k_min", "v_codes", "v_scale", "v_min")
FACTS = ("batch", "heads", "bits_k", "bits_v", "group", "value_group")


@dataclass
class PackedKV(Packed):
    """Encoded keys and values of `batch` x `heads` segments.

    Attributes:
        k_codes: (N, D * bits_k / 8) uint8, planar.
        k_scale, k_min: (N / group, D) fp16.
        v_codes: (N, Dv * bits_v / 8) uint8, planar.
        v_scale, v_min: (N, Dv / value_group) fp16.
        starts, lengths: (B*K,) int64 on the CPU.
        group: tokens that share a key's parameters.
        value_group: channels that share a value's parameters.
    """

    k_codes: torch.Tensor
    k_scale: torch.Tensor
    k_min: torch.Tensor
    v_codes: torch.Tensor
    v_scale: torch.Tensor
    v_min: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    batch: int
    heads: int
    bits_k: int
    bits_v: int
    group: int
    value_group: int

    # -- encoding --------------------------------------------------------------------------------

    @classmethod
    def encode_dense(
        cls,
        k: torch.Tensor,
        v: torch.Tensor,
        bits_k: int = 4,
        bits_v: int | None = None,
        group: int = 32,
    ) -> Self:
        """Encode k (B, K, n, D) and v (B, K, n, Dv); n is a multiple of `group`."""
        batch, heads, length, _ = k.shape
        _check_lengths(length, group)
        lengths = torch.full((batch * heads,), length)
        packed = cls._empty(k, v, lengths, batch, heads, bits_k, bits_v, group)
        for rows, b, head, token in _dense_chunks(batch, heads, length, k.shape[-1], group):
            packed._write(rows, _joined(k[b, head, token]), _joined(v[b, head, token]))
        return packed

    @classmethod
    def encode_ragged(
        cls,
        k: torch.Tensor,
        v: torch.Tensor,
        starts: torch.Tensor,
        lengths: torch.Tensor,
        *,
        batch: int,
        heads: int,
        bits_k: int = 4,
        bits_v: int | None = None,
        group: int = 32,
    ) -> Self:
        """Encode the first `lengths` (B*K,) rows of every segment of k (N, D) and v (N, Dv).

        Every length is a multiple of `group`, or 0.
        """
        starts, lengths = starts.cpu().to(torch.int64), lengths.cpu().to(torch.int64)
        _check_lengths(lengths, group)
        packed = cls._empty(k, v, lengths, batch, heads, bits_k, bits_v, group)
        source = torch.repeat_interleave(starts - packed.starts, lengths)
        source += torch.arange(len(source))
        step = _tokens_per_chunk(k.shape[-1], group)
        for first in range(0, len(source), step):
            index = source[first : first + step].to(k.device)
            packed._write(slice(first, first + len(index)), k[index], v[index])
        return packed

    def append(self, k: torch.Tensor, v: torch.Tensor) -> None:
        """Encode k (B, K, m, D), v (B, K, m, Dv) behind every segment; m is a multiple of `group`.

        Storage grows by a sixteenth at a time, so that appending costs amortized constant time.
        """
        new = k.shape[2]
        _check_lengths(new, self.group)
        if bool((self._capacities() - self.lengths < new).any()):
            slack = self.lengths // 16 // self.group * self.group + self.group
            self._reserve(self.lengths + new + slack)
        rows = ((self.starts + self.lengths)[:, None] + torch.arange(new)).flatten()
        self._write(rows.to(k.device), _joined(k), _joined(v))
        self.lengths = self.lengths + new

    # -- reading ---------------------------------------------------------------------------------

    @property
    def granule(self) -> int:
        return self.group

    @property
    def width(self) -> int:
        """D: channels of a key."""
        return self.k_scale.shape[-1]

    @property
    def value_width(self) -> int:
        """Dv: channels of a value."""
        return self.v_scale.shape[-1] * self.value_group

    @property
    def device(self) -> torch.device:
        return self.k_codes.device

    @property
    def nbytes(self) -> int:
        """Bytes really held: codes, parameters, addresses and slack."""
        tensors = [getattr(self, name) for name in (*TENSORS, "starts", "lengths")]
        return sum(t.untyped_storage().nbytes() for t in tensors)

    def decode_segment(
        self, segment: int, begin: int = 0, end: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys (n, D) and values (n, Dv) of tokens ``begin:end`` of one segment, in float32."""
        length = int(self.lengths[segment])
        span = range(length)[begin:end]
        tokens = torch.arange(span.start, span.stop) + self.starts[segment]
        return self._decode(tokens.to(self.device))

    def decode_tile(self, begin: int, end: int) -> Tile:
        """Tokens ``begin:end`` of every segment in float32; zeros where a segment is shorter."""
        token = torch.arange(begin, end)
        valid = token < self.lengths[:, None]
        rows = torch.where(valid, self.starts[:, None] + token, 0).to(self.device)
        valid = valid.to(self.device)
        if not len(self.k_codes):
            zeros = torch.zeros(*rows.shape, self.width + self.value_width, device=self.device)
            return Tile(zeros[..., : self.width], zeros[..., self.width :], valid)
        k, v = self._decode(rows)
        hidden = ~valid[..., None]
        return Tile(k.masked_fill_(hidden, 0.0), v.masked_fill_(hidden, 0.0), valid)

    # -- copying and saving ----------------------------------------------------------------------

    def select_batch(self, index: torch.Tensor) -> Self:
        """A copy without slack whose batch row i is row ``index[i]`` of this one."""
        index = index.cpu().to(torch.int64)
        segments = (index[:, None] * self.heads + torch.arange(self.heads)).flatten()
        starts, lengths = self.starts[segments], self.lengths[segments]
        return self._gathered(starts, lengths, lengths, len(index))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything held, as plain tensors."""
        tensors = {name: getattr(self, name) for name in (*TENSORS, "starts", "lengths")}
        return {**tensors, "facts": torch.tensor([getattr(self, name) for name in FACTS])}

    @classmethod
    def from_state_dict(cls, state: dict[str, torch.Tensor]) -> Self:
        """The inverse of `state_dict`."""
        tensors = {name: state[name] for name in TENSORS}
        return cls._built(tensors, state["starts"], state["lengths"], state["facts"].tolist())

    def to_kivi(self) -> tuple[torch.Tensor, ...]:
        """KIVI's own layout of segments of equal length: codes, scale, minimum of K, then of V.

        Codes are int32 words, (B, K, D, T * bits / 32) for K and (B, K, T, Dv * bits / 32) for V;
        parameters are (B, K, D, T / group) and (B, K, T, Dv / value_group).
        """
        length = int(self.lengths[0])
        if bool((self.lengths != length).any()):
            raise RecipeError("KIVI's layout needs segments of equal length")
        shape = (self.batch, self.heads, length)
        rows = (self.starts[:, None] + torch.arange(length)).flatten().to(self.device)
        groups = rows[:: self.group] // self.group
        k_codes = unpack(self.k_codes[rows], self.bits_k).view(*shape, self.width)
        v_codes = unpack(self.v_codes[rows], self.bits_v).view(*shape, self.value_width)
        k_parameters = (
            x[groups].view(self.batch, self.heads, -1, self.width).transpose(2, 3).contiguous()
            for x in (self.k_scale, self.k_min)
        )
        v_parameters = (x[rows].view(*shape, -1) for x in (self.v_scale, self.v_min))
        return (
            pack_words(k_codes.transpose(2, 3), self.bits_k),
            *k_parameters,
            pack_words(v_codes, self.bits_v),
            *v_parameters,
        )

    # -- inside ----------------------------------------------------------------------------------

    @classmethod
    def _empty(
        cls,
        k: torch.Tensor,
        v: torch.Tensor,
        lengths: torch.Tensor,
        batch: int,
        heads: int,
        bits_k: int,
        bits_v: int | None,
        group: int,
    ) -> Self:
        bits_v = bits_k if bits_v is None else bits_v
        width, value_width, rows = k.shape[-1], v.shape[-1], int(lengths.sum())
        check_width(width, bits_k)
        check_width(value_width, bits_v)
        value_group = min(group, value_width)
        if value_width % value_group:
            raise RecipeError(
                f"a value width of {value_width} does not split into groups of {value_group}; "
                f"choose a group that divides it"
            )
        shapes = {
            "k_codes": (rows, width * bits_k // 8),
            "k_scale": (rows // group, width),
            "k_min": (rows // group, width),
            "v_codes": (rows, value_width * bits_v // 8),
            "v_scale": (rows, value_width // value_group),
            "v_min": (rows, value_width // value_group),
        }
        tensors = {
            name: torch.empty(
                shape,
                dtype=torch.uint8 if name.endswith("codes") else torch.float16,
                device=k.device,
            )
            for name, shape in shapes.items()
        }
        starts = torch.cumsum(lengths, 0) - lengths
        facts = [batch, heads, bits_k, bits_v, group, value_group]
        return cls._built(tensors, starts, lengths, facts)

    @classmethod
    def _built(
        cls,
        tensors: dict[str, torch.Tensor],
        starts: torch.Tensor,
        lengths: torch.Tensor,
        facts: list[int],
    ) -> Self:
        fields: dict[str, Any] = {**tensors, **dict(zip(FACTS, facts, strict=True))}
        return cls(starts=starts.cpu(), lengths=lengths.cpu(), **fields)

    def _write(self, rows: slice | torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Encode k (n, D), v (n, Dv) into n rows, whole groups of them."""
        if isinstance(rows, slice):
            groups: slice | torch.Tensor = slice(rows.start // self.group, rows.stop // self.group)
        else:
            groups = rows[:: self.group] // self.group
        keys = quantize_channels(k, self.bits_k, self.group)
        self.k_codes[rows] = pack(keys.codes, self.bits_k)
        self.k_scale[groups], self.k_min[groups] = keys.scale, keys.minimum
        values = quantize_tokens(v, self.bits_v, self.value_group)
        self.v_codes[rows] = pack(values.codes, self.bits_v)
        self.v_scale[rows], self.v_min[rows] = values.scale, values.minimum

    def _decode(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys (…, n, D) and values (…, n, Dv) of arbitrary rows (…, n)."""
        groups = rows // self.group
        k = dequantize_channels(
            unpack(self.k_codes[rows], self.bits_k), self.k_scale[groups], self.k_min[groups], 1
        )
        v = dequantize_tokens(
            unpack(self.v_codes[rows], self.bits_v),
            self.v_scale[rows],
            self.v_min[rows],
            self.value_group,
        )
        return k, v

    def _capacities(self) -> torch.Tensor:
        ends = torch.cat([self.starts[1:], torch.tensor([len(self.k_codes)])])
        return ends - self.starts

    def _reserve(self, capacities: torch.Tensor) -> None:
        """Give every segment room for `capacities` (B*K,) rows."""
        grown = self._gathered(self.starts, self.lengths, capacities, self.batch)
        for name in (*TENSORS, "starts"):
            setattr(self, name, getattr(grown, name))

    def _gathered(
        self, starts: torch.Tensor, lengths: torch.Tensor, capacities: torch.Tensor, batch: int
    ) -> Self:
        """A copy of the segments at `starts`, laid out with room for `capacities` rows each."""
        target = torch.cumsum(capacities, 0) - capacities
        tensors = {}
        for name in TENSORS:
            source = getattr(self, name)
            per = self.group if name in ("k_scale", "k_min") else 1
            copy = source.new_empty(int(capacities.sum()) // per, source.shape[-1])
            for old, new, n in zip(starts.tolist(), target.tolist(), lengths.tolist(), strict=True):
                copy[new // per : (new + n) // per] = source[old // per : (old + n) // per]
            tensors[name] = copy
        facts = [batch, self.heads, self.bits_k, self.bits_v, self.group, self.value_group]
        return self._built(tensors, target, lengths.clone(), facts)


def _check_lengths(lengths: int | torch.Tensor, group: int) -> None:
    if group < 1:
        raise RecipeError(f"group must be at least 1, got {group}")
    if bool(torch.as_tensor(lengths % group).any()):
        raise RecipeError(f"tokens are encoded in multiples of the group of {group}, got {lengths}")


def _joined(x: torch.Tensor) -> torch.Tensor:
    """Rows (n, D) of a tensor (…, D)."""
    return x.reshape(-1, x.shape[-1])


def _tokens_per_chunk(width: int, group: int) -> int:
    return max(1, CHUNK // (width * group)) * group


def _dense_chunks(
    batch: int, heads: int, length: int, width: int, group: int
) -> Iterator[tuple[slice, slice, slice, slice]]:
    """Parts of a dense cache, about CHUNK elements each: their rows, their place in (B, K, T)."""
    step = _tokens_per_chunk(width, group)
    whole = batch * heads * length <= step
    if whole:
        yield slice(0, batch * heads * length), slice(None), slice(None), slice(None)
        return
    together = max(1, step // max(length, 1))  # heads at once
    for b in range(batch):
        for head in range(0, heads, together):
            last = min(head + together, heads)
            for token in range(0, length, step):
                end = min(token + step, length)
                row = (b * heads + head) * length + token
                count = (last - head) * (end - token)
                yield slice(row, row + count), slice(b, b + 1), slice(head, last), slice(token, end)
