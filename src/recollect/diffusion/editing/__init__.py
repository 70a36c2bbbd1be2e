"""Editing of pictures: iterate only where the edit changes something (RegionE).

`edit` for a bare transformer; `recollect.accelerate(pipe, "regione")` for a pipeline.
"""

from recollect.diffusion.editing.decay import VelocityDecay, calibrate_decay
from recollect.diffusion.editing.loop import edit, editing
from recollect.diffusion.editing.regione import RegionEdit

__all__ = ["RegionEdit", "VelocityDecay", "calibrate_decay", "edit", "editing"]
