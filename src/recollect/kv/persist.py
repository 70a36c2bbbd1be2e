"""Caches on disk: one safetensors file that is checked before a byte of it is used."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from recollect.core.codecs.affine import PackedKV
from recollect.errors import HostError, StoreError
from recollect.kv.cache import RecollectCache
from recollect.kv.candidates import Memory
from recollect.kv.fingerprint import fingerprint
from recollect.kv.layer import KVLayer
from recollect.kv.policy import KVPolicy
from recollect.kv.slab import Slab

SCHEMA = "recollect.kv/1"
ON_CPU = (".starts", ".lengths", ".facts", ".budget", ".prompt")  # addresses and small numbers

Tensors = dict[str, torch.Tensor]


def save(cache: RecollectCache, path: Path) -> None:
    """Write a cache. The file appears whole or not at all. Raises StoreError."""
    tensors, layers = state(cache)
    metadata = {
        "schema": SCHEMA,
        "model": fingerprint(cache._model()),
        "policy": cache.policy.to_yaml(),
        "kernel": cache.kernel,
        "layers": json.dumps(layers),
        "checksum": _checksum(tensors),
    }
    partial = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            partial = file.name
        save_file(tensors, partial, metadata=metadata)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        if partial is not None and os.path.exists(partial):
            os.unlink(partial)
        raise StoreError(f"cannot write the cache to {path}: {error}") from error


def load_cache(model: PreTrainedModel, path: str | Path) -> RecollectCache:
    """Read a cache written by `RecollectCache.save`, for the same model.

    Raises:
        StoreError: the file is missing, truncated, corrupt, or of another schema.
        HostError: it was made by another model.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise StoreError(f"cannot read a cache from {path}: {error}") from error
    if metadata.get("schema") != SCHEMA:
        raise StoreError(
            f"{path} is not a saved cache ({SCHEMA}); it says {metadata.get('schema')}"
        )
    if metadata["checksum"] != _checksum(tensors):
        raise StoreError(f"{path} is corrupt: its checksum does not match; make the cache again")
    if metadata["model"] != fingerprint(model):
        raise HostError(f"the cache at {path} was made by another model; load it with that one")
    policy = KVPolicy.from_yaml(metadata["policy"])
    cache = RecollectCache(model, policy, kernel=metadata["kernel"])
    device = next(model.parameters()).device
    placed = {n: t if n.endswith(ON_CPU) else t.to(device) for n, t in tensors.items()}
    load_state(cache, placed, json.loads(metadata["layers"]))
    return cache


def copy_state(source: RecollectCache, target: RecollectCache) -> None:
    """Give `target` an independent copy of what `source` holds."""
    tensors, layers = state(source)
    load_state(target, {name: tensor.clone() for name, tensor in tensors.items()}, layers)


def state(cache: RecollectCache) -> tuple[Tensors, list[dict[str, Any]]]:
    """All tensors of a cache by name, and the plain facts of each layer."""
    tensors: Tensors = {}
    facts = []
    for index, layer in enumerate(cache.layers):
        own, fact = _layer_state(layer)
        tensors |= {f"{index}.{name}": tensor.contiguous() for name, tensor in own.items()}
        facts.append(fact)
    return tensors, facts


def load_state(cache: RecollectCache, tensors: Tensors, facts: list[dict[str, Any]]) -> None:
    """Fill an empty cache of the same model and policy."""
    for index, (layer, fact) in enumerate(zip(cache.layers, facts, strict=True)):
        prefix = f"{index}."
        own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        _fill_layer(layer, own, fact)


def _layer_state(layer: Any) -> tuple[Tensors, dict[str, Any]]:
    if not isinstance(layer, KVLayer):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if not isinstance(keys, torch.Tensor) or not isinstance(values, torch.Tensor):
            return {}, {}
        return {"keys": keys, "values": values}, {"length": layer.get_seq_length()}
    tensors: Tensors = {}
    fact: dict[str, Any] = {
        name: getattr(layer, name) for name in ("seen", "dropped", "steps", "seconds", "_scale")
    }
    for name in ("padding", "budget", "prompt"):
        if (value := getattr(layer, name)) is not None:
            tensors[name] = value
    if layer.slab is not None:
        slab = layer.slab.portable()
        fact |= {"batch": slab.batch, "heads": slab.heads, "fresh": slab.fresh}
        tensors |= {"slab.k": slab.k, "slab.v": slab.v}
        tensors |= {"slab.starts": slab.starts, "slab.lengths": slab.lengths}
        tensors |= {f"column.{name}": column for name, column in slab.columns.items()}
    if layer.packed is not None:
        tensors |= {f"packed.{n}": t for n, t in layer.packed.state_dict().items()}
    if layer.memory.queries is not None:
        tensors["queries"] = layer.memory.queries
    tensors |= {f"statistics.{n}": t for n, t in layer.memory.statistics.items()}
    return tensors, fact


def _fill_layer(layer: Any, tensors: Tensors, fact: dict[str, Any]) -> None:
    if not isinstance(layer, KVLayer):
        if tensors:
            layer.update(tensors["keys"], tensors["values"])
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length = fact["length"]
        return
    for name in ("seen", "dropped", "steps", "seconds", "_scale"):
        setattr(layer, name, fact[name])
    for name in ("padding", "budget", "prompt"):
        setattr(layer, name, tensors.get(name))
    if "slab.k" not in tensors:
        return
    layer.slab = Slab(
        tensors["slab.k"],
        tensors["slab.v"],
        fact["batch"],
        fact["heads"],
        tensors["slab.starts"],
        tensors["slab.lengths"],
        _with_prefix(tensors, "column."),
        fact["fresh"],
    )
    if layer.plan.tenant is not None:
        fresh = layer.slab.fresh
        layer.hold(*layer.slab.dense())
        layer.slab.fresh = fresh
    packed = _with_prefix(tensors, "packed.")
    layer.packed = PackedKV.from_state_dict(packed) if packed else None
    layer.memory = Memory(tensors.get("queries"), _with_prefix(tensors, "statistics."))
    layer.lazy_initialization(layer.slab.k, layer.slab.v)


def _with_prefix(tensors: Tensors, prefix: str) -> Tensors:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _checksum(tensors: Tensors) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
