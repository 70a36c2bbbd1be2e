"""DiffusionPolicy: the parts of one way to cache features across denoising steps.

Site, gate, predictor, corrector and batch policy are independent: every gate takes every predictor
at every site.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from recollect.diffusion.companions import Companion, known
from recollect.diffusion.correctors import Corrector
from recollect.diffusion.gates import Gate
from recollect.diffusion.parts import Part, kinds_of
from recollect.diffusion.predictors import Predictor, Reuse
from recollect.diffusion.schedules import Interval
from recollect.diffusion.sites import Site, Velocity
from recollect.errors import RecipeError, StoreError
from recollect.recipe import Composition, compose, find, one_line_yaml, read_yaml

BATCHES = ("any", "all", "split")
MULTISTEP = ("leave", "inform")
_SETTINGS = ("batch", "limit", "multistep", "model")
_KINDS: dict[str, type[Part]] = {
    "site": Site,
    "gate": Gate,
    "predictor": Predictor,
    "corrector": Corrector,
}


@dataclass(frozen=True)
class DiffusionPolicy:
    """What is reused, when, and how it is made.

    Attributes:
        site: which tensors stand for the skipped work.
        gate: which steps are skipped.
        predictor: how the value of a skipped step is made.
        corrector: what is done to it before use.
        companions: caches that work beside, each with hooks of its own.
        batch: where samples of a batch disagree: `any` computes all when one needs it, `all`
            computes only when all need it, `split` runs just those that need it.
        limit: most bytes of state per branch; more is refused before anything is computed where
            shapes can be foreseen, else before the first skipped step.
        multistep: what a multistep solver of a pipeline (DPM-Solver++, UniPC, DEIS) hears of a
            reused output: `leave` tells it nothing, `inform` makes that step one of first order.
        model: `artefacts.fingerprint` of the denoiser that it was tuned for; others are refused.
            Empty: made for none in particular.
    """

    site: Site = field(default_factory=Velocity)
    gate: Gate = field(default_factory=Interval)
    predictor: Predictor = field(default_factory=Reuse)
    corrector: Corrector | None = None
    companions: tuple[Companion, ...] = ()
    batch: str = "any"
    limit: int | None = None
    multistep: str = "leave"
    model: str = ""

    def __post_init__(self) -> None:
        if self.batch not in BATCHES:
            raise RecipeError(f"batch is one of {', '.join(BATCHES)}, not '{self.batch}'")
        if self.multistep not in MULTISTEP:
            raise RecipeError(f"multistep is one of {', '.join(MULTISTEP)}, not '{self.multistep}'")

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts, companions last."""
        found = (getattr(self, kind) for kind in _KINDS)
        return (*(part for part in found if part is not None), *self.companions)

    def to_yaml(self) -> str:
        """One line of YAML that `from_yaml` reads back to an equal policy."""
        out: dict[str, Any] = {name: getattr(self, name) for name in _SETTINGS}
        for kind in _KINDS:
            if (part := getattr(self, kind)) is not None:
                out[kind] = _write_part(part)
        if self.companions:
            out["companions"] = [_write_part(part) for part in self.companions]
        return one_line_yaml(out)

    @classmethod
    def from_yaml(cls, text: str) -> DiffusionPolicy:
        """Read a line written by `to_yaml`. Raises RecipeError on anything else."""
        given = read_yaml(text)
        unknown = set(given) - set(_KINDS) - {*_SETTINGS, "companions"}
        if unknown:
            raise RecipeError(f"a policy has no part '{unknown.pop()}'")
        find("taylorseer")  # loads the catalogue, and with it every part
        parts = {
            kind: _read_part(kind, given[kind], kinds_of(_KINDS[kind]))
            for kind in _KINDS
            if kind in given
        }
        beside = given.get("companions", [])
        parts["companions"] = tuple(_read_part("companion", one, known()) for one in beside)
        return cls(**parts, **{name: given[name] for name in _SETTINGS if name in given})


def policy(spec: str | Path | Composition | DiffusionPolicy, **arguments: Any) -> DiffusionPolicy:
    """The policy a specification means.

    Args:
        spec: a recipe name, ``"a + b(x=1)"``, a line of YAML, the path of a file that
            `recollect plan-diffusion` wrote, a composition, or a policy.
        arguments: `batch`, `limit`, any parameter of the parts, or a whole part by its kind, e.g.
            ``site=Hidden()``.

    Raises:
        RecipeError: an unknown name or argument, or recipes of another room.
        StoreError: a file that cannot be read.
    """
    if isinstance(spec, Path) or (isinstance(spec, str) and spec.endswith((".yaml", ".yml"))):
        spec = _saved(Path(spec))
    if isinstance(spec, str) and spec.lstrip().startswith("{"):
        spec = DiffusionPolicy.from_yaml(spec)
    whole = {n: arguments.pop(n) for n in (*_SETTINGS, "companions", *_KINDS) if n in arguments}
    if isinstance(spec, DiffusionPolicy):
        base = replace(spec, companions=())
        parts = {kind: getattr(spec, kind) for kind in _KINDS if getattr(spec, kind) is not None}
        parts |= {f"companion {n}": part for n, part in enumerate(spec.companions)}
        composition = Composition((), parts)
    else:
        # A recipe without a gate, such as a table, skips nothing.
        base = DiffusionPolicy(gate=Interval(every=1))
        composition = compose(spec) if isinstance(spec, str) else spec
        areas = {recipe.area for recipe in composition.recipes}
        if areas != {"diffusion"}:
            raise RecipeError(
                f"'{composition.name}' is not of the diffusion room; recollect recipes lists those"
            )
    stages = composition.with_arguments(arguments).stages
    companions = tuple(stage for stage in stages.values() if isinstance(stage, Companion))
    chosen = {kind: stage for kind, stage in stages.items() if kind in _KINDS}
    return replace(base, **{"companions": companions, **chosen, **whole})


def _saved(path: Path) -> str:
    """The policy in a plan's file."""
    try:
        text = path.read_text()
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error}") from error
    line = read_yaml(text).get("policy")
    if not isinstance(line, str):
        raise StoreError(f"{path} holds no policy; write one with recollect plan-diffusion")
    return line


def _write_part(part: Any) -> dict[str, Any]:
    values = {f.name: _plain(getattr(part, f.name)) for f in fields(part) if f.repr}
    return {type(part).__name__: values}


def _read_part(kind: str, given: Any, members: Mapping[str, type]) -> Any:
    if not isinstance(given, Mapping) or len(given) != 1 or next(iter(given)) not in members:
        raise RecipeError(f"the {kind} is one of {', '.join(sorted(members))}, not {given}")
    ((name, values),) = given.items()
    values = {n: tuple(v) if isinstance(v, list) else v for n, v in (values or {}).items()}
    try:
        return members[name](**values)
    except TypeError as error:
        raise RecipeError(f"{name} does not take {', '.join(values)}: {error}") from error


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value
