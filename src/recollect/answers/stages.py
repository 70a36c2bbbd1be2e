"""From the name of a recipe to the objects `Answers` asks.

A stage is a frozen dataclass; one that keeps state is built here, once per cache. A verifier that
compares vectors offers `build_for(encoder)` and shares the cache's encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recollect.answers.decision import (
    AdmissionPolicy,
    Classifier,
    DecisionPolicy,
    Lifetimes,
    Verifier,
)
from recollect.answers.gates import WriteGates
from recollect.answers.identity import SemanticRules
from recollect.errors import RecipeError

if TYPE_CHECKING:
    from recollect.answers.encoders.base import Encoder
    from recollect.answers.index.base import VectorIndex

KINDS = (
    "encoder",
    "index",
    "classifier",
    "decision",
    "lifetimes",
    "verifier",
    "admission",
    "rules",
)
OF_EXAMPLES = ("selector", "router", "manager")  # asked by examples.InContextCache, not by Answers


@dataclass
class Stages:
    """What a cache asks; None where a recipe decides nothing."""

    encoder: Encoder | None = None
    index: Callable[[int, str], VectorIndex] | None = None
    classifier: Classifier | None = None
    decision: DecisionPolicy | None = None
    lifetimes: Lifetimes | None = None
    verifier: Verifier | None = None
    admission: AdmissionPolicy | None = None
    rules: SemanticRules | None = None


def build_stages(recipe: Any, arguments: Mapping[str, Any], encoder: Any = None) -> Stages:
    """The stages of a recipe.

    Args:
        recipe: a name like ``exact`` or ``category-cache + vcache``, or a Composition.
        arguments: parameters of its stages by name, or whole stages by kind (``verifier=…``).
        encoder: an Encoder or the name of one; overrides the recipe's.

    Raises RecipeError on unknown names.
    """
    given = {kind: value for kind, value in arguments.items() if kind in KINDS}
    named = {name: value for name, value in arguments.items() if name not in KINDS}
    parts = {**_recipe_stages(recipe, named), **given}
    parts = {kind: part for kind, part in parts.items() if kind not in OF_EXAMPLES}
    unknown = [kind for kind in parts if kind not in KINDS]
    if unknown:
        raise RecipeError(f"no stage '{unknown[0]}' in answers; there are: {', '.join(KINDS)}")
    if encoder is not None:
        parts["encoder"] = encoder
    elif "decision" in parts:
        parts.setdefault("encoder", "ngram")
    index, verifier = parts.pop("index", None), parts.pop("verifier", None)
    stages = Stages(**{kind: _built(kind, part) for kind, part in parts.items()})
    if hasattr(verifier, "build_for") and stages.encoder is not None:
        stages.verifier = verifier.build_for(stages.encoder)
    elif verifier is not None:
        stages.verifier = _built("verifier", verifier)
    if stages.encoder is not None:
        stages.index = index.build if index is not None else _growing_index
    if stages.admission is None:
        stages.admission = WriteGates()
    if stages.encoder is not None and stages.decision is None:
        raise RecipeError("an encoder needs a recipe that decides, e.g. recipe='category-cache'")
    return stages


def _recipe_stages(recipe: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    if recipe == "exact" and not arguments:
        return {}  # the registry stays unread: nothing heavy is imported
    from recollect.answers import catalogue  # noqa: F401  (fills its part of the registry)
    from recollect.recipe import Composition, Recipe, compose

    if isinstance(recipe, Recipe):
        recipe = Composition((recipe,))
    composition = compose(recipe) if isinstance(recipe, str) else recipe
    other = [part.name for part in composition.recipes if part.area != "answers"]
    if other:
        raise RecipeError(f"'{other[0]}' is no recipe for answers")
    return composition.with_arguments(arguments).stages


def _built(kind: str, part: Any) -> Any:
    if kind == "encoder" and isinstance(part, str):
        from recollect.answers.encoders.base import make_encoder

        return make_encoder(part)
    return part.build() if hasattr(part, "build") else part


def _growing_index(dim: int, encoder_id: str) -> VectorIndex:
    from recollect.answers.index.growing import GrowingIndex

    return GrowingIndex(dim, encoder_id)
