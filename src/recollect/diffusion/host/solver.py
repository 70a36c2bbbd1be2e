"""What the scheduler of a pipeline makes of a reused output, and how it can be told of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Solver:
    """The scheduler of a pipeline, as an integrator.

    Attributes:
        pipe: the pipeline; its scheduler may be exchanged at any time.
    """

    pipe: Any

    @property
    def multistep(self) -> bool:
        """Whether a step is made from several outputs: DPM-Solver++, UniPC, DEIS of order 2 or 3.

        Such a solver estimates derivatives from the differences of outputs, and takes a reused one
        for new. A one-step solver (Euler, DDIM) cannot be misled: reuse is a longer step.
        """
        scheduler = getattr(self.pipe, "scheduler", None)
        order = getattr(getattr(scheduler, "config", None), "solver_order", 1)
        return hasattr(scheduler, "lower_order_nums") and order > 1

    def lower(self) -> None:
        """Make the next step one of first order, as the solver does at the start of a trajectory.

        `lower_order_nums` counts the outputs that a scheduler of diffusers may build on.
        """
        if self.multistep:
            self.pipe.scheduler.lower_order_nums = 0
