"""Editing of pictures: iterate only where the edit changes something (RegionE).

`edit` for a bare transformer; `recollect.accelerate(pipe, "regione")` for a pipeline.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recollect.diffusion.editing.calibrate import calibrate_decay
    from recollect.diffusion.editing.loop import edit, editing
    from recollect.diffusion.editing.regione import RegionEdit

__all__ = ["RegionEdit", "calibrate_decay", "edit", "editing"]

# Recipes can be listed without diffusers; what touches a model is loaded on first use.
_HOMES = {
    "RegionEdit": "regione",
    "calibrate_decay": "calibrate",
    "edit": "loop",
    "editing": "loop",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'recollect.diffusion.editing' has no attribute '{name}'")
    home = importlib.import_module(f"recollect.diffusion.editing.{_HOMES[name]}")
    return getattr(home, name)
