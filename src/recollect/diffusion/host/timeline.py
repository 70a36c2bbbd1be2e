"""How many steps a trajectory has, read from the pipeline's scheduler where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Timeline:
    """The scheduler of a pipeline.

    Attributes:
        pipe: the pipeline; its scheduler may be exchanged at any time.
    """

    pipe: Any

    def total(self, time: Any) -> int | None:
        """Steps of the trajectory this timestep is on; None where the scheduler does not know it.

        Image-to-image starts late on the scheduler's own list, so what counts is how many
        timesteps are still to come.
        """
        times = getattr(getattr(self.pipe, "scheduler", None), "timesteps", None)
        if not isinstance(times, torch.Tensor) or times.ndim != 1 or not len(times):
            return None
        return len(times)
