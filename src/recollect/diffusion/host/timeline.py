"""How many steps a trajectory still has, read from the pipeline's scheduler where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from recollect.diffusion.engine.clock import TRAINING, Clock, scalar

_NEAR = 0.5  # timesteps (of 1,000) within which a model's time is one of the scheduler's


@dataclass(frozen=True)
class Timeline:
    """The scheduler of a pipeline.

    Attributes:
        pipe: the pipeline; its scheduler may be exchanged at any time.
    """

    pipe: Any

    def remaining(self, time: Any, clock: Clock) -> int | None:
        """Steps after the one at this time; None where the scheduler does not tell.

        Image-to-image starts late on the scheduler's own list, so what counts is what is still to
        come. Models are given the timestep itself, a thousandth of it, or one minus that.

        Args:
            time: what the model is given.
            clock: where the branch was before this call.
        """
        times = getattr(getattr(self.pipe, "scheduler", None), "timesteps", None)
        if not isinstance(times, torch.Tensor) or times.ndim != 1 or not len(times):
            return None
        value = scalar(time)
        before = None if clock.step is None else clock.step.time
        if value > TRAINING or (before is not None and before > TRAINING):
            candidates = [value]
        else:
            rises = clock.direction > 0 or (
                clock.direction == 0 and before is not None and value > before
            )
            candidates = [1000 * (1 - value), 1000 * value]
            if not rises:
                candidates.reverse()
        known = times.detach().double().cpu()
        for candidate in candidates:
            distance = (known - candidate).abs()
            if float(distance.min()) <= _NEAR:
                return len(known) - 1 - int(distance.argmin())
        return None
