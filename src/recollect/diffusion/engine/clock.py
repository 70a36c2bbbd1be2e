"""Where on its trajectory a call of the denoiser is, read off the call itself.

The number of steps is never counted on: requests differ in it, image-to-image starts late, and an
abandoned request would leave a counter behind. A trajectory begins when time jumps back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

Scale = Literal["step", "sigma", "logit_sigma"]
SCALES: tuple[Scale, ...] = ("step", "sigma", "logit_sigma")

_EDGE = 1e-3  # noise levels are kept this far from 0 and 1 in the logit
TRAINING = 1.5
"""Times above this are timesteps of training, of which there are 1,000; others noise levels."""


@dataclass(frozen=True)
class Step:
    """One evaluation of the denoiser.

    Attributes:
        index: its number on the trajectory, from 0, in sampling order.
        time: the timestep the model was given (the largest, where tokens differ).
        sigma: noise level in [0, 1]: the time, scaled.
        total: number of steps of the trajectory, where it is known.
    """

    index: int
    time: float
    sigma: float
    total: int | None = None

    def on(self, scale: Scale) -> float:
        """The moment on a clock that predictors extrapolate in."""
        if scale == "step":
            return float(self.index)
        if scale == "sigma":
            return self.sigma
        sigma = min(max(self.sigma, _EDGE), 1 - _EDGE)
        return math.log(sigma / (1 - sigma))


@dataclass
class Clock:
    """Follows the timesteps of one branch of one request.

    Attributes:
        direction: -1 where time falls over a trajectory, +1 where it rises (some models count
            backwards); 0 until it is seen. Kept over trajectories.
    """

    direction: int = 0
    step: Step | None = None
    vector: torch.Tensor | None = field(default=None, repr=False)
    _trusted: bool = False  # the direction was seen over three steps

    def tick(self, time: Any, remaining: int | None = None) -> tuple[Step, bool]:
        """Note a call at this timestep.

        Args:
            time: a number, or a tensor with one timestep for all, per sample or per token.
            remaining: steps to come after this one, where the caller knows.

        Returns:
            The step, and whether it begins a new trajectory.
        """
        value = scalar(time)
        several = isinstance(time, torch.Tensor) and time.numel() > 1
        vector = time.detach() if several else None
        scale = 1000.0 if value > TRAINING or (self.step and self.step.time > TRAINING) else 1.0
        sigma = min(max(value / scale, 0.0), 1.0)
        before = self.step
        fresh = before is None or self._restarts(value, vector, before)
        index = 0 if fresh or before is None else before.index + 1
        if not fresh and before is not None and value != before.time:
            self.direction = 1 if value > before.time else -1
            self._trusted = self._trusted or index >= 2
        total = None if remaining is None else index + 1 + remaining
        self.step = Step(index, value, sigma, total)
        self.vector = vector
        return self.step, fresh

    def _restarts(self, value: float, vector: torch.Tensor | None, before: Step) -> bool:
        if value == before.time:
            # With a time per token the largest may stay while others move.
            if vector is None or self.vector is None or vector.shape != self.vector.shape:
                return True
            return torch.equal(vector, self.vector)
        way = 1 if value > before.time else -1
        if self.direction == 0 or (before.index == 0 and not self._trusted):
            return False
        return way != self.direction

    def restart(self) -> None:
        """Forget where the trajectory was; the next call begins one."""
        self.step = self.vector = None


def scalar(time: Any) -> float:
    """A timestep as one number: the largest, where samples or tokens have their own."""
    return float(time.max()) if isinstance(time, torch.Tensor) else float(time)
