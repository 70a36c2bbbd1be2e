"""Modules that are given the same input at every step: what they gave is kept, to the bit.

Keys and values of cross-attention depend on the text or the observation alone; so does whatever
encodes it inside the model. None of it changes over a trajectory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from recollect.diffusion.companions import Companion

if TYPE_CHECKING:
    from recollect.diffusion.engine.session import Session
    from recollect.diffusion.host.hooks import Installed

_NAME = "recollect-repeats"


@dataclass(frozen=True)
class Repeats(Companion):
    """Keeps what modules give for inputs that return.

    Attributes:
        repeated: dotted names of modules with one tensor as input and one as output, beside the
            key and value projections of cross-attention, which are found. A model without any is
            left as it is.
    """

    repeated: tuple[str, ...] = ()

    def install(self, model: torch.nn.Module, session: Session, installed: Installed) -> None:
        from recollect.diffusion.host.repeats import Inputs, RepeatHook, cross_attention, named

        seen = Inputs()
        found = [named(model, name) for name in self.repeated] + cross_attention(model)
        for module in dict.fromkeys(found):
            hook = RepeatHook(seen)
            installed.add(module, hook, _NAME)
            session.on_reset.append(hook.kept.clear)
        session.on_reset.append(seen.clear)
