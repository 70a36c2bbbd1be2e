"""Every module has its own schedule: what it says runs, and nothing else does."""

from __future__ import annotations

import pytest
import torch
from denoisers import denoiser, sample
from torch.nn import Linear

from recollect.diffusion import DiffusionPolicy, accelerate, accelerated
from recollect.diffusion.predictors import Reuse
from recollect.diffusion.schedules import ModuleMask
from recollect.diffusion.sites import Modules
from recollect.errors import HostError, RecipeError

DIT = denoiser("DiTTransformer2DModel")


def modules(model) -> list[str]:
    with accelerated(model, "fora") as acceleration:
        (session,) = acceleration.sessions.values()
        return session.sites


def test_all_ones_is_the_untouched_model():
    model = DIT.build()
    count = len(modules(model))
    plain = sample(DIT, model, 3)
    with accelerated(model, DiffusionPolicy(Modules(), ModuleMask(steps=("1" * count,) * 3))):
        assert torch.equal(sample(DIT, model, 3), plain)


def test_only_the_marked_modules_run():
    model = DIT.build()
    names = modules(model)
    second = "".join("1" if i % 2 else "0" for i in range(len(names)))
    ran: list[str] = []
    for name in names:
        first = next(m for m in model.get_submodule(name).modules() if isinstance(m, Linear))
        first.register_forward_hook(lambda *_, name=name: ran.append(name))
    gate = ModuleMask(steps=("1" * len(names), second, "1" * len(names)))
    with accelerated(model, DiffusionPolicy(Modules(), gate, Reuse())):
        sample(DIT, model, 3)
    assert ran == [*names, *names[1::2], *names]


def test_masks_that_do_not_fit_are_refused():
    model = DIT.build()
    count = len(modules(model))
    short = DiffusionPolicy(Modules(), ModuleMask(steps=("11", "01")))
    with pytest.raises(HostError, match="the mask is for 2 modules"):
        accelerate(model, short)
    with pytest.raises(RecipeError, match="on its first step"):
        ModuleMask(steps=("10", "11"))
    with pytest.raises(RecipeError, match="of one length"):
        ModuleMask(steps=("11", "1"))
    gate = ModuleMask(steps=("1" * count, "0" * count))
    line = DiffusionPolicy(Modules(), gate).to_yaml()
    assert DiffusionPolicy.from_yaml(line).gate == gate
