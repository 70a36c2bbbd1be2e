"""Recipes: published systems as named, composable data.

A recipe names the *stages* it decides (a score, a budget, a codec …) and the paper they come from.
`a + b` puts the stages of both together; two recipes that decide the same stage differently are
refused in words. The registry knows every recipe of every room.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import yaml

from recollect.errors import RecipeError

# Each room lists its recipes in one module; importing it fills the registry.
CATALOGUES = {
    "kv": "recollect.kv.catalogue",
    "diffusion": "recollect.diffusion.catalogue",
    "store": "recollect.store.catalogue",
    "answers": "recollect.answers.catalogue",
}


@dataclass(frozen=True)
class Recipe:
    """One published system, as the stages it decides.

    Attributes:
        name: what users type, e.g. ``snapkv``.
        title: title of the paper.
        authors: first author and year, e.g. ``Li et al. 2024``.
        arxiv: arXiv id, or an empty string where there is none.
        area: the room it belongs to (``kv`` …).
        summary: one sentence: what it decides and how.
        stages: stage name -> stage (a frozen dataclass). What the recipe *claims*.
        fallback: stages it brings along unless another recipe of the composition claims them
            (Ada-KV shares out a budget for any score; alone it scores like SnapKV).
        needs: what it asks of the host beyond keys and values: ``queries``, ``rope``, ``artefact``.
        reported: what its paper reported, in the paper's own units.
        status: ``works`` when invariants, an independent oracle and the ordering its paper claims
            hold in the tests; ``experimental`` while the ordering is not shown on a trained model.
    """

    name: str
    title: str
    authors: str
    arxiv: str
    area: str
    summary: str
    stages: Mapping[str, Any] = field(default_factory=dict)
    fallback: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    reported: str = ""
    status: str = "works"

    @property
    def year(self) -> int:
        """Year of publication, read from `authors`."""
        return int(re.findall(r"\d{4}", self.authors)[-1])

    @property
    def defaults(self) -> dict[str, Any]:
        """Every parameter of every stage with its default value: the keywords that may be given."""
        return parameters({**self.fallback, **self.stages})

    def __add__(self, other: Recipe | Composition) -> Composition:
        return Composition((self,)) + other

    def __call__(self, **arguments: Any) -> Composition:
        return Composition((self,)).with_arguments(arguments)


@dataclass(frozen=True)
class Composition:
    """Recipes joined by `+`: one stage of each kind."""

    recipes: tuple[Recipe, ...]
    changed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return " + ".join(recipe.name for recipe in self.recipes)

    @property
    def stages(self) -> dict[str, Any]:
        """The stages in force: claimed ones, then fallbacks for what nobody claims."""
        claimed: dict[str, tuple[Recipe, Any]] = {}
        for recipe in self.recipes:
            for kind, stage in recipe.stages.items():
                if kind in claimed and claimed[kind][1] != stage:
                    raise RecipeError(
                        f"'{claimed[kind][0].name}' and '{recipe.name}' both decide the {kind}; "
                        "keep one of them"
                    )
                claimed[kind] = (recipe, stage)
        stages = {kind: stage for kind, (_, stage) in claimed.items()}
        for recipe in self.recipes:
            for kind, stage in recipe.fallback.items():
                stages.setdefault(kind, stage)
        return {**stages, **self.changed}

    def __add__(self, other: Recipe | Composition) -> Composition:
        other = Composition((other,)) if isinstance(other, Recipe) else other
        areas = {recipe.area for recipe in self.recipes + other.recipes}
        if len(areas) > 1:
            raise RecipeError(
                f"recipes of different rooms do not compose: {', '.join(sorted(areas))}"
            )
        both = set(self.changed) & set(other.changed)
        if any(self.changed[kind] != other.changed[kind] for kind in both):
            raise RecipeError(
                f"'{self.name}' and '{other.name}' set the {', '.join(both)} differently"
            )
        joined = Composition(self.recipes + other.recipes, {**self.changed, **other.changed})
        _ = joined.stages  # a conflict is reported where the sum is written
        return joined

    def with_arguments(self, arguments: Mapping[str, Any]) -> Composition:
        """The same composition with parameters of its stages replaced, e.g. ``bits=2``."""
        stages, changed = self.stages, dict(self.changed)
        for name, value in arguments.items():
            owners = [kind for kind, stage in stages.items() if name in _field_names(stage)]
            if not owners:
                known = sorted({"keep", *parameters(stages)})
                raise RecipeError(
                    f"recipe '{self.name}' has no argument '{name}'{_did_you_mean(name, known)}; "
                    f"it takes {', '.join(known)}"
                )
            for kind in owners:
                stages[kind] = changed[kind] = replace(stages[kind], **{name: value})
        return replace(self, changed=changed)


def parameters(stages: Mapping[str, Any]) -> dict[str, Any]:
    """Parameter name -> value over all stages (init fields of their dataclasses)."""
    return {name: getattr(stage, name) for stage in stages.values() for name in _field_names(stage)}


_REGISTRY: dict[str, Recipe] = {}


def register(*recipes: Recipe) -> None:
    """Add recipes to the registry. Raises RecipeError when a name is taken by another recipe."""
    for recipe in recipes:
        if _REGISTRY.get(recipe.name, recipe) != recipe:
            raise RecipeError(f"the name '{recipe.name}' is taken by another recipe")
        _REGISTRY[recipe.name] = recipe


def recipes(area: str | None = None) -> list[Recipe]:
    """All recipes, or those of one room, in the order of its catalogue."""
    if area is not None and area not in CATALOGUES:
        raise RecipeError(f"unknown area '{area}'; there are: {', '.join(CATALOGUES)}")
    _load_catalogues()
    return [recipe for recipe in _REGISTRY.values() if area in (None, recipe.area)]


def find(name: str) -> Recipe:
    """The recipe of that name. Raises RecipeError with the nearest name when there is none."""
    if name not in _REGISTRY:  # a room that filled its own part needs no other room's imports
        _load_catalogues()
    if name not in _REGISTRY:
        raise RecipeError(
            f"unknown recipe '{name}'{_did_you_mean(name, _REGISTRY)} (recollect recipes lists all)"
        )
    return _REGISTRY[name]


def compose(spec: str) -> Composition:
    """Read ``"snapkv + kivi(bits=2)"``: names joined by `+`, each with optional arguments."""
    composition: Composition | None = None
    for part in re.split(r"\+(?![^(]*\))", spec):
        term = _parse_term(part.strip(), spec)
        composition = term if composition is None else composition + term
    assert composition is not None
    return composition


def one_line_yaml(value: Mapping[str, Any]) -> str:
    """A mapping as one line of YAML flow style."""
    return yaml.safe_dump(
        dict(value), default_flow_style=True, sort_keys=False, width=10**6
    ).strip()


def read_yaml(text: str) -> dict[str, Any]:
    """The mapping in a line of YAML. Raises RecipeError on anything else."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"not readable as YAML: {reason}") from error
    if not isinstance(value, dict):
        raise RecipeError(
            f"expected a YAML mapping like {{recipe: snapkv, keep: 0.25}}, got: {text}"
        )
    return value


def _parse_term(term: str, spec: str) -> Composition:
    match = re.fullmatch(r"([\w.-]+)\s*(?:\((.*)\))?", term, re.DOTALL)
    if match is None:
        raise RecipeError(
            f"cannot read '{term}' in '{spec}'; write names joined by +, e.g. snapkv + kivi"
        )
    name, arguments = match.groups()
    try:
        call = ast.parse(f"f({arguments or ''})", mode="eval").body
        assert isinstance(call, ast.Call)
        values = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords if k.arg}
        if call.args or len(values) != len(call.keywords):
            raise ValueError("arguments need names")
    except (SyntaxError, ValueError) as error:
        raise RecipeError(
            f"cannot read the arguments of '{term}'; write e.g. kivi(bits=2)"
        ) from error
    return Composition((find(name),)).with_arguments(values)


def _field_names(stage: Any) -> list[str]:
    """Parameters a user may set: fields that show; hidden ones are filled by the room."""
    return [f.name for f in fields(stage) if f.init and f.repr]


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def _load_catalogues() -> None:
    for module in CATALOGUES.values():
        importlib.import_module(module)
