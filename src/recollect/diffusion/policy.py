"""DiffusionPolicy: the parts of one way to cache features across denoising steps.

Site, gate, predictor, corrector and batch policy are independent: every gate takes every predictor
at every site.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from recollect.diffusion import correctors, gates, predictors, sites
from recollect.diffusion.correctors import Corrector
from recollect.diffusion.gates import Gate, Interval
from recollect.diffusion.predictors import Predictor, Reuse
from recollect.diffusion.sites import Site, Velocity
from recollect.errors import RecipeError
from recollect.recipe import Composition, compose, one_line_yaml, read_yaml

BATCHES = ("any", "all", "split")
_KINDS = {
    "site": (sites, Site),
    "gate": (gates, Gate),
    "predictor": (predictors, Predictor),
    "corrector": (correctors, Corrector),
}


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

    def to_yaml(self) -> str:
        """One line of YAML that `from_yaml` reads back to an equal policy."""
        out: dict[str, Any] = {"batch": self.batch, "limit": self.limit}
        for kind in _KINDS:
            if (part := getattr(self, kind)) is not None:
                values = {f.name: _plain(getattr(part, f.name)) for f in fields(part) if f.repr}
                out[kind] = {type(part).__name__: values}
        return one_line_yaml(out)

    @classmethod
    def from_yaml(cls, text: str) -> DiffusionPolicy:
        """Read a line written by `to_yaml`. Raises RecipeError on anything else."""
        given = read_yaml(text)
        unknown = set(given) - set(_KINDS) - {"batch", "limit"}
        if unknown:
            raise RecipeError(f"a policy has no part '{unknown.pop()}'")
        parts = {kind: _read_part(kind, given[kind]) for kind in _KINDS if kind in given}
        return cls(**parts, batch=given.get("batch", "any"), limit=given.get("limit"))


def policy(spec: str | Composition | DiffusionPolicy, **arguments: Any) -> DiffusionPolicy:
    """The policy a specification means.

    Args:
        spec: a recipe name, ``"a + b(x=1)"``, a line of YAML, a composition, or a policy.
        arguments: `batch`, `limit`, any parameter of the parts, or a whole part by its kind, e.g.
            ``site=Hidden()``.

    Raises:
        RecipeError: an unknown name or argument, or recipes of another room.
    """
    if isinstance(spec, str) and spec.lstrip().startswith("{"):
        spec = DiffusionPolicy.from_yaml(spec)
    whole = {n: arguments.pop(n) for n in ("batch", "limit", *_KINDS) if n in arguments}
    if isinstance(spec, DiffusionPolicy):
        base = spec
        parts = {kind: getattr(spec, kind) for kind in _KINDS if getattr(spec, kind) is not None}
        composition = Composition((), parts)
    else:
        base = DiffusionPolicy()
        composition = compose(spec) if isinstance(spec, str) else spec
        areas = {recipe.area for recipe in composition.recipes}
        if areas != {"diffusion"}:
            raise RecipeError(
                f"'{composition.name}' is not of the diffusion room; recollect recipes lists those"
            )
    return replace(base, **{**composition.with_arguments(arguments).stages, **whole})


def _read_part(kind: str, given: Any) -> Any:
    module, base = _KINDS[kind]
    known = {
        name: part
        for name, part in vars(module).items()
        if isinstance(part, type) and issubclass(part, base) and not name.startswith("_")
    }
    if not isinstance(given, Mapping) or len(given) != 1 or next(iter(given)) not in known:
        raise RecipeError(f"the {kind} is one of {', '.join(sorted(known))}, not {given}")
    ((name, values),) = given.items()
    values = {n: tuple(v) if isinstance(v, list) else v for n, v in (values or {}).items()}
    try:
        return known[name](**values)
    except TypeError as error:
        raise RecipeError(f"{name} does not take {', '.join(values)}: {error}") from error


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value
