"""Results of modules by the content of their inputs: a bounded store, whole or in 8 bits."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from recollect.core.codecs.quantize import Quantized, dequantize_tokens, quantize_tokens
from recollect.diffusion.engine.values import Template, Value, nbytes, split

CODECS = ("dense", "int8")
Key = tuple[str, bytes]
"""A module's name, and the digest of what it was given."""


class Row(NamedTuple):
    """A stored result: tensors or their codes, and the shape around them."""

    value: tuple[torch.Tensor | Quantized, ...]
    dtypes: tuple[torch.dtype, ...]
    template: Template
    nbytes: int

    def tensors(self) -> list[torch.Tensor]:
        """The tensors of the result, in memory of their own: callers may write to them."""
        return [
            v.clone()
            if isinstance(v, torch.Tensor)
            else dequantize_tokens(*v, group=v.codes.shape[-1]).to(dtype)
            for v, dtype in zip(self.value, self.dtypes, strict=True)
        ]

    def read(self) -> Any:
        """The result."""
        return self.template.fill(self.tensors())


class Rows:
    """Rows by key; the one unused for longest goes first.

    Args:
        most: bytes held at most.

    Attributes:
        nbytes: bytes held.
    """

    def __init__(self, most: int) -> None:
        self.most, self.nbytes = most, 0
        self._known: OrderedDict[Key, Row] = OrderedDict()

    def find(self, key: Key) -> Row | None:
        """The row of that key, and a note that it was used."""
        row = self._known.get(key)
        if row is not None:
            self._known.move_to_end(key)
        return row

    def insert(self, key: Key, value: Value, template: Template, codec: str) -> Row:
        """Store a result, unless it is larger than everything may be.

        Args:
            key: its key.
            value, template: the result.
            codec: `dense`, or `int8` with a scale and a minimum for each last axis.
        """
        stored: list[torch.Tensor | Quantized] = []
        for tensor in value:
            coded = codec == "int8" and tensor.is_floating_point() and tensor.ndim
            stored.append(
                quantize_tokens(tensor, 8, tensor.shape[-1]) if coded else tensor.detach().clone()
            )
        row = _row(stored, tuple(t.dtype for t in value), template)
        if row.nbytes <= self.most:
            self._put(key, row)
        return row

    def drop(self, name: str) -> None:
        """Forget all rows of a module."""
        for key in [key for key in self._known if key[0] == name]:
            self.nbytes -= self._known.pop(key).nbytes

    def clear(self) -> None:
        """Forget all rows."""
        self._known.clear()
        self.nbytes = 0

    def counts(self) -> Counter[str]:
        """Number of rows by module."""
        return Counter(name for name, _ in self._known)

    def state(self, names: set[str]) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
        """The rows of some modules, as tensors and the dtypes of each row's result."""
        tensors: dict[str, torch.Tensor] = {}
        dtypes: dict[str, list[str]] = {}
        for (name, digest), row in self._known.items():
            if name in names:
                key = f"{name}/{digest.hex()}"
                dtypes[key] = [str(dtype).removeprefix("torch.") for dtype in row.dtypes]
                for place, value in enumerate(row.value):
                    parts = value if isinstance(value, Quantized) else (value,)
                    tensors |= {f"{key}/{place}/{n}": part for n, part in enumerate(parts)}
        return tensors, dtypes

    def load(
        self, tensors: Mapping[str, torch.Tensor], dtypes: Mapping[str, list[str]], prefix: str
    ) -> None:
        """Take what `state` gave; names of tensors begin with `prefix`."""
        for key, kinds in dtypes.items():
            stored: list[torch.Tensor | Quantized] = []
            for place in range(len(kinds)):
                names = [f"{prefix}{key}/{place}/{n}" for n in range(3)]
                parts = [tensors[name] for name in names if name in tensors]
                stored.append(Quantized(*parts) if len(parts) == 3 else parts[0])
            empty = torch.empty(0)
            _, template = split(empty if len(kinds) == 1 else (empty,) * len(kinds))
            name, digest = key.split("/")
            row = _row(stored, tuple(getattr(torch, kind) for kind in kinds), template)
            self._put((name, bytes.fromhex(digest)), row)

    def _put(self, key: Key, row: Row) -> None:
        if key in self._known:
            self.nbytes -= self._known.pop(key).nbytes
        self._known[key] = row
        self.nbytes += row.nbytes
        while self.nbytes > self.most:
            self.nbytes -= self._known.popitem(last=False)[1].nbytes


def content(tensor: torch.Tensor) -> np.ndarray:
    """The bytes of a tensor, one after another."""
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8).cpu().numpy()


def digest(given: Value, around: Template) -> bytes:
    """Of inputs: their shapes, dtypes, devices and bits, and whatever is no tensor."""
    found = hashlib.blake2b(f"{around.spec}{around.rest}".encode(), digest_size=16)
    for tensor in given:
        found.update(f"{tuple(tensor.shape)}{tensor.dtype}{tensor.device}".encode())
        found.update(content(tensor).tobytes())
    return found.digest()


def _row(
    stored: list[torch.Tensor | Quantized], dtypes: tuple[torch.dtype, ...], template: Template
) -> Row:
    size = sum(nbytes((v,) if isinstance(v, torch.Tensor) else v) for v in stored)
    return Row(tuple(stored), dtypes, template, size)
