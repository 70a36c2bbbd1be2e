"""Corrections fitted on recorded generations: what a forecast gets wrong, channel by channel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from recollect.diffusion.correctors import Affine, save_affine
from recollect.diffusion.engine.clock import Step
from recollect.diffusion.engine.values import Value
from recollect.diffusion.predictors import History, Predictor
from recollect.diffusion.profiles import Profile
from recollect.errors import RecipeError


def forecasts(
    profile: Profile, predictor: Predictor, computed: tuple[int, ...]
) -> Iterator[tuple[Step, Value, Value]]:
    """What a schedule's skipped steps would be given, and what they are: (step, guess, truth).

    Args:
        profile: recorded values.
        predictor: makes the values of skipped steps.
        computed: numbers of the steps that are computed; the first one is.
    """
    if not computed or computed[0] != 0:
        raise RecipeError("the first step is computed")
    rows = torch.ones(len(profile.values[0][0]), dtype=torch.bool)
    history, chosen = History(), set(computed)
    for step, truth in zip(profile.steps, profile.values, strict=True):
        moment = torch.full((len(rows),), step.on(predictor.scale), dtype=torch.float64)
        if step.index in chosen:
            predictor.observe(history, truth, moment, rows)
        else:
            yield step, predictor.predict(history, moment), truth


def affine_correction(
    path: str,
    model: torch.nn.Module,
    profiles: Mapping[str, Profile],
    predictor: Predictor,
    computed: tuple[int, ...],
    axis: int = 1,
    least: float = 0.0,
) -> Affine:
    """Fit a line per channel and skipped step, by least squares; write it and return its reader.

    Args:
        path: where the coefficients go.
        model: the denoiser that was recorded.
        profiles: recorded values by site, as `record_each` gives them.
        predictor: the one that will run under the schedule.
        computed: steps that are computed.
        axis: the axis of the channels, 1 for latents, -1 for tokens.
        least: share of the error's variance (R²) below which a step is left uncorrected.
    """
    coefficients: dict[str, torch.Tensor] = {}
    count = 0
    for site, profile in profiles.items():
        count = len(profile.steps)
        for step, guess, truth in forecasts(profile, predictor, computed):
            for place, (g, t) in enumerate(zip(guess, truth, strict=True)):
                line, explained = fit_line(g, t, axis)
                if explained >= least:
                    coefficients[f"{site}/{place}/{step.index}"] = line
    return save_affine(path, model, coefficients, count, axis)


def fit_line(guess: torch.Tensor, truth: torch.Tensor, axis: int) -> tuple[torch.Tensor, float]:
    """The least-squares line from guess to truth for each channel: (2, C) scale and shift.

    Returns also the share of the squared error that the line removes, over all channels.
    """
    x = guess.double().movedim(axis, 0).flatten(1)
    y = truth.double().movedim(axis, 0).flatten(1)
    mean_x, mean_y = x.mean(1), y.mean(1)
    dx, dy = x - mean_x[:, None], y - mean_y[:, None]
    variance = dx.square().sum(1)
    covariance = (dx * dy).sum(1)
    scale = torch.where(
        variance > 0, covariance / variance.clamp_min(1e-30), torch.ones_like(mean_x)
    )
    shift = mean_y - scale * mean_x
    before = (x - y).square().sum()
    after = (x * scale[:, None] + shift[:, None] - y).square().sum()
    explained = float(1 - after / before) if float(before) > 0 else 0.0
    return torch.stack([scale, shift]).float(), explained
