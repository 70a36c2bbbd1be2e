"""Constants of gates, fitted on uncached generations of one model: MagCache's and TeaCache's.

Each is returned as a policy that refuses other models; `policy.to_yaml()` is what to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from recollect.diffusion.artefacts import fingerprint
from recollect.diffusion.drifts import ModulatedInput
from recollect.diffusion.engine.attach import accelerated
from recollect.diffusion.engine.branches import Branch
from recollect.diffusion.engine.clock import Step
from recollect.diffusion.engine.values import Value, relative_change
from recollect.diffusion.policy import DiffusionPolicy, policy
from recollect.diffusion.profiles import Profile, record_each
from recollect.diffusion.sites import Span, Velocity
from recollect.errors import RecipeError


def magcache(
    model: torch.nn.Module, run: Callable[[], Any], threshold: float = 0.06, **arguments: Any
) -> DiffusionPolicy:
    """The recipe `magcache` with ratios calibrated for this model.

    Args:
        model: the denoiser.
        run: draws calibration samples, uncached.
        threshold: accumulated error up to which steps are reused.
        arguments: other parameters of the recipe.
    """
    ratios = magnitude_ratios(record_each(model, run, Span()))
    made = policy("magcache", ratios=ratios, threshold=threshold, **arguments)
    return replace(made, model=fingerprint(model))


def magnitude_ratios(profiles: Mapping[str, Profile]) -> tuple[float, ...]:
    """Mean over tokens of the residual's magnitude over the previous step's: one for each step.

    MagCache (arXiv:2506.09045). The first is 1.

    Args:
        profiles: what the blocks add, as `record_each(model, run, Span())` gives it.
    """
    streams: list[Sequence[torch.Tensor]] = []  # for each stream, a tensor (N, S, C) per step
    for profile in profiles.values():
        streams += list(zip(*profile.values, strict=True))
    if not streams:
        raise RecipeError("nothing was recorded")
    ratios = [1.0]
    for step in range(1, len(streams[0])):
        found = [
            values[step].float().norm(dim=-1)
            / values[step - 1].float().norm(dim=-1).clamp_min(1e-12)
            for values in streams
        ]
        ratios.append(float(torch.cat([ratio.flatten() for ratio in found]).mean()))
    return tuple(ratios)


@dataclass(frozen=True)
class Fit:
    """A polynomial from the input's relative change to the output's.

    Attributes:
        polynomial: coefficients, highest power first.
        calibrated: least and largest change it was fitted on.
        explained: share of the output change's variance that it explains.
    """

    polynomial: tuple[float, ...]
    calibrated: tuple[float, float]
    explained: float


def teacache(
    model: torch.nn.Module,
    run: Callable[[], Any],
    threshold: float = 0.15,
    degree: int = 4,
    **arguments: Any,
) -> DiffusionPolicy:
    """The recipe `teacache` with a polynomial fitted for this model.

    Args:
        model: the denoiser.
        run: draws calibration samples, uncached.
        threshold: accumulated change of the output, as the polynomial tells it, up to which steps
            are reused.
        degree: of the polynomial.
        arguments: other parameters of the recipe.
    """
    fit = fit_polynomial(*input_and_output_changes(model, run), degree)
    made = policy(
        "teacache",
        polynomial=fit.polynomial,
        calibrated=fit.calibrated,
        threshold=threshold,
        **arguments,
    )
    return replace(made, model=fingerprint(model))


def fit_polynomial(inputs: Sequence[float], outputs: Sequence[float], degree: int = 4) -> Fit:
    """Least squares of the output's relative changes on the modulated input's (TeaCache).

    Raises RecipeError with fewer different changes than coefficients.
    """
    x, y = np.asarray(inputs, float), np.asarray(outputs, float)
    if len(x) != len(y) or len(np.unique(x)) <= degree:
        raise RecipeError(
            f"a polynomial of degree {degree} needs more than {degree} different changes; "
            "record more steps or lower the degree"
        )
    fitted = np.polynomial.Polynomial.fit(x, y, degree)
    rest = float(((fitted(x) - y) ** 2).sum())
    spread = float(((y - y.mean()) ** 2).sum())
    coefficients = tuple(float(c) for c in fitted.convert().coef[::-1])
    explained = 1 - rest / spread if spread > 0 else 1.0
    return Fit(coefficients, (float(x.min()), float(x.max())), explained)


def input_and_output_changes(
    model: torch.nn.Module, run: Callable[[], Any]
) -> tuple[list[float], list[float]]:
    """Relative L1 changes from step to step: of the first block's modulated input, of the output.

    One pair for every step but the first, and every sample of both branches.
    """
    inputs: list[float] = []
    outputs: list[float] = []
    latest: dict[int, torch.Tensor] = {}

    def tap(branch: Branch, step: Step, site: str, value: Value) -> None:
        before, latest[id(branch)] = latest.get(id(branch)), value[0]
        ledger = branch.ledger
        if step.index and before is not None and ledger is not None and ledger.drift is not None:
            inputs.extend(ledger.drift.tolist())
            outputs.extend(relative_change(value[0], before).tolist())

    # With a threshold of 0 the gate measures and computes everything.
    watching = DiffusionPolicy(Velocity(), ModulatedInput(threshold=0.0, floor=False))
    with accelerated(model, watching) as acceleration:
        for session in acceleration.sessions.values():
            session.taps.append(tap)
        run()
    return inputs, outputs
