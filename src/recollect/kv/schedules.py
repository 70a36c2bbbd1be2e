"""Schedules: when a layer decides what to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from recollect.errors import RecipeError


@dataclass(frozen=True)
class Schedule:
    """Contract of a schedule. The layer asks after every forward pass.

    Attributes:
        every_chunk: decide after each later multi-token pass too, not only after the first.
        every_steps: decide again each time this many single tokens came; 0 means never.
    """

    repeats: ClassVar[bool] = False

    @property
    def every_chunk(self) -> bool:
        return False

    @property
    def every_steps(self) -> int:
        return 0


@dataclass(frozen=True)
class AfterPrefill(Schedule):
    """Once, right after each layer's first pass over the prompt."""


@dataclass(frozen=True)
class PerBlock(Schedule):
    """After every block of a prompt that is prefilled in chunks (`cache.prefill(..., chunk=)`):
    no layer ever holds more than its budget plus one chunk."""

    repeats: ClassVar[bool] = True

    @property
    def every_chunk(self) -> bool:
        return True


@dataclass(frozen=True)
class EverySteps(Schedule):
    """After the prompt, then each time `steps` tokens were generated: the cache stays at the budget
    it had after the prompt, plus at most `steps` tokens."""

    repeats: ClassVar[bool] = True
    steps: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise RecipeError(f"steps must be at least 1, got {self.steps}")

    @property
    def every_chunk(self) -> bool:
        return True

    @property
    def every_steps(self) -> int:
        return self.steps
