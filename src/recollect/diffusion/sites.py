"""What is reused on a skipped step: the model's output, or what some of its blocks would add.

Sites of the whole model need nothing but the model's call, and work everywhere. Sites of blocks
run the embeddings, the judging blocks and the output head on every step, so today's latent and
timestep still enter the result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from recollect.diffusion.artefacts import Artefact
from recollect.diffusion.engine.clock import Step
from recollect.diffusion.parts import Part
from recollect.errors import RecipeError

BLOCK_PREFERENCES = "block-preferences"

Range = tuple[int, int]
"""Blocks from the first to before the second, in the order in which they run."""


@dataclass(frozen=True)
class Site(Part):
    """Which tensors stand for the work that a skipped step leaves out."""


@dataclass(frozen=True)
class Velocity(Site):
    """What the model returns (velocity, noise or image): the smallest state there is."""


@dataclass(frozen=True)
class Transform(Site):
    """What the model adds to its latent, output - latent (EasyCache's transformation vector).

    Where the latent has more channels than the output, its first channels count.
    """


@dataclass(frozen=True)
class BlockSite(Site, ABC):
    """Some consecutive blocks, in one or several spans."""

    absolute: ClassVar[bool] = False
    """Whether the output of a span is held, rather than what it adds."""
    optional: ClassVar[bool] = False
    """Whether there may be no span, so that every step is computed."""

    @abstractmethod
    def spans(self, blocks: int, probe: int) -> tuple[Range, ...]:
        """All spans that are observed.

        Args:
            blocks: number of blocks.
            probe: first blocks that run on every step.
        """

    def active(self, step: Step, blocks: int, probe: int) -> tuple[Range, ...]:
        """The spans that a skipped step leaves out: all of them, unless the stage decides."""
        return self.spans(blocks, probe)


@dataclass(frozen=True)
class Hidden(BlockSite):
    """The output of the last block: only embeddings and output head run on a skipped step."""

    absolute: ClassVar[bool] = True

    def spans(self, blocks: int, probe: int) -> tuple[Range, ...]:
        return _nonempty((probe, blocks))


@dataclass(frozen=True)
class Span(BlockSite):
    """What all blocks but some at the front and the rear add together.

    Attributes:
        front: first blocks that always run (at least those a gate judges by).
        rear: last blocks that always run, on top of what is reused.
    """

    front: int = 0
    rear: int = 0

    def spans(self, blocks: int, probe: int) -> tuple[Range, ...]:
        return _nonempty((max(self.front, probe), blocks - self.rear))


@dataclass(frozen=True)
class StageSpan(BlockSite):
    """Delta-DiT (arXiv:2406.01125): the rear blocks early on a trajectory, the front ones late.

    Attributes:
        share: share of the blocks in a span.
        boundary: share of the trajectory after which the front is left out instead of the rear;
            by steps where their number is known, else by noise level.
    """

    share: float = 0.75
    boundary: float = 0.6

    def __post_init__(self) -> None:
        for name in ("share", "boundary"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{name} is between 0 and 1, not {getattr(self, name)}")

    def spans(self, blocks: int, probe: int) -> tuple[Range, ...]:
        length = round(self.share * blocks)
        front, rear = (probe, length), (max(probe, blocks - length), blocks)
        return tuple(dict.fromkeys(_nonempty(rear) + _nonempty(front)))

    def active(self, step: Step, blocks: int, probe: int) -> tuple[Range, ...]:
        passed = step.index / step.total if step.total else 1 - step.sigma
        spans = self.spans(blocks, probe)
        return spans[:1] if passed < self.boundary else spans[-1:]


@dataclass(frozen=True)
class Blocks(BlockSite):
    """Chosen blocks; those that follow one another form a span (ProfilingDiT).

    Attributes:
        chosen: their numbers, in the order in which blocks run; none leaves every step computed.
        profile: file of what was profiled (`attention.profiling`), instead of the numbers; its
            model is checked.
    """

    chosen: tuple[int, ...] | None = None
    profile: str = ""

    optional: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.chosen is not None and self.profile:
            raise RecipeError("give the blocks as `chosen` or by their `profile`, not both")
        if self.chosen is not None:
            object.__setattr__(self, "chosen", tuple(sorted(set(self.chosen))))

    def check(self, model: torch.nn.Module, sites: tuple[str, ...]) -> None:
        if self.chosen is None and not self.profile:
            raise RecipeError("no blocks are chosen: give `chosen`, or a `profile` of this model")
        if self.profile:
            self.__dict__.pop("_profiled", None)  # the file may be a newer one
            self._profiled.check(model)

    @cached_property
    def _profiled(self) -> Artefact:
        return Artefact.load(self.profile, BLOCK_PREFERENCES)

    def spans(self, blocks: int, probe: int) -> tuple[Range, ...]:
        chosen = self.chosen or ()
        if self.profile:
            chosen = tuple(self._profiled.tensors["chosen"].tolist())
        if chosen and chosen[-1] >= blocks:
            raise RecipeError(f"block {chosen[-1]} is chosen and the model has {blocks}")
        return runs([block for block in chosen if block >= probe])


@dataclass(frozen=True)
class ModuleSite(Site):
    """Outputs of some modules inside the model; the code around them runs on every step."""


@dataclass(frozen=True)
class Branch(ModuleSite):
    """DeepCache (arXiv:2312.00858): what the deep part of a U-Net hands to its last up-blocks.

    On a skipped step only the first down-blocks and the last up-blocks run, with fresh skip
    connections between them.

    Attributes:
        depth: down-blocks (and up-blocks) beyond the outermost that always run.
    """

    depth: int = 0

    def __post_init__(self) -> None:
        if self.depth < 0:
            raise RecipeError(f"depth is 0 or more, not {self.depth}")


@dataclass(frozen=True)
class Modules(ModuleSite):
    """Outputs of attention and feed-forward modules, before their gates (FORA, TaylorSeer).

    The adaptive norm runs on every step, so a skipped step still applies today's gate.

    Attributes:
        attention, feed_forward: which modules are left out on a skipped step.
    """

    attention: bool = True
    feed_forward: bool = True

    def __post_init__(self) -> None:
        if not (self.attention or self.feed_forward):
            raise RecipeError("choose attention, feed_forward or both: nothing would be reused")


def runs(chosen: Sequence[int]) -> tuple[Range, ...]:
    """Consecutive numbers as ranges: ``[0, 2, 3]`` gives ``(0, 1), (2, 4)``."""
    spans: list[Range] = []
    for block in chosen:
        if spans and spans[-1][1] == block:
            spans[-1] = (spans[-1][0], block + 1)
        else:
            spans.append((block, block + 1))
    return tuple(spans)


def _nonempty(span: Range) -> tuple[Range, ...]:
    return (span,) if span[0] < span[1] else ()
