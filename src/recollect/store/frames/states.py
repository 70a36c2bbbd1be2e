"""States of compressed caches (named tensors of `recollect.kv.persist.state`) as frames.

A state holds addresses: which rows of flat storage belong to which head. Kernels follow them
without looking, so a state from outside is checked here before a cache is filled with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from recollect.core.codecs.affine import FACTS, TENSORS
from recollect.core.codecs.packing import BITS
from recollect.errors import StoreError
from recollect.store.frames.container import Buffer, Frame, pack
from recollect.store.frames.header import FrameHeader

Tensors = Mapping[str, torch.Tensor]
Layers = Sequence[Mapping[str, Any]]


def pack_state(header: FrameHeader, tensors: Tensors, layers: Layers) -> list[Buffer]:
    """A frame of the tensors and the plain facts of each layer, losslessly.

    Raises:
        StoreError: facts that are no plain JSON, or addresses that `read_state` would refuse.
    """
    check_state(tensors, layers)
    facts: dict[str, Any] = {**header.facts, "state": [dict(layer) for layer in layers]}
    return pack(replace(header, layers=len(layers), facts=facts), tensors)


def read_state(frame: Frame) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Tensors, as views of the frame, and facts for `recollect.kv.persist.load_state`.

    Raises:
        StoreError: the frame holds no state, or one whose addresses lead astray.
    """
    layers = frame.header.facts.get("state")
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise StoreError("the frame holds no state of a cache")
    tensors = {name: frame.section(name) for name in frame.sections}
    check_state(tensors, layers)  # type: ignore[arg-type]
    return tensors, layers  # type: ignore[return-value]


def check_state(tensors: Tensors, layers: Layers) -> None:
    """Raise StoreError unless all addresses in a state stay within its own tensors."""
    for index, facts in enumerate(layers):
        prefix = f"{index}."
        own = {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}
        if "slab.k" in own:
            _check_slab(own, facts, index)
        if any(name.startswith("packed.") for name in own):
            _check_packed(own, facts, index)


def _check_slab(own: Tensors, facts: Mapping[str, Any], layer: int) -> None:
    """Exact rows: as many keys as values, and segments within them."""
    k, v = own["slab.k"], own.get("slab.v")
    _demand(v is not None and k.ndim == v.ndim == 2 and len(k) == len(v), layer, "rows")
    _demand(v is not None and k.dtype == v.dtype, layer, "dtypes")
    _check_segments(own, "slab.", len(k), 1, facts, layer)
    columns = [x for name, x in own.items() if name.startswith("column.")]
    _demand(all(x.shape == (len(k),) for x in columns), layer, "columns")


def _check_packed(own: Tensors, facts: Mapping[str, Any], layer: int) -> None:
    """Encoded rows: shapes that follow from the codec's facts, and segments of whole groups."""
    names = {f"packed.{name}" for name in (*TENSORS, "starts", "lengths", "facts")}
    _demand(names <= set(own), layer, "encoded tensors")
    stated = own["packed.facts"]
    _demand(stated.dtype == torch.int64 and stated.shape == (len(FACTS),), layer, "codec")
    batch, heads, bits_k, bits_v, group, value_group = stated.tolist()
    _demand(bits_k in BITS and bits_v in BITS, layer, "bits")
    k_codes, k_scale, k_min, v_codes, v_scale, v_min = (own[f"packed.{n}"] for n in TENSORS)
    _demand(k_scale.ndim == v_scale.ndim == k_codes.ndim == 2, layer, "encoded tensors")
    rows, width = len(k_codes), k_scale.shape[1]
    _demand(0 < group <= max(rows, 1) << 20 and 0 < value_group <= 1 << 20, layer, "groups")
    value_width = v_scale.shape[1] * value_group
    shapes = (
        (k_codes, torch.uint8, (rows, width * bits_k // 8)),
        (k_scale, torch.float16, (rows // group, width)),
        (k_min, torch.float16, (rows // group, width)),
        (v_codes, torch.uint8, (rows, value_width * bits_v // 8)),
        (v_scale, torch.float16, (rows, v_scale.shape[1])),
        (v_min, torch.float16, (rows, v_scale.shape[1])),
    )
    fits = all(x.dtype == dtype and x.shape == shape for x, dtype, shape in shapes)
    _demand(fits and rows % group == 0, layer, "encoded tensors")
    _demand((batch, heads) == (facts.get("batch"), facts.get("heads")), layer, "heads")
    _check_segments(own, "packed.", rows, group, facts, layer)


def _check_segments(
    own: Tensors, prefix: str, rows: int, granule: int, facts: Mapping[str, Any], layer: int
) -> None:
    """Segments lie within `rows`, in multiples of the granule, one per batch row and head."""
    starts, lengths = own.get(prefix + "starts"), own.get(prefix + "lengths")
    if starts is None or lengths is None:
        raise StoreError(f"layer {layer} of the state has no valid addresses")
    batch, heads = facts.get("batch"), facts.get("heads")
    counted = type(batch) is int and type(heads) is int and (batch * heads,) == starts.shape
    _demand(counted and starts.shape == lengths.shape, layer, "addresses")
    _demand(starts.dtype == lengths.dtype == torch.int64, layer, "addresses")
    inside = (starts >= 0) & (lengths >= 0) & (starts <= rows) & (lengths <= rows - starts)
    whole = (starts % granule == 0) & (lengths % granule == 0)
    _demand(bool((inside & whole).all()), layer, "addresses")


def _demand(holds: bool, layer: int, what: str) -> None:
    if not holds:
        raise StoreError(f"layer {layer} of the state has no valid {what}")
