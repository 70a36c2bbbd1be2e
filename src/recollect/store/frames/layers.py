"""Keys and values of a run of tokens as a frame, layer by layer, under any of the codecs.

``dense`` keeps the bits; ``int8`` … ``int1`` are the affine codes of `core.codecs.affine`;
``cachegen-0`` (best) … ``cachegen-3`` (smallest) are quantized and entropy-coded
(`core.codecs.cachegen`). To add one, write a `LayerCodec` and enter it in `_codecs`.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from recollect.core.codecs import cachegen
from recollect.core.codecs.affine import PackedKV
from recollect.errors import StoreError
from recollect.store.frames.container import DTYPES, Buffer, Frame, pack
from recollect.store.frames.header import JSON, FrameHeader

MOST_HEADS = 1 << 16  # per layer, and channels of a head

KV = tuple[torch.Tensor, torch.Tensor]
Sections = Mapping[str, torch.Tensor | bytes]


class Shape(NamedTuple):
    """Of one layer: K heads, width D of keys and Dv of values."""

    heads: int
    width: int
    value_width: int


class LayerCodec(ABC):
    """How one layer becomes sections, and back."""

    @abstractmethod
    def encode(self, k: torch.Tensor, v: torch.Tensor, layer: int, layers: int) -> Sections:
        """Sections of k (K, n, D) and v (K, n, Dv), on the CPU."""

    @abstractmethod
    def decode(self, sections: Mapping[str, torch.Tensor], shape: Shape, tokens: int) -> KV:
        """The inverse, in any float dtype. `sections` raises StoreError for absent names, and their
        contents are not to be trusted."""


@dataclass(frozen=True)
class Dense(LayerCodec):
    """The bits as they are."""

    def encode(self, k: torch.Tensor, v: torch.Tensor, layer: int, layers: int) -> Sections:
        return {"k": k, "v": v}

    def decode(self, sections: Mapping[str, torch.Tensor], shape: Shape, tokens: int) -> KV:
        return sections["k"], sections["v"]


@dataclass(frozen=True)
class Affine(LayerCodec):
    """Integers of `bits` bits with fp16 scale and minimum per group (2402.02750).

    The last group is filled up with its last token.
    """

    bits: int
    group: int = 32

    def encode(self, k: torch.Tensor, v: torch.Tensor, layer: int, layers: int) -> Sections:
        k, v = (self._filled(x)[None].float() for x in (k, v))
        state = PackedKV.encode_dense(k, v, self.bits, group=self.group).state_dict()
        return {name: state[name] for name in self._shapes(Shape(0, 0, 0), 0)}

    def decode(self, sections: Mapping[str, torch.Tensor], shape: Shape, tokens: int) -> KV:
        rows = -(-tokens // self.group) * self.group
        tensors = {}
        for name, (expected, dtype) in self._shapes(shape, rows).items():
            tensors[name] = found = sections[name]
            if found.shape != expected or found.dtype != dtype:
                raise StoreError(f"the frame's {name} are {list(found.shape)} {found.dtype}")
        lengths = torch.full((shape.heads,), rows)
        packed = PackedKV(
            **tensors, starts=torch.arange(shape.heads) * rows, lengths=lengths, batch=1,
            heads=shape.heads, bits_k=self.bits, bits_v=self.bits, group=self.group,
            value_group=min(self.group, shape.value_width),
        )  # fmt: skip
        k, v, _ = packed.decode_tile(0, tokens)
        return k, v

    def _filled(self, x: torch.Tensor) -> torch.Tensor:
        missing = -x.shape[1] % self.group
        return torch.cat([x, x[:, -1:].expand(-1, missing, -1)], dim=1) if missing else x

    def _shapes(self, shape: Shape, rows: int) -> dict[str, tuple[tuple[int, int], torch.dtype]]:
        heads, width, value_width = shape
        n, value_groups = heads * rows, value_width // max(1, min(self.group, value_width))
        codes, parameter = torch.uint8, torch.float16
        return {
            "k_codes": ((n, width * self.bits // 8), codes),
            "k_scale": ((n // self.group, width), parameter),
            "k_min": ((n // self.group, width), parameter),
            "v_codes": ((n, value_width * self.bits // 8), codes),
            "v_scale": ((n, value_groups), parameter),
            "v_min": ((n, value_groups), parameter),
        }


@dataclass(frozen=True)
class CacheGen(LayerCodec):
    """Quantized by layer, predicted and entropy-coded (2310.07240)."""

    level: int

    def encode(self, k: torch.Tensor, v: torch.Tensor, layer: int, layers: int) -> Sections:
        width = cachegen.bin_width(self.level, layer, layers)
        return {"k": cachegen.encode(k, width), "v": cachegen.encode(v, width)}

    def decode(self, sections: Mapping[str, torch.Tensor], shape: Shape, tokens: int) -> KV:
        k = cachegen.decode(sections["k"].numpy(), shape.heads, tokens, shape.width)
        v = cachegen.decode(sections["v"].numpy(), shape.heads, tokens, shape.value_width)
        return k, v


def encode_layers(
    layers: Iterable[KV], header: FrameHeader, codec: str = "dense", *, threads: int | None = None
) -> list[Buffer]:
    """A frame of k (K, n, D) and v (K, n, Dv) of every layer; n is ``header.tokens``.

    Args:
        header: its codec, number of layers, and facts on dtype and shapes are filled in here.
        codec: ``dense``, ``int8`` … ``int1``, ``cachegen-0`` (best) … ``cachegen-3`` (smallest).
        threads: layers encoded at once; as many as torch uses if left out.

    Raises:
        StoreError: unknown codec, shapes that do not fit together, dtypes that are no floats, or
            NaN and infinities under a lossy codec.
        RecipeError: a width the codec cannot pack.
    """
    how = find_codec(codec)
    pairs = [(k.detach().cpu(), v.detach().cpu()) for k, v in layers]
    shapes = [_shape(k, v, header.tokens) for k, v in pairs]
    dtypes = {x.dtype for pair in pairs for x in pair}
    if len(dtypes) > 1 or any(not dtype.is_floating_point for dtype in dtypes):
        raise StoreError(f"keys and values must share one float dtype, got {dtypes}")
    if codec != "dense" and not all(_is_finite(x) for pair in pairs for x in pair):
        raise StoreError(f"keys or values are not finite: {codec} cannot hold them, dense can")

    def encode(layer: int) -> Sections:
        return how.encode(*pairs[layer], layer, len(pairs))

    threads = 1 if codec == "dense" else threads or torch.get_num_threads()
    if threads == 1:
        encoded = [encode(layer) for layer in range(len(pairs))]
    else:
        with ThreadPoolExecutor(threads) as pool:
            encoded = list(pool.map(encode, range(len(pairs))))
    facts: dict[str, JSON] = {
        **header.facts,
        "dtype": str(dtypes.pop()).removeprefix("torch.") if dtypes else "float32",
        "shapes": [[*shape] for shape in shapes],
    }
    header = replace(header, codec=codec, layers=len(pairs), facts=facts)
    sections = {f"{i}.{n}": x for i, own in enumerate(encoded) for n, x in own.items()}
    return pack(header, sections)


def decode_layer(frame: Frame, layer: int) -> KV:
    """Keys (K, n, D) and values (K, n, Dv) of one layer, in the dtype they had.

    Dense ones are views of the frame: read-only, and valid while its lease is held.

    Raises:
        StoreError: no such layer, unknown codec, or contents that fail their checks.
    """
    header = frame.header
    how = find_codec(header.codec)
    if not 0 <= layer < header.layers:
        raise StoreError(f"the frame has layers 0 to {header.layers - 1}, not {layer}")
    shape, dtype = _stored_shape(header, layer), _stored_dtype(header)
    k, v = how.decode(_Own(frame, layer), shape, header.tokens)
    expected = (shape.heads, header.tokens, shape.width)
    if k.shape != expected or v.shape != (*expected[:2], shape.value_width):
        raise StoreError(f"layer {layer} of the frame does not have the shape it claims")
    if header.codec == "dense" and not k.dtype == v.dtype == dtype:
        raise StoreError(f"layer {layer} of the frame is {k.dtype}, not the {dtype} it claims")
    return k.to(dtype), v.to(dtype)


@functools.cache
def find_codec(name: str) -> LayerCodec:
    """The codec of that name. Raises StoreError when there is none."""
    known = _codecs()
    if name not in known:
        raise StoreError(f"unknown frame codec '{name}'; there are: {', '.join(known)}")
    return known[name]


@functools.cache
def _codecs() -> dict[str, LayerCodec]:
    return {
        "dense": Dense(),
        **{f"int{bits}": Affine(bits) for bits in (8, 4, 2, 1)},
        **{f"cachegen-{level}": CacheGen(level) for level in range(len(cachegen.LEVELS))},
    }


class _Own(Mapping[str, torch.Tensor]):
    """The sections of one layer by their short names."""

    def __init__(self, frame: Frame, layer: int) -> None:
        self.frame, self.prefix = frame, f"{layer}."

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.frame.section(self.prefix + name)

    def __iter__(self) -> Iterator[str]:
        own = (name for name in self.frame.sections if name.startswith(self.prefix))
        return (name.removeprefix(self.prefix) for name in own)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _shape(k: torch.Tensor, v: torch.Tensor, tokens: int) -> Shape:
    if k.ndim != 3 or v.ndim != 3 or k.shape[:2] != v.shape[:2] or k.shape[1] != tokens:
        raise StoreError(
            f"expected keys (K, {tokens}, D) and values (K, {tokens}, Dv), "
            f"got {list(k.shape)} and {list(v.shape)}"
        )
    return Shape(k.shape[0], k.shape[2], v.shape[2])


def _stored_shape(header: FrameHeader, layer: int) -> Shape:
    shapes = header.facts.get("shapes")
    row = shapes[layer] if isinstance(shapes, list) and layer < len(shapes) else None
    if not isinstance(row, list) or len(row) != 3:
        raise StoreError(f"the frame does not say the shape of layer {layer}")
    if any(type(d) is not int or not 0 <= d <= MOST_HEADS for d in row):
        raise StoreError(f"the frame claims an impossible shape for layer {layer}: {row}")
    return Shape(*row)  # type: ignore[arg-type]


def _stored_dtype(header: FrameHeader) -> torch.dtype:
    dtype = DTYPES.get(str(header.facts.get("dtype")))
    if dtype is None or not dtype.is_floating_point:
        raise StoreError(f"the frame claims dtype {header.facts.get('dtype')!r}")
    return dtype


def _is_finite(x: torch.Tensor) -> bool:
    """NaN and infinities survive a sum of absolute values in float64; nothing else makes them."""
    return bool(x.abs().sum(dtype=torch.float64).isfinite())
