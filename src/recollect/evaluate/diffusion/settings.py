"""Which settings of which recipes a frontier shows: each recipe over the range of its main knob."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from recollect.diffusion.planner import plans
from recollect.diffusion.policy import policy
from recollect.diffusion.predictors import Reuse, Taylor
from recollect.diffusion.schedules import step_mask
from recollect.errors import RecipeError
from recollect.evaluate.diffusion import calibrated, editing
from recollect.evaluate.diffusion.painters import Painter
from recollect.evaluate.diffusion.workbench import Setting, Workbench

SHARES = (0.5, 0.4, 0.33, 0.27)

# Recipe -> (knob, values, further arguments). None of them is calibrated.
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
    "fastercache": ("renew", (2, 3, 5), {}),
    "deepcache": ("every", (2, 3, 5), {}),
}
# Compute and reuse bins of cache-dit's presets, stretched to the number of steps.
_MASKS = {
    "slow": ([8, 3, 3, 2, 1, 1], [1, 2, 2, 2, 3]),
    "medium": ([6, 2, 2, 2, 2, 1], [1, 3, 3, 3, 3]),
    "fast": ([6, 1, 1, 1, 1, 1], [1, 3, 4, 5, 4]),
    "ultra": ([4, 1, 1, 1, 1], [2, 5, 6, 7]),
}


def _planned(bench: Workbench, name: str) -> Iterator[Setting]:
    forecast = Reuse() if name == "planned reuse" else Taylor(order=1)
    budgets = {max(3, round(share * bench.steps)) for share in SHARES}
    for budget, made in plans(bench.profile, forecast, budgets).items():
        yield Setting(name, f"{name}, {budget} steps", made.policy)


def _reuse(bench: Workbench, name: str) -> Iterator[Setting]:
    for every in (2, 3, 4, 6):
        chosen = policy("taylorseer", order=0, every=every, warmup=1)
        yield Setting(name, f"reuse every {every}", chosen)


def _scm(bench: Workbench, name: str) -> Iterator[Setting]:
    for preset, (computed, reused) in _MASKS.items():
        chosen = policy(name, steps=step_mask(computed, reused, bench.steps))
        yield Setting(name, f"{name} {preset}", chosen)


def _knob(bench: Workbench, name: str) -> Iterator[Setting]:
    knob, values, more = KNOBS[name]
    for value in values:
        yield Setting(name, f"{name} {value}", policy(name, **{knob: value, **more}))


_GENERAL: dict[str, Callable[[Workbench, str], Iterator[Setting]]] = {
    "planned": _planned,
    "planned reuse": _planned,
    "reuse": _reuse,
    **dict.fromkeys(KNOBS, _knob),
    "scm": _scm,
    "magcache": calibrated.magcache,
    "teacache fitted": calibrated.teacache,
    "ertacache": calibrated.ertacache,
}
_MAKERS = {**_GENERAL, **calibrated.MAKERS, **editing.MAKERS}
NAMES = tuple(_MAKERS)

# What is tried by default. A recipe that does not fit a model says so in its row.
BY_KIND: dict[str, tuple[str, ...]] = {
    "pipelines": tuple(_GENERAL),
    "images": (
        *_GENERAL, "ertacache with lengths", "harmonica", "tfmq-tib", "quantized", "cachequant",
        "qc",
    ),
    "videos": (*_GENERAL, "tfmq-tib", "profilingdit", "focal-guidance"),
    "edits": (
        "planned", "planned reuse", "reuse", "taylorseer", "easycache + taylorseer",
        "regione", "regione with decay", "reference-bank",
    ),
    "conditions": ("easycontrol", "easycontrol + taylorseer"),
    "control": ("planned", "reuse", "taylorseer", "fora", "bac"),
}  # fmt: skip


def recipes_for(painter: Painter, wanted: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The recipes to try: those wanted, or all that are meant for such a model.

    Raises RecipeError for one that no range of settings is known of.
    """
    for name in wanted:
        if name not in _MAKERS:
            raise RecipeError(
                f"no range of settings is known for '{name}' (there are: {', '.join(NAMES)})"
            )
    return wanted or BY_KIND[painter.kind]


def settings(bench: Workbench, recipe: str) -> Iterator[Setting]:
    """All settings of a recipe, calibrated where it must be.

    Raises:
        HostError: the recipe does not fit the model.
    """
    return _MAKERS[recipe](bench, recipe)
