"""Whether a step is computed or reused: one answer for every sample of the batch.

A gate sees the call before anything runs, or, where it asks for a probe, a tensor from the first
blocks. It keeps its notes in a `Ledger`, one for each branch of each request.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from recollect.diffusion.engine.clock import Step
from recollect.diffusion.engine.values import per_row
from recollect.diffusion.parts import Part
from recollect.diffusion.predictors import History
from recollect.errors import RecipeError

if TYPE_CHECKING:
    from recollect.diffusion.host.modules import Submodule

Probe = Literal["none", "residual", "output", "modulated"]
"""What a gate asks of the first blocks: nothing, their residual, their output, or the modulated
input of the first one."""


@dataclass
class Ledger:
    """A gate's notes on one branch; all vectors are (B,).

    Attributes:
        spent: what has accumulated since a sample was last computed.
        run: steps reused in a row.
        reused: steps reused on this trajectory.
        notes: a gate's own tensors by name.
        forecast: history of a gate that forecasts.
        drift: what the gate measured at this step, for reports.
    """

    spent: torch.Tensor
    run: torch.Tensor
    reused: torch.Tensor
    notes: dict[str, torch.Tensor] = field(default_factory=dict)
    forecast: History = field(default_factory=History)
    drift: torch.Tensor | None = None

    @classmethod
    def of(cls, rows: int) -> Ledger:
        """Empty notes on so many samples."""
        counts = torch.zeros(rows, dtype=torch.int64)
        return cls(torch.zeros(rows, dtype=torch.float64), counts, counts.clone())

    def keep(self, name: str, value: torch.Tensor, rows: torch.Tensor) -> None:
        """Note a tensor (B, …) for the samples marked in `rows`."""
        old = self.notes.get(name)
        if old is None or bool(rows.all()):
            self.notes[name] = value
        else:
            self.notes[name] = torch.where(per_row(rows.float(), value) > 0, value, old)

    def settle(self, computed: torch.Tensor) -> None:
        """Close the step: `computed` marks the samples that were computed."""
        if not bool(computed.any()):
            self.run, self.reused = self.run + 1, self.reused + 1
            return
        self.spent = torch.where(computed, torch.zeros_like(self.spent), self.spent)
        self.run = torch.where(computed, torch.zeros_like(self.run), self.run + 1)
        self.reused = self.reused + (~computed).to(torch.int64)


@dataclass(frozen=True, kw_only=True)
class Gate(Part):
    """When to reuse.

    Attributes:
        warmup: first steps that are always computed.
        tail: last steps that are always computed, where the number of steps is known.
        longest: most steps reused in a row; None for no limit.
        most: most steps reused on one trajectory; None for no limit.
    """

    warmup: int = 1
    tail: int = 0
    longest: int | None = None
    most: int | None = None

    probe: ClassVar[Probe] = "none"
    measures: ClassVar[bool] = True
    """Whether it looks at tensors: then branches at one step share the first one's decision."""

    def __post_init__(self) -> None:
        for name in ("warmup", "tail", "longest", "most"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise RecipeError(f"{name} is 0 or more, not {value}")

    @property
    def probe_blocks(self) -> int:
        """Blocks that run on every step, to judge by."""
        return 0 if self.probe == "none" else 1

    @abstractmethod
    def judge(self, step: Step, ledger: Ledger, seen: torch.Tensor) -> torch.Tensor:
        """Which samples may be reused, (B,) bool.

        Args:
            step: where the trajectory is.
            ledger: the notes; `drift` and `spent` are updated.
            seen: the latent (B, …) of this call, or the probed tensor.
        """

    def learn(
        self,
        step: Step,
        ledger: Ledger,
        latent: torch.Tensor,
        output: torch.Tensor,
        rows: torch.Tensor,
    ) -> None:
        """Take note of a computed output, for the samples in `rows`."""
        return

    def site_flags(self, step: Step) -> tuple[bool, ...] | None:
        """For gates that decide per module: which modules are computed at this step."""
        return None

    def module_flags(self, step: Step, modules: Sequence[Submodule]) -> tuple[bool, ...] | None:
        """The same for gates that go by what the modules of the site are."""
        return self.site_flags(step)

    def allowed(self, step: Step, ledger: Ledger) -> torch.Tensor:
        """Which samples the limits leave to the gate, (B,) bool."""
        free = torch.ones(len(ledger.run), dtype=torch.bool)
        if step.index < self.warmup:
            return ~free
        if self.tail and step.total is not None and step.index >= step.total - self.tail:
            return ~free
        if self.longest is not None:
            free &= ledger.run < self.longest
        if self.most is not None:
            free &= ledger.reused < self.most
        return free
