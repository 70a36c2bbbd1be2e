"""Features of diffusion models, kept across denoising steps; host: diffusers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recollect.diffusion.attach import (
        Acceleration,
        accelerate,
        accelerated,
        restore,
        state_bytes,
    )
    from recollect.diffusion.policy import DiffusionPolicy
    from recollect.diffusion.report import DiffusionReport

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
    "Acceleration": "attach",
    "DiffusionPolicy": "policy",
    "DiffusionReport": "report",
    "accelerate": "attach",
    "accelerated": "attach",
    "restore": "attach",
    "state_bytes": "attach",
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
