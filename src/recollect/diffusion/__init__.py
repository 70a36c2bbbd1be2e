"""Features of diffusion models, kept across denoising steps; host: diffusers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recollect.diffusion.engine.attach import (
        Acceleration,
        accelerate,
        accelerated,
        restore,
        state_bytes,
    )
    from recollect.diffusion.engine.report import DiffusionReport
    from recollect.diffusion.policy import DiffusionPolicy

__all__ = [
    "Acceleration",
    "DiffusionPolicy",
    "DiffusionReport",
    "accelerate",
    "accelerated",
    "restore",
    "state_bytes",
]

# Recipes can be listed without diffusers; what touches a model is loaded on first use.
_HOMES = {
    "Acceleration": "engine.attach",
    "DiffusionPolicy": "policy",
    "DiffusionReport": "engine.report",
    "accelerate": "engine.attach",
    "accelerated": "engine.attach",
    "restore": "engine.attach",
    "state_bytes": "engine.attach",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'recollect.diffusion' has no attribute '{name}'")
    try:
        home = importlib.import_module(f"recollect.diffusion.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        if error.name != "diffusers":
            raise
        from recollect.errors import HostError

        raise HostError("diffusers is missing: pip install recollect[diffusion]") from error
    return getattr(home, name)
