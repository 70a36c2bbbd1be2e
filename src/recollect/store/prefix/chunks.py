"""Exact prefixes: full chunks of tokens under chained keys, for models that keep every token.

A prompt's keys and values are cut into chunks of `chunk` tokens; the longest run of leading chunks
that the store has is put into the host's cache, bit for bit as it was computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache

from recollect.errors import StoreError
from recollect.kv.cache import RecollectCache
from recollect.kv.layer import KVLayer
from recollect.store.frames import Frame, FrameHeader, decode_layer, encode_layers, nbytes, unpack
from recollect.store.prefix.calls import Prompt
from recollect.store.prefix.report import PrefixReport
from recollect.store.store import Store

KV = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class ChunkFormat:
    """What chunks of a model look like.

    Attributes:
        model: the model's fingerprint.
        layers: layers of its cache.
        dtype: of its keys and values.
        tokens: per chunk.
        codec: of the frames: ``dense``, or a lossy one.
    """

    model: str
    layers: int
    dtype: torch.dtype
    tokens: int
    codec: str

    def keys(self, store: Store, row: Sequence[int]) -> list[bytes]:
        """Keys of the full chunks of one prompt. Lossy ones never meet exact ones."""
        scope = "" if self.codec == "dense" else f"codec {self.codec}"
        return store.chunk_keys(f"{self.model}/{self.dtype}", row, self.tokens, scope=scope)

    def header(self, index: int) -> FrameHeader:
        """Of the frame of chunk number `index`."""
        return FrameHeader(self.model, self.tokens, index * self.tokens)

    def read(self, store: Store, key: bytes, index: int) -> tuple[list[KV], Frame] | None:
        """Keys (K, n, D) and values of all layers of a chunk, or None for a miss.

        Raises:
            StoreError: there is an entry, but it is not what it should be.
        """
        lease = store.get(key)
        if lease is None:
            return None
        with lease:  # views of its bytes keep them in place afterwards
            frame = unpack(lease.data, model=self.model, dtype=self.dtype)
        header, expected = frame.header, self.header(index)
        if (header.tokens, header.first_position) != (self.tokens, expected.first_position):
            raise StoreError("the entry is another chunk than its key says")
        if (header.exactness, header.codec, header.form) != (
            expected.exactness, self.codec, expected.form,
        ):  # fmt: skip
            raise StoreError(f"the entry is {header.exactness} in codec {header.codec}")
        if header.layers != self.layers:
            raise StoreError(f"the entry has {header.layers} layers, the model {self.layers}")
        return [decode_layer(frame, layer) for layer in range(self.layers)], frame


@dataclass(frozen=True)
class Chunks:
    """What was found for a batch: the first `columns` columns of every row.

    Attributes:
        columns: padding included.
        rows: for every row its chunks, each a list over layers.
        padding: columns in front of each row.
    """

    columns: int
    rows: list[list[list[KV]]]
    padding: tuple[int, ...]

    @property
    def matched(self) -> int:
        """Real tokens of all rows."""
        return sum(max(self.columns - padding, 0) for padding in self.padding)

    def layer(self, index: int) -> KV:
        """Keys (B, K, columns, D) and values of a layer; zeros stand for padding."""
        rows = [self._row(row, index) for row in range(len(self.rows))]
        k, v = zip(*rows, strict=True)
        return torch.stack(k), torch.stack(v)

    def _row(self, row: int, layer: int) -> KV:
        model = next(chunk for chunks in self.rows for chunk in chunks)[layer]
        padding = min(self.padding[row], self.columns)
        out = []
        for kind in (0, 1):
            parts = [chunk[layer][kind] for chunk in self.rows[row]]
            heads, _, width = model[kind].shape
            front = model[kind].new_zeros(heads, padding, width)
            out.append(torch.cat([front, *parts], dim=1)[:, : self.columns])
        return out[0], out[1]


def find(form: ChunkFormat, store: Store, prompt: Prompt, report: PrefixReport) -> Chunks | None:
    """The longest stored prefix that all rows of a batch have, one token short of the shortest.

    At least one token is always left to compute: its logits are what the call is for.
    """
    keys = [form.keys(store, prompt.row(row)) for row in range(len(prompt.ids))]
    present = [store.longest(row) for row in keys]
    columns = _columns(form, prompt, present)
    if columns <= min(prompt.padding):
        return None
    read: dict[bytes, list[KV]] = {}
    for row, row_keys in enumerate(keys):
        wanted = -(-max(columns - prompt.padding[row], 0) // form.tokens)
        present[row] = _read_run(form, store, row_keys[:wanted], read, report)
    columns = _columns(form, prompt, present)
    if columns <= min(prompt.padding):
        return None
    rows = []
    for row, row_keys in enumerate(keys):
        wanted = -(-max(columns - prompt.padding[row], 0) // form.tokens)
        rows.append([read[key] for key in row_keys[:wanted]])
    return Chunks(columns, rows, prompt.padding)


def fill(cache: Cache, found: Chunks, devices: Sequence[torch.device]) -> None:
    """Put a prefix into an empty cache of the host, or a plain one of ours, layer by layer."""
    padding = torch.tensor(found.padding) if any(found.padding) else None
    for index, device in enumerate(devices):
        k, v = (x.to(device) for x in found.layer(index))
        if not isinstance(cache, RecollectCache):
            cache.update(k, v, index)
            continue
        layer = cache.layers[index]
        assert isinstance(layer, KVLayer)
        layer.lazy_initialization(k, v)
        layer.hold(k, v)
        layer.seen = found.columns
        layer.padding = None if padding is None else padding.to(k.device)


def snapshot(cache: Cache) -> list[KV]:
    """Keys and values (B, K, T, D) of all layers, as they are now and stay.

    The host's layers replace their tensors when they grow, and so need no copy.
    """
    if not isinstance(cache, RecollectCache):
        layers: list[Any] = cache.layers
        return [(layer.keys, layer.values) for layer in layers]
    return [layer.slab.copy().dense() for layer in cache.governed if layer.slab is not None]


def save(
    form: ChunkFormat,
    store: Store,
    prompt: Prompt,
    layers: list[KV],
    seconds_per_token: float,
    report: PrefixReport,
) -> None:
    """Write the full chunks of all rows that the store does not have."""
    for row in range(len(prompt.ids)):
        for index, key in enumerate(form.keys(store, prompt.row(row))):
            if store.contains(key):
                continue
            first = prompt.padding[row] + index * form.tokens
            span = slice(first, first + form.tokens)
            pairs = [(k[row, :, span], v[row, :, span]) for k, v in layers]
            buffers = encode_layers(pairs, form.header(index), form.codec)
            cost = seconds_per_token * form.tokens
            if store.put(key, buffers, cost_seconds=cost, tokens=form.tokens):
                report.saved += 1
                report.saved_bytes += nbytes(buffers)
            else:
                report.refused += 1


def _columns(form: ChunkFormat, prompt: Prompt, present: Sequence[int]) -> int:
    """Columns that all rows have, when row i has its first ``present[i]`` chunks."""
    reach = [
        padding + count * form.tokens
        for padding, count in zip(prompt.padding, present, strict=True)
    ]
    return min(*reach, prompt.width - 1)


def _read_run(
    form: ChunkFormat,
    store: Store,
    keys: Sequence[bytes],
    read: dict[bytes, list[KV]],
    report: PrefixReport,
) -> int:
    """Read chunks one after the other until one is missing; returns how many there are."""
    for index, key in enumerate(keys):
        if key in read:
            continue
        try:
            found = form.read(store, key, index)
        except StoreError:
            store.delete(key)
            report.unusable += 1
            return index
        if found is None:
            return index
        read[key] = found[0]
        report.entries += 1
        report.loaded += found[1].nbytes
    return len(keys)
