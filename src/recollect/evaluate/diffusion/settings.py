"""Which settings of which recipes a frontier shows: each recipe over the range of its main knob."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from recollect.diffusion import DiffusionPolicy
from recollect.diffusion.planner import plans, record
from recollect.diffusion.policy import policy
from recollect.diffusion.predictors import Reuse, Taylor
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
}


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
        recipes: only these; all by default. `planned` and `planned reuse` are among them.

    Raises:
        RecipeError: a recipe that needs more than a knob.
    """
    wanted = recipes or ("planned", "planned reuse", "reuse", *KNOBS)
    unknown = [name for name in wanted if name not in ("planned", "planned reuse", "reuse", *KNOBS)]
    if unknown:
        raise RecipeError(
            f"no range of settings is known for '{unknown[0]}' "
            f"(there are: planned, planned reuse, reuse, {', '.join(KNOBS)})"
        )
    if {"planned", "planned reuse"} & set(wanted):
        profile = record(target, run)
    for name in wanted:
        if name.startswith("planned"):
            forecast = Reuse() if name == "planned reuse" else Taylor(order=1)
            budgets = {max(3, round(share * steps)) for share in SHARES}
            for budget, made in plans(profile, forecast, budgets).items():
                yield Setting(name, f"{name}, {budget} steps", made.policy)
        elif name == "reuse":
            for every in (2, 3, 4, 6):
                chosen = policy("taylorseer", order=0, every=every, warmup=1)
                yield Setting(name, f"reuse every {every}", chosen)
        else:
            knob, values, more = KNOBS[name]
            for value in values:
                yield Setting(name, f"{name} {value}", policy(name, **{knob: value, **more}))
