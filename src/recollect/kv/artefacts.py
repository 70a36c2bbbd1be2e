"""Learned artefacts of recipes: head gates, saved as safetensors with the model they belong to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from recollect.errors import HostError, RecipeError, StoreError
from recollect.kv.budgets import HeadClasses
from recollect.kv.fingerprint import fingerprint
from recollect.kv.policy import KVPolicy

# In a folder of their own: engines take every .safetensors beside the weights for weights.
GATES = "recollect/duo-attention.safetensors"


def save_gates(path: str | Path, gates: torch.Tensor, model: str) -> None:
    """Write gates (L, K) of the model with that fingerprint."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file({"gates": gates.contiguous()}, str(path), metadata={"model": model})


def load_gates(path: str | Path) -> tuple[torch.Tensor, str]:
    """Gates (L, K) float32 and the fingerprint of their model. Raises StoreError."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return file.get_tensor("gates"), (file.metadata() or {}).get("model", "")
    except (OSError, SafetensorError) as error:
        raise StoreError(f"cannot read head gates at {path}: {error}") from error


def bind(policy: KVPolicy, model: PreTrainedModel) -> KVPolicy:
    """The policy with its artefacts found, checked and read.

    Raises:
        RecipeError: no gates were given and none lie beside the checkpoint.
        HostError: the gates were trained on another model.
        StoreError: the file cannot be read.
    """
    heads = policy.heads
    if policy.keep == 1.0 or not isinstance(heads, HeadClasses) or heads.classes is not None:
        return policy
    path = Path(heads.gates) if heads.gates else Path(model.config._name_or_path) / GATES
    if not heads.gates and not path.is_file():
        raise RecipeError(
            "duo-attention needs trained head gates: run recollect.kv.calibrate_gates(model, ...) "
            "and pass gates='gates.safetensors'"
        )
    gates, owner = load_gates(path)
    if owner != fingerprint(model):
        raise HostError(f"the head gates at {path} belong to another model; calibrate this one")
    rows = tuple(tuple(row) for row in gates.tolist())
    return replace(policy, heads=replace(heads, gates=str(path), classes=rows))
