"""What a store decides, as frozen stages: how prompts are cut, in what form chunks are kept, how
they survive the loss of a part of memory, and who makes room.

    store_plan("lmcache + cachegen(level=2)", chunk=512)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from recollect.errors import RecipeError
from recollect.recipe import Composition, compose


@dataclass(frozen=True)
class Chunks:
    """Prompts are cut every `chunk` tokens; what is left at the end is not stored."""

    chunk: int = 256

    def __post_init__(self) -> None:
        if type(self.chunk) is not int or self.chunk < 1:
            raise RecipeError(f"chunk is a number of tokens of at least 1, not {self.chunk!r}")


class FrameCodec(ABC):
    """In what form the keys and values of a chunk are packed."""

    @property
    @abstractmethod
    def name(self) -> str:
        """As `recollect.store.frames.encode_layers` knows it."""


@dataclass(frozen=True)
class DenseFrames(FrameCodec):
    """The bits as the model computed them."""

    @property
    def name(self) -> str:
        return "dense"


@dataclass(frozen=True)
class IntFrames(FrameCodec):
    """Integers of `bits` bits: keys per channel, values per token."""

    bits: int = 8

    def __post_init__(self) -> None:
        if self.bits not in (1, 2, 4, 8):
            raise RecipeError(f"bits is one of 1, 2, 4, 8, not {self.bits!r}")

    @property
    def name(self) -> str:
        return f"int{self.bits}"


@dataclass(frozen=True)
class CacheGenFrames(FrameCodec):
    """Quantized by layer and entropy-coded, from level 0 (best) to 3 (smallest)."""

    level: int = 1

    def __post_init__(self) -> None:
        if self.level not in range(4):
            raise RecipeError(f"level is 0 (best) to 3 (smallest), not {self.level!r}")

    @property
    def name(self) -> str:
        return f"cachegen-{self.level}"


@dataclass(frozen=True)
class Redundancy:
    """Entries of the host tier lie on `holders` memory segments, one of which holds the exclusive
    or of the others: any one may be lost, at ``1 / (holders - 1)`` more bytes."""

    holders: int = 4

    def __post_init__(self) -> None:
        if type(self.holders) is not int or self.holders < 2:
            raise RecipeError(f"redundancy needs at least 2 holders, not {self.holders!r}")


@dataclass(frozen=True)
class Replacement:
    """Who makes room in host and disk, by name (`recollect.core.replacement`)."""

    replacement: str = "s3fifo"


@dataclass(frozen=True)
class StorePlan:
    """One stage of each kind; no redundancy unless asked for."""

    chunks: Chunks = field(default_factory=Chunks)
    codec: FrameCodec = field(default_factory=DenseFrames)
    redundancy: Redundancy | None = None
    replacement: Replacement = field(default_factory=Replacement)


def store_plan(spec: str | Composition | StorePlan = "lmcache", **arguments: Any) -> StorePlan:
    """The plan a specification means.

    Args:
        spec: a recipe of area ``store``, ``"a + b(x=1)"``, a composition, or a plan.
        arguments: any parameter of the recipes' stages, or a whole stage by its kind, e.g.
            ``codec=IntFrames(bits=4)``.

    Raises:
        RecipeError: unknown name or argument, or recipes that do not compose.
    """
    if isinstance(spec, StorePlan):
        spec = Composition((), _stages_of(spec))
    if isinstance(spec, str):
        from recollect.store import catalogue  # noqa: F401  (fills its part of the registry)

        spec = compose(spec)
    if not isinstance(spec, Composition):
        raise RecipeError(f"expected the name of a store's recipe, got {type(spec).__name__}")
    wrong = [recipe.name for recipe in spec.recipes if recipe.area != "store"]
    if wrong:
        raise RecipeError(f"not a recipe for stores: {', '.join(wrong)}")
    kinds = {f.name for f in fields(StorePlan)}
    whole = {kind: x for kind, x in arguments.items() if kind in kinds and is_dataclass(x)}
    rest = {name: x for name, x in arguments.items() if name not in whole}
    stages = {**_stages_of(StorePlan()), **spec.stages, **whole}
    return StorePlan(**replace(spec, changed=stages).with_arguments(rest).stages)


def _stages_of(plan: StorePlan) -> Mapping[str, Any]:
    stages = {f.name: getattr(plan, f.name) for f in fields(plan)}
    return {kind: stage for kind, stage in stages.items() if stage is not None}
