"""Reference tokens whose keys and values are renewed on some steps only.

For models that were not trained with EasyControl's mask (FLUX.1 Kontext and its kind) reference
tokens see noise and text, so what is kept of them grows stale: this one is lossy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from recollect.diffusion.companions import Companion
from recollect.errors import RecipeError

if TYPE_CHECKING:
    from recollect.diffusion.engine.session import Session
    from recollect.diffusion.host.hooks import Installed


@dataclass(frozen=True)
class ReferenceBank(Companion):
    """Run the tokens of the result alone, between steps that renew the reference.

    Attributes:
        renew: every so many steps everything runs and keys and values are kept anew; 1 for always.
    """

    renew: int = 4

    def __post_init__(self) -> None:
        if self.renew < 1:
            raise RecipeError(f"renew is 1 or more, not {self.renew}")

    def install(self, model: torch.nn.Module, session: Session, installed: Installed) -> None:
        """Stand between policy and denoiser, and in its attention."""
        from recollect.diffusion.banks import engine

        engine.attach_references(self, model, session, installed)
