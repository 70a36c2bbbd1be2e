"""DiffusionPolicy: the parts of one way to cache features across denoising steps.

Site, gate, predictor, corrector and batch policy are independent: every gate takes every predictor
at every site.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from recollect.diffusion.correctors import Corrector
from recollect.diffusion.gates import Gate, Interval
from recollect.diffusion.predictors import Predictor, Reuse
from recollect.diffusion.sites import Site, Velocity
from recollect.errors import RecipeError
from recollect.recipe import Composition, compose

BATCHES = ("any", "all", "split")


@dataclass(frozen=True)
class DiffusionPolicy:
    """What is reused, when, and how it is made.

    Attributes:
        site: which tensors stand for the skipped work.
        gate: which steps are skipped.
        predictor: how the value of a skipped step is made.
        corrector: what is done to it before use.
        batch: where samples of a batch disagree: `any` computes all when one needs it, `all`
            computes only when all need it, `split` runs just those that need it.
        limit: most bytes of state per branch; more is refused before the first skipped step.
    """

    site: Site = field(default_factory=Velocity)
    gate: Gate = field(default_factory=Interval)
    predictor: Predictor = field(default_factory=Reuse)
    corrector: Corrector | None = None
    batch: str = "any"
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.batch not in BATCHES:
            raise RecipeError(f"batch is one of {', '.join(BATCHES)}, not '{self.batch}'")


def policy(spec: str | Composition | DiffusionPolicy, **arguments: Any) -> DiffusionPolicy:
    """Read a recipe, a composition or a policy, with parameters of its parts replaced.

    Raises:
        RecipeError: an unknown name or argument, or recipes of another room.
    """
    own = {name: arguments.pop(name) for name in ("batch", "limit") if name in arguments}
    if isinstance(spec, DiffusionPolicy):
        return replace(_with_arguments(spec, arguments), **own)
    composition = compose(spec) if isinstance(spec, str) else spec
    areas = {recipe.area for recipe in composition.recipes}
    if areas != {"diffusion"}:
        raise RecipeError(
            f"'{composition.name}' is not of the diffusion room; recollect recipes lists those"
        )
    return DiffusionPolicy(**composition.with_arguments(arguments).stages, **own)


def _with_arguments(given: DiffusionPolicy, arguments: Mapping[str, Any]) -> DiffusionPolicy:
    changed: dict[str, Any] = {}
    for name, value in arguments.items():
        owners = [
            part.name
            for part in fields(given)
            if hasattr(type(getattr(given, part.name)), "__dataclass_fields__")
            and name in type(getattr(given, part.name)).__dataclass_fields__
        ]
        if not owners:
            raise RecipeError(f"no part of the policy has an argument '{name}'")
        for owner in owners:
            part = changed.get(owner, getattr(given, owner))
            changed[owner] = replace(part, **{name: value})
    return replace(given, **changed)
