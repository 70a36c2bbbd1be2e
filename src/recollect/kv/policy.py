"""KVPolicy: everything a KV cache of one generation decides, as one frozen value.

It is what a composition of recipes becomes, and it goes to one line of YAML and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from recollect.core.budgets import check_keep
from recollect.errors import RecipeError
from recollect.kv import arena, budgets, codecs, merges, schedules, scores
from recollect.kv.arena import VirtualSlots
from recollect.kv.budgets import EqualHeads, FlatHeads, HeadBudget, LayerBudget, UniformLayers
from recollect.kv.codecs import IntCodec
from recollect.kv.merges import Merge
from recollect.kv.schedules import AfterPrefill, Schedule
from recollect.kv.scores import Score
from recollect.recipe import Composition, compose, one_line_yaml, read_yaml


@dataclass(frozen=True)
class Protect:
    """Tokens that stay whatever their score; they count against the budget.

    Attributes:
        sinks: first tokens of the sequence.
        recent: last tokens of the sequence.
    """

    sinks: int = 0
    recent: int = 0

    def __post_init__(self) -> None:
        if self.sinks < 0 or self.recent < 0:
            raise RecipeError(f"sinks and recent must not be negative, got {self}")


@dataclass(frozen=True)
class Positions:
    """Where kept tokens stand for the model.

    Attributes:
        contiguous: False keeps every token at its original position; True moves older tokens up so
            that distances have no gaps (StreamingLLM: never larger than the cache).
    """

    contiguous: bool = False


@dataclass(frozen=True)
class KVPolicy:
    """One stage of each kind; None where a policy does without.

    Attributes:
        keep: fraction (float in (0, 1]) or number (int) of tokens kept per KV head, on average over
            the layers, protected ones included.
        score, layers, heads, protect, merge, codec, positions, schedule, storage: the stages.
    """

    keep: float | int = 1.0
    score: Score | None = None
    layers: LayerBudget = field(default_factory=UniformLayers)
    heads: HeadBudget = field(default_factory=EqualHeads)
    protect: Protect = field(default_factory=Protect)
    merge: Merge | None = None
    codec: IntCodec | None = None
    positions: Positions = field(default_factory=Positions)
    schedule: Schedule = field(default_factory=AfterPrefill)
    storage: VirtualSlots | None = None

    def __post_init__(self) -> None:
        check_keep(self.keep)
        if isinstance(self.keep, int) and self.keep == 1:
            raise RecipeError(
                "keep=1 is ambiguous: write 1.0 for everything, or more tokens than one"
            )
        if self.keep != 1.0 and self.score is None and self.merge is None:
            raise RecipeError(
                f"keep={self.keep} but nothing here drops tokens; leave keep out, or add a score, "
                "e.g. 'snapkv + kivi'"
            )
        if self.score is not None and self.merge is not None:
            raise RecipeError(
                "a score drops tokens and this merge averages them; keep one of the two"
            )
        if self.codec is not None and self.schedule.repeats:
            raise RecipeError(
                f"{type(self.schedule).__name__} evicts again and again, but encoded tokens cannot "
                "be evicted one by one; combine the codec with a recipe that decides after prefill"
            )
        if self.codec is not None and self.merge is not None and self.merge.weighs:
            raise RecipeError(
                "encoded tokens cannot carry the weight of merged ones; pass weigh=False, or drop "
                "the codec"
            )
        if self.codec is not None and self.positions.contiguous:
            raise RecipeError("encoded keys cannot be moved to other positions; drop the codec")
        if self.storage is not None and not self.is_plain:
            raise RecipeError(
                "an arena holds whole sequences, exactly as they came; use keep=1.0 and no codec, "
                "or drop 'vattention'"
            )
        if isinstance(self.heads, FlatHeads) and self.score is not None:
            if self.score.shared_heads:
                raise RecipeError(
                    f"{type(self.score).__name__} keeps the same tokens in all heads; "
                    "it cannot share a budget among them"
                )
            if not self.score.comparable:
                raise RecipeError(
                    f"scores of {type(self.score).__name__} are not comparable between heads; "
                    "a budget shared among heads needs an attention-based score"
                )

    @property
    def is_plain(self) -> bool:
        """Whether this is the host's own cache: nothing dropped, merged or encoded."""
        return self.keep == 1.0 and self.codec is None

    @property
    def needs(self) -> set[str]:
        """What it asks of the host beyond keys, values and queries."""
        needs = set(self.score.needs) if self.score and self.keep != 1.0 else set()
        return needs | ({"rope"} if self.positions.contiguous else set())

    def to_yaml(self) -> str:
        """One line of YAML that `from_yaml` reads back to an equal policy."""
        out: dict[str, Any] = {"keep": self.keep}
        for kind, stage in stages_of(self).items():
            values = {f.name: getattr(stage, f.name) for f in fields(stage) if f.repr}
            out[kind] = {type(stage).__name__: values}
        return one_line_yaml(out)

    @classmethod
    def from_yaml(cls, text: str) -> KVPolicy:
        """Read a line written by `to_yaml`, or ``{recipe: snapkv + kivi, keep: 0.25, bits: 2}``."""
        values = read_yaml(text)
        if "recipe" in values:
            return policy(values.pop("recipe"), **values)
        keep = values.pop("keep", 1.0)
        return cls(keep=keep, **{kind: _read_stage(kind, value) for kind, value in values.items()})


