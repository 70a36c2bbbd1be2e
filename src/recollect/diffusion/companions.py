"""Caches that work beside the policy of steps, with hooks of their own.

Tables of what depends on time alone, keys and values of condition tokens, attention maps: none of
them decides whether a step is computed, so they go with every site, gate and predictor. A recipe
brings a companion along as one of its stages, under any name.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from recollect.diffusion.parts import Part, kinds_of

if TYPE_CHECKING:
    from recollect.diffusion.engine.session import Session
    from recollect.diffusion.host.hooks import Installed


@dataclass(frozen=True)
class Companion(Part):
    """A cache with hooks of its own."""

    inner: ClassVar[bool] = False
    """Whether its hooks run inside those of site and gate: it changes how modules compute."""

    @abstractmethod
    def install(self, model: torch.nn.Module, session: Session, installed: Installed) -> None:
        """Put hooks on the model.

        Args:
            model: the denoiser.
            session: what is attached to it; `session.step` is the step in progress, and
                `session.on_reset` takes what must be freed with the state of requests.
            installed: takes hooks (`add`) and other changes (`undo`) back, in reverse order, when
                the acceleration is restored.

        Raises:
            HostError: the model has nothing this can be put on.
        """


def known() -> dict[str, type[Companion]]:
    """Every companion by the name of its class."""
    return kinds_of(Companion)
