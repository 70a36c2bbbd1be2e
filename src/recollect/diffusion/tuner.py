"""The best way to spend a compute budget on one pipeline: plan, try, measure, keep.

Schedules are planned for several sites and forecasts, gates that look at tensors are set to the
same budget, and all of them draw pictures that no plan has seen. What wins is written down with the
model that it is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from recollect.diffusion.artefacts import fingerprint
from recollect.diffusion.engine.attach import accelerated, denoisers
from recollect.diffusion.engine.report import DiffusionReport
from recollect.diffusion.planner import plans
from recollect.diffusion.policy import DiffusionPolicy, policy
from recollect.diffusion.predictors import FoCa, Predictor, Reuse, Taylor
from recollect.diffusion.profiles import record
from recollect.diffusion.sites import Hidden, Site, Transform, Velocity
from recollect.errors import HostError, RecipeError

SITES: tuple[Site, ...] = (Velocity(), Transform(), Hidden())
FORECASTS: tuple[Predictor, ...] = (
    Reuse(),
    Taylor(order=1),
    Taylor(order=1, clock="logit_sigma"),
    Taylor(order=2, clock="logit_sigma"),
    FoCa(),
)
GATES = ("easycache + taylorseer", "cg-taylor", "fbcache + taylorseer")
_HALVINGS = 6

Draw = Callable[[int], torch.Tensor]
"""Draws pictures or latents (B, …) from the noise of a seed, with the target at hand."""


@dataclass(frozen=True)
class Trial:
    """One policy, tried.

    Attributes:
        name: what it is, in words.
        policy: ready for `accelerate`.
        computed: share of the uncached floating-point operations.
        decibels: PSNR to the uncached pictures of the same noise; the peak is their range.
    """

    name: str
    policy: DiffusionPolicy
    computed: float
    decibels: float

    def save(self, path: str | Path) -> None:
        """Write the policy to a file that `accelerate(pipe, path)` reads, with its figures."""
        figures = {"computed": round(self.computed, 4), "decibels": round(self.decibels, 2)}
        about = {"name": self.name, **figures, "policy": self.policy.to_yaml()}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(yaml.safe_dump(about, sort_keys=False, width=100))


@dataclass(frozen=True)
class Tuning:
    """All trials within the budget, the best first, and what could not be tried."""

    trials: tuple[Trial, ...]
    refused: dict[str, str]

    @property
    def best(self) -> Trial:
        return self.trials[0]


def tune(
    target: Any,
    draw: Draw,
    budget: float,
    calibration: Sequence[int] = (0,),
    seeds: Sequence[int] = (1, 2),
    progress: Callable[[str], None] = lambda name: None,
) -> Tuning:
    """Find the policy that stays nearest to the uncached pictures within a budget.

    Args:
        target: a diffusers pipeline, or a denoiser.
        draw: draws with the target, every time with the same number of steps.
        budget: share of the uncached floating-point operations that may be spent, e.g. 0.33.
        calibration: seeds that schedules are planned on.
        seeds: seeds that are drawn to compare; others than those.
        progress: told the name of every trial as it begins.

    Raises:
        RecipeError: a budget outside (0, 1), or one that nothing keeps.
    """
    if not 0 < budget < 1:
        raise RecipeError(f"the budget is a share of the computation between 0 and 1, not {budget}")
    if set(calibration) & set(seeds):
        raise RecipeError("calibration and comparison need different seeds: plans know their own")
    bench = _Bench(target, draw, seeds)
    trials: list[Trial] = []
    refused: dict[str, str] = {}
    for name, attempt in _attempts(bench, calibration, budget):
        progress(name)
        try:
            trials += attempt()
        except (HostError, RecipeError) as error:
            refused[name] = str(error)
    kept = [trial for trial in trials if trial.computed <= budget + 1e-6]
    if not kept:
        raise RecipeError(
            f"nothing keeps a budget of {budget:.0%}; allow more, or draw with more steps "
            f"({'; '.join(f'{n}: {why}' for n, why in refused.items()) or 'all trials cost more'})"
        )
    return Tuning(tuple(sorted(kept, key=lambda trial: -trial.decibels)), refused)


class _Bench:
    """Draws with and without a policy, and measures the difference."""

    def __init__(self, target: Any, draw: Draw, seeds: Sequence[int]) -> None:
        self.target, self.draw, self.seeds = target, draw, seeds
        self.model = fingerprint(next(iter(denoisers(target).values())))
        with FlopCounterMode(display=False) as counter:
            first = draw(seeds[0])
        self.flops = counter.get_total_flops()
        self.plain = torch.cat([first, *(draw(seed) for seed in seeds[1:])]).float()
        self.peak = float(self.plain.max() - self.plain.min())

    def trial(self, name: str, chosen: DiffusionPolicy) -> Trial:
        chosen = replace(chosen, model=self.model)
        with accelerated(self.target, chosen) as acceleration:
            # Counting is slow: operations are counted for one seed, evaluations for all.
            with FlopCounterMode(display=False) as counter:
                drawn = [self.draw(self.seeds[0])]
            each = counter.get_total_flops() / self.flops / _share(acceleration.report())
            for seed in self.seeds[1:]:
                acceleration.reset()
                drawn.append(self.draw(seed))
            share = each * _share(acceleration.report())
        error = (torch.cat(drawn).float() - self.plain).square().flatten(1).mean(1)
        decibels = 10 * torch.log10(self.peak**2 / error.clamp_min(1e-20))
        return Trial(name, chosen, share, float(decibels.mean()))


def _attempts(
    bench: _Bench, calibration: Sequence[int], budget: float
) -> Iterator[tuple[str, Callable[[], list[Trial]]]]:
    for site in SITES:
        yield f"planned {type(site).__name__}", partial(_planned, bench, site, calibration, budget)
    for name in GATES:
        yield name, partial(_gated, bench, name, budget)


def _planned(bench: _Bench, site: Site, calibration: Sequence[int], budget: float) -> list[Trial]:
    """One trial for each forecast that a schedule can be planned for."""

    def run() -> None:
        for seed in calibration:
            bench.draw(seed)

    profile = record(bench.target, run, site)
    steps = max(1, int(budget * len(profile.steps) + 1e-9))
    trials = []
    for predictor in FORECASTS:
        if isinstance(predictor, Taylor) and steps <= predictor.order:
            continue
        made = plans(profile, predictor, {steps, max(steps - 1, 1)})
        for count in sorted(made, reverse=True):
            name = f"{type(site).__name__}, {_words(predictor)}, {count} planned steps"
            trial = bench.trial(name, made[count].policy)
            if trial.computed <= budget:  # embeddings and head run on skipped steps too
                break
        trials.append(trial)
    return trials


def _gated(bench: _Bench, name: str, budget: float) -> list[Trial]:
    """A gate with its threshold halved in on the budget."""
    low, high, found = 0.0, 1.0, []
    for _ in range(_HALVINGS):
        threshold = (low + high) / 2
        trial = bench.trial(
            f"{name}, threshold {threshold:.4g}", policy(name, threshold=threshold, longest=4)
        )
        if trial.computed <= budget:
            found, high = [trial], threshold
        else:
            low = threshold
    return found


def _share(report: DiffusionReport) -> float:
    return report.computed / report.evaluations


def _words(predictor: Predictor) -> str:
    if isinstance(predictor, Taylor):
        return f"order {predictor.order} in {predictor.clock.replace('_', ' of ')}"
    return type(predictor).__name__.lower()
