"""Exact prefixes: full chunks of tokens under chained keys, for models that keep every token.

A prompt's keys and values are cut into chunks of `chunk` tokens: what these look like, and how they
are saved. `found` has the way back.
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
from recollect.store.frames import FrameHeader, encode_layers, nbytes
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

    def check(self, header: FrameHeader, index: int) -> None:
        """Raises StoreError unless a frame says that it is chunk number `index`."""
        expected = self.header(index)
        if (header.tokens, header.first_position) != (self.tokens, expected.first_position):
            raise StoreError("the entry is another chunk than its key says")
        if (header.exactness, header.codec, header.form) != (
            expected.exactness, self.codec, expected.form,
        ):  # fmt: skip
            raise StoreError(f"the entry is {header.exactness} in codec {header.codec}")
        if header.layers != self.layers:
            raise StoreError(f"the entry has {header.layers} layers, the model {self.layers}")


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
