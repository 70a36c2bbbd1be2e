"""ERTACache (arXiv:2508.21091): what to reuse, how far to step on it, how to correct it: offline.

A calibration records uncached generations, decides by the drift of the residual which steps are
reused, shortens those steps by how wrong they would be, and fits a line that takes the rest of the
error out.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recollect.diffusion.calibration import fit_line, forecasts
from recollect.diffusion.correctors import save_affine
from recollect.diffusion.masks import load_steps
from recollect.diffusion.policy import DiffusionPolicy
from recollect.diffusion.predictors import Reuse
from recollect.diffusion.profiles import Profile, record
from recollect.diffusion.schedules import Offline
from recollect.diffusion.sites import Transform, Velocity
from recollect.errors import HostError, RecipeError

Run = Callable[[Sequence[float] | None], Any]
"""Draws calibration samples at the given noise levels; at the scheduler's own for None."""

_LEAST_STEP = 0.01  # a step of no length at all would look like the beginning of a trajectory
_LEAST_FIT = 0.05  # share of the error that a correction must remove


@dataclass(frozen=True)
class Calibration:
    """What was found, ready to run.

    Attributes:
        policy: for `accelerate`.
        computed: numbers of the computed steps.
        scales: length of every step over its own, before the rest is shared out; 1 for computed
            steps.
        sigmas: noise levels for `scheduler.set_timesteps(sigmas=…)` or `pipe(sigmas=…)`; None
            where the steps stay as they are.
        explained: share of the error that the correction removes, by reused step.
    """

    policy: DiffusionPolicy
    computed: tuple[int, ...]
    scales: tuple[float, ...]
    sigmas: tuple[float, ...] | None
    explained: Mapping[int, float]


def calibrate(
    path: str | Path,
    model: torch.nn.Module,
    run: Run,
    threshold: float,
    timeline: Any = None,
    rectify: bool = True,
    logistic: bool = False,
) -> Calibration:
    """Calibrate for one model, number of steps, solver and guidance; write it to a file.

    Args:
        path: where to.
        model: the denoiser.
        run: draws calibration samples, uncached; called two to four times.
        threshold: relative L1 drift of the residual below which a step is reused; 0 computes all.
        timeline: the scheduler, set to its steps, to adjust the lengths of steps; None to leave
            them alone.
        rectify: correct what is reused.
        logistic: correct with the logistic form that the paper prints instead of a line.

    Raises:
        HostError: a scheduler whose steps cannot be changed.
        RecipeError: a threshold below 0.
    """
    residuals = record(model, lambda: run(None), Transform())
    computed = reuse_policy(residuals, threshold)
    scales, sigmas = (1.0,) * len(residuals.steps), None
    if timeline is not None:
        refuse_multistep(timeline)
        velocities = record(model, lambda: run(None), Velocity())
        scales = step_scales(residuals, velocities, computed)
        sigmas = sigmas_to_pass(timeline, adjusted(timeline.sigmas.tolist(), scales, computed))
        residuals = record(model, lambda: run(sigmas), Transform())
    lines, explained = rectification(residuals, computed, logistic) if rectify else ({}, {})
    about = {
        "method": "ertacache",
        "threshold": threshold,
        "computed": list(computed),
        "times": [step.time for step in residuals.steps],
        "sigmas": None if sigmas is None else list(sigmas),
        "form": "logistic" if logistic else "line",
        "explained": {str(step): share for step, share in explained.items()},
    }
    corrector = save_affine(str(path), model, lines, len(residuals.steps), 1, about)
    gate = Offline(artefact=str(path))
    policy = DiffusionPolicy(Transform(), gate, Reuse(), corrector)
    return Calibration(policy, computed, scales, sigmas, explained)


def load_sigmas(path: str | Path) -> tuple[float, ...] | None:
    """The noise levels that a calibration's file asks for; None where the steps stay."""
    found = load_steps(path).artefact.settings.get("sigmas")
    return None if found is None else tuple(found)


def reuse_policy(residuals: Profile, threshold: float) -> tuple[int, ...]:
    """The steps that are computed: where the residual has drifted from the last computed one.

    Drift is `mean|r̃ - r| / mean|r|` of each recorded sample, averaged.
    """
    if threshold < 0:
        raise RecipeError(f"threshold is 0 or more, not {threshold}")
    computed = [0]
    for step in range(1, len(residuals.values)):
        now, kept = residuals.values[step][0], residuals.values[computed[-1]][0]
        drift = float((_distance(kept, now) / _size(now).clamp_min(1e-12)).mean())
        if not drift < threshold:
            computed.append(step)
    return tuple(computed)