def policy(spec: str | Composition | KVPolicy, **arguments: Any) -> KVPolicy:
    """The policy a specification means.

    Args:
        spec: a recipe name, ``"a + b(x=1)"``, a line of YAML, a composition, or a policy.
        arguments: `keep`, any parameter of the recipes' stages, or a whole stage by its kind, e.g.
            ``schedule=PerBlock()``.

    Raises:
        RecipeError: unknown name or argument, or recipes that do not compose.
    """
    if isinstance(spec, str) and spec.lstrip().startswith("{"):
        spec = KVPolicy.from_yaml(spec)
    if isinstance(spec, KVPolicy):
        composition = Composition((), stages_of(spec))
        return replace(spec, **_with(composition, {"keep": spec.keep, **arguments}))
    if isinstance(spec, str):
        spec = compose(spec)
    if not isinstance(spec, Composition):
        raise RecipeError(f"expected a recipe name or a KVPolicy, got {type(spec).__name__}")
    wrong = [r.name for r in spec.recipes if r.area != "kv"]
    if wrong:
        raise RecipeError(f"not a recipe for KV caches: {', '.join(wrong)}")
    return KVPolicy(**_with(spec, arguments))


def stages_of(value: KVPolicy) -> dict[str, Any]:
    """The stages a policy has, by kind."""
    stages = {f.name: getattr(value, f.name) for f in fields(value) if f.name != "keep"}
    return {kind: stage for kind, stage in stages.items() if stage is not None}


def _with(composition: Composition, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Stages of a composition with whole stages and then single parameters replaced, and `keep`."""
    kinds = {f.name for f in fields(KVPolicy)}
    whole = {kind: value for kind, value in arguments.items() if kind in kinds}
    rest = {name: value for name, value in arguments.items() if name not in kinds}
    for kind, value in whole.items():
        if kind != "keep" and not is_dataclass(value):
            raise RecipeError(f"{kind} is a stage such as those in recollect.kv, not {value!r}")
    keep = {"keep": whole.pop("keep")} if "keep" in whole else {}
    changed = replace(composition, changed={**composition.changed, **whole})
    return {**changed.with_arguments(rest).stages, **keep}


def _read_stage(kind: str, value: Any) -> Any:
    rooms: dict[str, Any] = {
        "score": scores, "layers": budgets, "heads": budgets, "merge": merges,
        "codec": codecs, "schedule": schedules, "storage": arena,
    }  # fmt: skip
    own = {"protect": Protect, "positions": Positions}
    if kind not in rooms and kind not in own:
        raise RecipeError(f"unknown stage '{kind}'; there are: {', '.join([*rooms, *own])}")
    try:
        ((name, values),) = value.items()
        stage = own[kind] if kind in own else getattr(rooms[kind], name)
        return stage(**values)
    except (AttributeError, TypeError, ValueError) as error:
        raise RecipeError(f"cannot read stage '{kind}' from {value}: {error}") from error
