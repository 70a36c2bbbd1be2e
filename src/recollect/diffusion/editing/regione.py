"""RegionE: edit a picture by iterating only on the tokens that the edit changes.

Chen et al. 2025, arXiv 2510.25590. The first steps run whole. Then the estimate of the result is
compared with the picture: tokens that stay jump to the noise level of the next whole step at once,
the others go on step by step, attending to kept keys and values of all that does not run. The
denoiser's answer is a velocity per token that makes an Euler scheduler do just that, so pipelines
need no change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from recollect.diffusion.artefacts import Artefact
from recollect.diffusion.companions import Companion
from recollect.diffusion.editing.decay import KIND
from recollect.diffusion.schedules import Interval
from recollect.errors import RecipeError

if TYPE_CHECKING:
    from recollect.diffusion.engine.session import Session
    from recollect.diffusion.host.hooks import Installed


@dataclass(frozen=True)
class RegionEdit(Companion):
    """Iterate on the edited region only.

    Attributes:
        warmup: first steps that run whole; the last of them draws the first map.
        refresh: steps on the region between whole ones, which draw the map anew.
        tail: last steps that run whole.
        similarity: cosine between estimate and picture at or below which a token is edited:
            .93 for FLUX.1 Kontext, .88 Step1X-Edit, .80 Qwen-Image-Edit.
        erode, dilate: widths that clean the map; odd, 1 for none.
        bank: whether the region attends to kept keys and values of the rest.
        decay: file of `calibrate_decay`; without one every step on the region runs.
        delta: how far the velocity may fade before a step on the region must run.
    """

    warmup: int = 6
    refresh: int = 10
    tail: int = 2
    similarity: float = 0.93
    erode: int = 3
    dilate: int = 5
    bank: bool = True
    decay: str | None = None
    delta: float = 0.04

    def __post_init__(self) -> None:
        if self.warmup < 1 or self.refresh < 0 or self.tail < 0:
            raise RecipeError("warmup is 1 or more, refresh and tail 0 or more")
        if self.erode % 2 != 1 or self.dilate % 2 != 1 or min(self.erode, self.dilate) < 1:
            raise RecipeError(f"erode and dilate are odd, not {self.erode} and {self.dilate}")

    def check(self, model: torch.nn.Module, sites: tuple[str, ...]) -> None:
        """Refuse a decay of another model."""
        if self.decay is not None:
            Artefact.load(self.decay, KIND).check(model)

    def install(self, model: torch.nn.Module, session: Session, installed: Installed) -> None:
        """Stand between policy and denoiser, and in its attention."""
        gate = session.policy.gate
        if not (isinstance(gate, Interval) and gate.every == 1):
            raise RecipeError(
                f"regione decides itself what is computed; leave out {type(gate).__name__}"
            )
        from recollect.diffusion.editing.engine import attach

        attach(self, model, session, installed)

    def stops(self, steps: int) -> list[int]:
        """Steps that run whole and draw a map, and where the last jump ends."""
        end = steps - self.tail
        return [*range(self.warmup - 1, end, self.refresh + 1), end]
