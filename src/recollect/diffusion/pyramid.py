"""Intervals that differ by the kind of a module: attention over space, over time, to the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from recollect.diffusion.engine.clock import Step
from recollect.diffusion.gates import Gate, Ledger
from recollect.errors import RecipeError

if TYPE_CHECKING:
    from recollect.diffusion.host.modules import Submodule


@dataclass(frozen=True, kw_only=True)
class Pyramid(Gate):
    """Pyramid attention broadcast (PAB, arXiv:2408.12588), for the site `Modules`.

    Between two moments each kind of module is computed at every n-th step only; outside, at every
    step. Which kind a module is, is found by the model's structure.

    Attributes:
        spatial, temporal, cross: interval of self-attention over an image, of that over frames, and
            of attention to a text; 1 computes every step.
        feed_forward: interval of feed-forward modules, in the `blocks` given.
        blocks: numbers of blocks, in the order in which they run, whose feed-forward modules are
            broadcast; None for all.
        after, before: the moments, as timesteps of a training of 1,000, both outside the range.
    """

    spatial: int = 2
    temporal: int = 3
    cross: int = 6
    feed_forward: int = 1
    blocks: tuple[int, ...] | None = None
    after: float = 100.0
    before: float = 800.0

    measures: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks is not None:
            object.__setattr__(self, "blocks", tuple(self.blocks))
        for name in ("spatial", "temporal", "cross", "feed_forward"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is 1 or more, not {getattr(self, name)}")
        if not self.after < self.before:
            raise RecipeError(f"after={self.after} is not below before={self.before}")

    def judge(self, step: Step, ledger: Ledger, seen: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(ledger.run), dtype=torch.bool)  # the flags say which modules

    def module_flags(self, step: Step, modules: Sequence[Submodule]) -> tuple[bool, ...] | None:
        if not self.after < 1000 * step.sigma < self.before:
            return (True,) * len(modules)
        return tuple(step.index % self._interval(module) == 0 for module in modules)

    def _interval(self, module: Submodule) -> int:
        every = {
            "spatial": self.spatial,
            "temporal": self.temporal,
            "cross": self.cross,
            "feed_forward": self._feed_forward(module),
            "fused": min(self.spatial, self._feed_forward(module)),  # one output for both
        }
        return every.get(module.kind, 1)

    def _feed_forward(self, module: Submodule) -> int:
        chosen = self.blocks is None or module.block in self.blocks
        return self.feed_forward if chosen else 1
