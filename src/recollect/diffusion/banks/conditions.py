"""Condition tokens whose keys and values are computed once per request.

EasyControl (Zhang et al. 2025, arXiv 2503.07027): tokens of a condition (an outline, a subject)
attend to nothing but themselves and are given a noise level of their own, so nothing about them
depends on noise, text or step. Here they run once, by themselves; later only their keys and values
take part, and no layer sees them again. That is exact for models trained that way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from recollect.diffusion.artefacts import Artefact
from recollect.diffusion.banks.lora import KIND, Weights, read_adapter
from recollect.diffusion.companions import Companion
from recollect.errors import RecipeError

if TYPE_CHECKING:
    from recollect.diffusion.engine.session import Session
    from recollect.diffusion.host.hooks import Installed


@dataclass(frozen=True)
class ConditionBank(Companion):
    """Keys and values of condition tokens, kept for a request.

    A call brings the tokens of the result first and those of conditions behind them; position ids
    tell them apart: the first coordinate is 0 for the result, and another number per condition.
    Tokens with numbers below `first` (the reference of an editing model) run along as they would.

    Attributes:
        lora: files of the conditions' adapters (`train_condition`), in the order of the numbers;
            one serves all conditions, none leaves the weights as they are.
        first: lowest number of a condition.
        level: noise level that condition tokens are given.
        pooled: whether they are given the prompt's pooled embedding too, as the authors' code
            does; then another prompt means another bank.
        reuse: False computes them on every step, to compare with.
    """

    lora: tuple[str, ...] = ()
    first: int = 1
    level: float = 0.0
    pooled: bool = False
    reuse: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.lora, str):
            object.__setattr__(self, "lora", (self.lora,))
        if self.first < 1:
            raise RecipeError(f"first is 1 or more, not {self.first}: 0 is the result")
        if not 0 <= self.level <= 1:
            raise RecipeError(f"level is a noise level from 0 to 1, not {self.level}")

    def check(self, model: torch.nn.Module, sites: tuple[str, ...]) -> None:
        """Refuse adapters of another model."""
        for path in self.lora:
            Artefact.load(path, KIND).check(model)

    def install(self, model: torch.nn.Module, session: Session, installed: Installed) -> None:
        """Stand between policy and denoiser, in its attention and its linear layers."""
        from recollect.diffusion.banks import engine

        adapters = [read_adapter(Artefact.load(path, KIND)) for path in self.lora]
        engine.attach_conditions(self, model, session, installed, adapters)


@dataclass(frozen=True)
class LearningBank(ConditionBank):
    """A bank whose one adapter is being learned: nothing is kept, gradients reach `weights`."""

    weights: Weights = field(default_factory=dict, repr=False, compare=False)
    reuse: bool = field(default=False, init=False)

    def install(self, model: torch.nn.Module, session: Session, installed: Installed) -> None:
        """Like the bank it is, with `weights` for an adapter."""
        from recollect.diffusion.banks import engine

        engine.attach_conditions(self, model, session, installed, [self.weights])


def condition_ids(
    number: int, size: tuple[int, int], grid: tuple[int, int], shift: tuple[float, float] = (0, 0)
) -> torch.Tensor:
    """Position ids of a condition: (height * width, 3) of number, row, column.

    Args:
        number: of the condition, 1 or more.
        size: tokens of the condition, height and width.
        grid: tokens of the result: a condition of another size is spread over it, token centre
            over token centre.
        shift: rows and columns to move it by, for subjects that lie beside the result.
    """
    axes = [
        (torch.arange(own) + 0.5) * whole / own - 0.5 + by
        for own, whole, by in zip(size, grid, shift, strict=True)
    ]
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([torch.full_like(rows, number), rows, columns], -1).flatten(0, 1)
