"""Noise levels of an Euler scheduler, for companions that move tokens by different steps."""

from __future__ import annotations

from typing import Any

from recollect.diffusion.engine.clock import Step
from recollect.errors import HostError


def euler_levels(session: Any, step: Step) -> list[float]:
    """Noise levels of a trajectory's steps, and the one after the last.

    Args:
        session: what is attached to the denoiser of a pipeline.
        step: a step of the trajectory.

    Raises:
        HostError: no scheduler is known, or it is not a plain Euler one: only there does a
            velocity move a token by a length that can be foreseen.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = getattr(getattr(session.timeline, "pipe", None), "scheduler", None)
    if scheduler is None or step.total is None:
        raise HostError(
            "the noise levels to come are not known; accelerate the pipeline rather than its "
            "transformer, or use recollect.diffusion.editing.edit"
        )
    plain = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    if not plain or scheduler.config.get("stochastic_sampling"):
        raise HostError(
            f"regione needs FlowMatchEulerDiscreteScheduler without stochastic sampling, not "
            f"{type(scheduler).__name__}"
        )
    levels = [float(level) for level in scheduler.sigmas]
    return levels[len(levels) - 1 - step.total :]
