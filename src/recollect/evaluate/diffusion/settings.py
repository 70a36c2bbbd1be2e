"""Which settings of which recipes a frontier shows: each recipe over the range of its main knob."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from recollect.diffusion import DiffusionPolicy
from recollect.diffusion.attach import denoisers
from recollect.diffusion.learned import gate_fits
from recollect.diffusion.planner import plans, record
from recollect.diffusion.policy import policy
from recollect.diffusion.predictors import Reuse, Taylor
from recollect.diffusion.schedules import step_mask
from recollect.errors import RecipeError

SHARES = (0.5, 0.4, 0.33, 0.27)

# Recipe -> (knob, values, further arguments). All of them work on any model without calibration.
KNOBS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "taylorseer": ("every", (2, 3, 4, 6), {"warmup": 2}),
    "easycache": ("threshold", (0.03, 0.05, 0.1, 0.2), {"warmup": 3}),
    "easycache + taylorseer": ("threshold", (0.03, 0.05, 0.1, 0.2), {"warmup": 3, "longest": 4}),
    "teacache": ("threshold", (0.1, 0.2, 0.3), {}),
    "fbcache": ("threshold", (0.1, 0.2, 0.3), {}),
    "dbcache": ("threshold", (0.1, 0.2, 0.3), {"blocks": 2, "warmup": 4}),
    "cg-taylor": ("threshold", (0.02, 0.05, 0.1, 0.2), {}),
    "fora": ("every", (2, 3, 4), {}),
    "delta-dit": ("every", (2, 3), {}),
    "foca": ("every", (2, 3, 4), {"warmup": 2}),
    "dmd": ("every", (2, 3, 4), {}),
    "pab": ("spatial", (2, 4, 6), {}),
    "toca": ("every", (2, 3, 4), {}),
    "seacache": ("threshold", (0.1, 0.25, 0.5), {}),
    "fastercache": ("renew", (3, 5), {}),
}
# Compute and reuse bins of cache-dit's presets, stretched to the number of steps.
_MASKS = {
    "slow": ([8, 3, 3, 2, 1, 1], [1, 2, 2, 2, 3]),
    "medium": ([6, 2, 2, 2, 2, 1], [1, 3, 3, 3, 3]),
    "fast": ([6, 1, 1, 1, 1, 1], [1, 3, 4, 5, 4]),
    "ultra": ([4, 1, 1, 1, 1], [2, 5, 6, 7]),
}
_PLANNED = ("planned", "planned reuse")
_CALIBRATED = ("magcache", "teacache fitted")
NAMES = (*_PLANNED, "reuse", *KNOBS, "scm", *_CALIBRATED)


@dataclass(frozen=True)
class Setting:
    """One policy to draw with.

    Attributes:
        recipe: its series in charts.
        name: with its knob.
        policy: ready for `accelerate`.
    """

    recipe: str
    name: str
    policy: DiffusionPolicy


def settings(
    target: Any, run: Callable[[], Any], steps: int, recipes: tuple[str, ...] = ()
) -> Iterator[Setting]:
    """All settings for one number of steps.

    Args:
        target: pipeline or denoiser.
        run: draws calibration pictures, with noise that is not judged later.
        steps: denoising steps.
        recipes: of `NAMES`; all by default.

    Raises:
        RecipeError: a recipe that is not among them.
        HostError: a recipe that is calibrated here, on a model that it does not fit.
    """
    wanted = recipes or NAMES
    for name in wanted:
        if name not in NAMES:
            raise RecipeError(
                f"no range of settings is known for '{name}' (there are: {', '.join(NAMES)})"
            )
    if set(_PLANNED) & set(wanted):
        profile = record(target, run)
    for name in wanted:
        if name in _PLANNED:
            forecast = Reuse() if name == "planned reuse" else Taylor(order=1)
            budgets = {max(3, round(share * steps)) for share in SHARES}
            for budget, made in plans(profile, forecast, budgets).items():
                yield Setting(name, f"{name}, {budget} steps", made.policy)
        elif name == "reuse":
            for every in (2, 3, 4, 6):
                chosen = policy("taylorseer", order=0, every=every, warmup=1)
                yield Setting(name, f"reuse every {every}", chosen)
        elif name == "scm":
            for preset, (computed, reused) in _MASKS.items():
                chosen = policy("scm", steps=step_mask(computed, reused, steps))
                yield Setting(name, f"scm {preset}", chosen)
        elif name in _CALIBRATED:
            yield from _calibrated(name, next(iter(denoisers(target).values())), run)
        else:
            knob, values, more = KNOBS[name]
            for value in values:
                yield Setting(name, f"{name} {value}", policy(name, **{knob: value, **more}))


def _calibrated(name: str, model: torch.nn.Module, run: Callable[[], Any]) -> Iterator[Setting]:
    """Gates with what they learn from the calibration pictures, over their threshold."""
    first = gate_fits.magcache(model, run) if name == "magcache" else gate_fits.teacache(model, run)
    for threshold in (0.06, 0.12, 0.24) if name == "magcache" else (0.05, 0.1, 0.2):
        yield Setting(name, f"{name} {threshold}", policy(first, threshold=threshold))
