"""Learned artefacts of recipes: head gates, saved as safetensors with the model they belong to."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from recollect.errors import RecipeError, StoreError


def save_gates(path: str | Path, gates: torch.Tensor, fingerprint: str) -> None:
    """Write gates (L, K) of the model with that fingerprint."""
    save_file({"gates": gates.contiguous()}, str(path), metadata={"model": fingerprint})


@lru_cache(maxsize=8)
def load_gates(path: str) -> torch.Tensor:
    """Read gates (L, K) float32.

    Raises:
        RecipeError: no path was given.
        StoreError: the file is missing or not what `save_gates` wrote.
    """
    return _read(path)[0]


def gates_fingerprint(path: str) -> str:
    """Fingerprint of the model that the gates at `path` were trained on."""
    return _read(path)[1]


def _read(path: str) -> tuple[torch.Tensor, str]:
    if not path:
        raise RecipeError(
            "duo-attention needs trained head gates: run recollect.kv.calibrate_gates(model, ...) "
            "and pass gates='gates.safetensors'"
        )
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor("gates"), (file.metadata() or {}).get("model", "")
    except (OSError, SafetensorError) as error:
        raise StoreError(f"cannot read head gates at {path}: {error}") from error
