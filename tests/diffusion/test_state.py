"""State is known before it is held, and structure is learned without an extra call."""

from __future__ import annotations

import pytest
import torch
from denoisers import DENOISERS, counted, denoiser, sample

from recollect.diffusion import DiffusionPolicy, accelerated, state_bytes
from recollect.diffusion.drifts import FirstBlock
from recollect.diffusion.predictors import Reuse, Taylor
from recollect.diffusion.schedules import Interval
from recollect.diffusion.sites import Modules, Span, Transform, Velocity
from recollect.errors import HostError, RecipeError

FLUX = denoiser("FluxTransformer2DModel")
BY_DATA = {"Lumina2Transformer2DModel", "MochiTransformer3DModel", "OmniGenTransformer2DModel"}
"""Families whose shapes depend on their data: these are run once."""


def inputs(family, batch: int = 1):
    latent, extra = family.start(batch)
    x, t = family.arguments
    time = torch.full((batch,), 500.0 if family.time == "training" else 0.5)
    return {x: list(latent.unbind(0)) if family.listed else latent, t: time, **extra}


@pytest.mark.parametrize("family", [f for f in DENOISERS if f.blocks], ids=lambda f: f.name)
def test_bytes_told_before_are_the_bytes_held_after(family):
    model = family.build()
    for site in (Span(), Modules()) if family.name in ("DiTTransformer2DModel",) else (Modules(),):
        policy = DiffusionPolicy(site, Interval(every=1), Taylor(1))
        with counted(model) as ran:
            told = state_bytes(model, policy, inputs(family))
        assert bool(ran) == (family.name in BY_DATA)
        with accelerated(model, policy) as acceleration:
            sample(family, model, 2)
            assert acceleration.nbytes == told


@pytest.mark.parametrize("site", [Velocity(), Transform(), Span()], ids=str)
def test_bytes_grow_with_the_batch_and_the_order(site):
    model = FLUX.build()
    one = state_bytes(model, DiffusionPolicy(site, predictor=Reuse()), inputs(FLUX))
    two = state_bytes(model, DiffusionPolicy(site, predictor=Reuse()), inputs(FLUX, batch=2))
    line = state_bytes(model, DiffusionPolicy(site, predictor=Taylor(1)), inputs(FLUX))
    assert two == line == 2 * one


def test_shapes_stand_for_tensors():
    family = denoiser("DiTTransformer2DModel")
    given = {**inputs(family), "hidden_states": (1, 4, 8, 8)}
    model = family.build()
    assert state_bytes(model, "taylorseer", given) == 2 * 8 * 8 * 8 * 4  # variance and noise


def test_state_over_the_limit_is_refused_before_anything_is_computed():
    model = FLUX.build()
    with (
        accelerated(model, "fora", limit=1000),
        counted(model) as ran,
        pytest.raises(
            RecipeError, match=r"would take [\d,]+ bytes per branch, over the limit of 1"
        ),
    ):
        sample(FLUX, model, 1)
    assert not ran
    mochi = denoiser("MochiTransformer3DModel")
    model = mochi.build()
    with (
        accelerated(model, "fora", limit=1000),
        counted(model) as ran,
        pytest.raises(RecipeError, match="over the limit of 1,000"),
    ):
        sample(mochi, model, 2)
    assert ran  # its shapes depend on its data, so one step shows them


def test_a_model_that_is_accelerated_or_is_none_is_refused():
    model = FLUX.build()
    with pytest.raises(HostError, match="has no denoiser"):
        state_bytes(object(), "fora", {})
    with pytest.raises(RecipeError):
        state_bytes(model, "forra", inputs(FLUX))


@pytest.mark.parametrize(
    "policy",
    [DiffusionPolicy(Span()), DiffusionPolicy(Velocity(), FirstBlock(threshold=0.1))],
    ids=["span", "probe"],
)
def test_blocks_are_learned_during_the_first_computed_step(policy):
    model = FLUX.build()
    with counted(model) as plain:
        expected = sample(FLUX, model, 1)
    with accelerated(model, policy), counted(model) as ran:
        assert torch.equal(sample(FLUX, model, 1), expected)
    assert len(ran) == len(plain)


def test_blocks_that_do_not_run_in_the_order_of_their_lists_are_run_twice_once():
    latte = denoiser("LatteTransformer3DModel")  # spatial and temporal blocks take turns
    model = latte.build()
    with counted(model) as plain:
        expected = sample(latte, model, 1)
    with accelerated(model, DiffusionPolicy(Span(), Interval(every=2))) as acceleration:
        with counted(model) as first:
            assert torch.equal(sample(latte, model, 1), expected)
        with counted(model) as second:
            sample(latte, model, 1)
        assert acceleration.report().computed == 2
    assert len(first) == 2 * len(plain)
    assert len(second) == len(plain)
