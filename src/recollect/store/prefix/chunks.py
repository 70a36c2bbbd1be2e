"""Exact prefixes: full chunks of tokens under chained keys, for models that keep every token.

A prompt's keys and values are cut into chunks of `chunk` tokens; the longest run of leading chunks
that the store has is put into the host's cache, bit for bit as it was computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from recollect.errors import StoreError
from recollect.kv.cache import RecollectCache
from recollect.kv.layer import KVLayer
from recollect.store.frames import FrameHeader, decode_layer, encode_layers, nbytes, unpack
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
        nbytes: of one frame, about.
    """

    model: str
    layers: int
    dtype: torch.dtype
    tokens: int
    codec: str
    nbytes: int

    @classmethod
    def of(cls, model: PreTrainedModel, name: str, layers: int, tokens: int, codec: str) -> Self:
        """The format for a model with that fingerprint. Raises StoreError for an unknown codec."""
        config = model.config.get_text_config()
        queries = config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", None) or queries
        width = getattr(config, "head_dim", None) or config.hidden_size // queries
        noise = torch.Generator().manual_seed(0)  # leaves the user's own random numbers alone
        sample = torch.randn(heads, tokens, width, generator=noise).to(model.dtype)
        frame = encode_layers([(sample, sample)], FrameHeader(name, tokens), codec)
        return cls(name, layers, model.dtype, tokens, codec, layers * nbytes(frame))

    def keys(self, store: Store, row: Sequence[int]) -> list[bytes]:
        """Keys of the full chunks of one prompt. Lossy ones never meet exact ones."""
        scope = "" if self.codec == "dense" else f"codec {self.codec}"
        return store.chunk_keys(f"{self.model}/{self.dtype}", row, self.tokens, scope=scope)

    def header(self, index: int) -> FrameHeader:
        """Of the frame of chunk number `index`."""
        return FrameHeader(self.model, self.tokens, index * self.tokens)

    def read(self, data: memoryview, index: int) -> list[KV]:
        """Keys (K, n, D) and values of all layers from the frame of chunk number `index`.

        Raises:
            StoreError: it is not what it should be.
        """
        frame = unpack(data, model=self.model, dtype=self.dtype)
        header, expected = frame.header, self.header(index)
        if (header.tokens, header.first_position) != (self.tokens, expected.first_position):
            raise StoreError("the entry is another chunk than its key says")
        if (header.exactness, header.codec, header.form) != (
            expected.exactness, self.codec, expected.form,
        ):  # fmt: skip
            raise StoreError(f"the entry is {header.exactness} in codec {header.codec}")
        if header.layers != self.layers:
            raise StoreError(f"the entry has {header.layers} layers, the model {self.layers}")
        return [decode_layer(frame, layer) for layer in range(self.layers)]


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
    """The longest stored prefix that all rows of a batch have and that is worth loading.

    At least one token is always left to compute: its logits are what the call is for.
    """
    read: dict[bytes, list[KV]] = {}
    rows = [_leading(form, store, prompt.row(row), read, report) for row in range(len(prompt.ids))]
    reach = [
        padding + len(row) * form.tokens for padding, row in zip(prompt.padding, rows, strict=True)
    ]
    columns = min(*reach, prompt.width - 1)
    if columns <= min(prompt.padding):
        return None
    for index, padding in enumerate(prompt.padding):
        del rows[index][-(-max(columns - padding, 0) // form.tokens) :]
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
            try:
                buffers = encode_layers(pairs, form.header(index), form.codec)
            except StoreError:  # values that are not finite, under a lossy codec
                report.refused += 1
                continue
            cost = seconds_per_token * form.tokens
            if store.put(key, buffers, cost_seconds=cost, tokens=form.tokens):
                report.saved += 1
                report.saved_bytes += nbytes(buffers)
            else:
                report.refused += 1


def _leading(
    form: ChunkFormat,
    store: Store,
    tokens: Sequence[int],
    read: dict[bytes, list[KV]],
    report: PrefixReport,
) -> list[list[KV]]:
    """The leading chunks of one prompt that are stored, sound, and quicker to load than to compute.

    `read` collects chunks by key: rows of a batch often begin alike.
    """
    keys = form.keys(store, tokens)
    leases = store.load(keys, len(tokens), nbytes=form.nbytes, chunk=form.tokens)
    if len(leases) < len(keys):
        report.declined += (store.longest(keys) - len(leases)) * form.tokens
    found = []
    for index, (key, lease) in enumerate(zip(keys, leases, strict=False)):
        if key not in read:
            try:
                read[key] = form.read(lease.data, index)
            except StoreError:
                store.set_aside(key)
                report.unusable += 1
                break
            report.entries += 1
            report.loaded += lease.nbytes
        found.append(read[key])
    for lease in leases:
        lease.release()  # the chunks are views of their bytes, and keep them in place
    return found