def step_scales(
    residuals: Profile, velocities: Profile, computed: tuple[int, ...]
) -> tuple[float, ...]:
    """How far to go on every step, over its length: (T,).

    ``1 - |ṽ - v| / |v - v_next|`` on a reused step, between 0.01 and 1; the last step has nothing
    behind it that could make up for a shorter one.
    """
    scales = [1.0] * len(residuals.values)
    kept = 0
    for step in range(len(scales)):
        if step in computed:
            kept = step
        elif step + 1 < len(scales):
            # ṽ - v is the difference of the residuals: both are added to the same latent.
            wrong = _distance(residuals.values[kept][0], residuals.values[step][0]).mean()
            change = _distance(velocities.values[step][0], velocities.values[step + 1][0]).mean()
            share = 1 - float(wrong / change.clamp_min(1e-12))
            scales[step] = min(max(share, _LEAST_STEP), 1.0)
    return tuple(scales)


def adjusted(
    sigmas: Sequence[float], scales: Sequence[float], computed: Sequence[int]
) -> list[float]:
    """Noise levels (T + 1) with reused steps scaled; what is left goes to computed steps behind.

    They share it in proportion to their lengths, so that the last level stays. A step with no
    computed one behind it keeps its length.
    """
    lengths = [b - a for a, b in itertools.pairwise(sigmas)]
    for step, scale in enumerate(scales):
        behind = [later for later in computed if later > step]
        rest = sum(lengths[later] for later in behind)
        if scale == 1 or rest == 0:
            continue
        left = (1 - scale) * lengths[step]
        lengths[step] *= scale
        for later in behind:
            lengths[later] *= 1 + left / rest
    return [sigmas[0], *(sigmas[0] + along for along in itertools.accumulate(lengths))]


def sigmas_to_pass(timeline: Any, sigmas: Sequence[float]) -> tuple[float, ...]:
    """What `set_timesteps(sigmas=…)` must be given so that the scheduler uses these levels.

    The last level is the scheduler's own, and a shift is applied to what it is given.
    """
    shift = float(getattr(timeline, "shift", 1.0) or 1.0)
    if getattr(timeline.config, "use_dynamic_shifting", False):
        raise HostError("the scheduler shifts noise levels by image size; adjust none of its steps")
    return tuple(sigma / (shift - (shift - 1) * sigma) for sigma in sigmas[:-1])


def refuse_multistep(timeline: Any) -> None:
    """Raises HostError for schedulers whose steps cannot be scaled one by one."""
    name = type(timeline).__name__
    order = max(int(getattr(timeline, "order", 1)), int(timeline.config.get("solver_order", 1)))
    if order > 1 or "Multistep" in name:
        raise HostError(
            f"{name} looks at several steps at once: their lengths cannot be adjusted; "
            "leave the steps as they are, or use a one-step solver"
        )
    if "sigmas" not in inspect.signature(timeline.set_timesteps).parameters:
        raise HostError(f"{name} takes no noise levels: the lengths of its steps are fixed")


def rectification(
    residuals: Profile, computed: tuple[int, ...], logistic: bool = False
) -> tuple[dict[str, torch.Tensor], dict[int, float]]:
    """Coefficients (2, C) by site and step, and the share of the error that they remove.

    A line that removes less than 5% is left out. The logistic form is
    ``error = sigmoid(K ṽ + B)`` with K and B from its tangent at 0; as errors are centred on 0
    and the tangent is at ½, it is far off where the line is exact.
    """
    lines: dict[str, torch.Tensor] = {}
    explained: dict[int, float] = {}
    for step, guess, truth in forecasts(residuals, Reuse(), computed):
        line, share = fit_line(guess[0], truth[0], axis=1)
        explained[step.index] = share
        if share >= _LEAST_FIT:
            if logistic:  # the error is ṽ - v = (1 - scale) ṽ - shift = ½ + (K ṽ + B) / 4
                line = torch.stack([4 * (1 - line[0]), 4 * (-line[1] - 0.5)])
            lines[f"output/0/{step.index}"] = line
    return lines, explained


def _distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one.float() - other.float()).flatten(1).abs().mean(1)


def _size(value: torch.Tensor) -> torch.Tensor:
    return value.float().flatten(1).abs().mean(1)
