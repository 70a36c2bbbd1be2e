"""How a model's velocity fades from one step to the next, fitted once per model and schedule.

Neighbouring velocities of an edited region point the same way and differ in length, by a ratio
that hardly depends on the picture: where it is known, a step can be left out (RegionE's adaptive
velocity decay, arXiv 2510.25590).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recollect.diffusion.artefacts import Artefact
from recollect.errors import RecipeError

KIND = "velocity-decay"


@dataclass(frozen=True)
class VelocityDecay:
    """Ratios of neighbouring velocities.

    Attributes:
        gamma: for every step but the first, the fitted factor.
        sigmas: noise levels of the steps it was fitted on.
    """

    gamma: tuple[float, ...]
    sigmas: tuple[float, ...]

    @classmethod
    def of(cls, artefact: Artefact) -> VelocityDecay:
        """Read what `calibrate_decay` made."""
        return cls(tuple(artefact.tensors["gamma"].tolist()), tuple(artefact.settings["sigmas"]))

    def check(self, sigmas: Sequence[float]) -> None:
        """Raises RecipeError for another schedule than the one it was fitted on."""
        same = len(sigmas) == len(self.sigmas)
        if not same or any(abs(a - b) > 1e-3 for a, b in zip(sigmas, self.sigmas, strict=True)):
            raise RecipeError(
                f"the velocity decay was fitted on {len(self.sigmas)} steps of another schedule "
                f"than these {len(sigmas)}; calibrate it again, or leave it out"
            )

    def ratio(self, step: int) -> float:
        """Length of the velocity of this step (from 1) over that of the one before."""
        return self.gamma[step - 1] * (1 + self.sigmas[step] - self.sigmas[step - 1])
