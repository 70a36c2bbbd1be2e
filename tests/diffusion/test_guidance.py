"""Half of the guidance made from the other half (FasterCache), and solvers told of reuse."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from denoisers import denoiser, sample
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.hooks import FasterCacheConfig, apply_faster_cache

from recollect.diffusion import DiffusionPolicy, accelerated
from recollect.diffusion.drifts import FirstBlock
from recollect.diffusion.guidance import GuidanceCache, low_frequencies
from recollect.diffusion.host.solver import Solver
from recollect.diffusion.predictors import Extrapolate
from recollect.diffusion.pyramid import Pyramid
from recollect.diffusion.schedules import Interval
from recollect.diffusion.sites import Modules, Span
from recollect.errors import RecipeError

DIT = denoiser("DiTTransformer2DModel")
STEPS = 10
SIGMAS = torch.linspace(1, 0, STEPS + 1)
NOBODY, SOMEBODY = torch.tensor([0]), torch.tensor([5])


def call(model, latent, sigma, labels) -> torch.Tensor:
    time = torch.full((len(latent),), 1000 * float(sigma))
    return model(
        hidden_states=latent, timestep=time, class_labels=labels, return_dict=False
    )[0][:, :4]  # fmt: skip


@torch.no_grad()
def batched(model, seen=lambda sigma: None) -> torch.Tensor:
    latent, _ = DIT.start(1, seed=3)
    for now, then in itertools.pairwise(SIGMAS):
        seen(now)
        u, c = call(model, torch.cat([latent, latent]), now, torch.cat([NOBODY, SOMEBODY])).chunk(2)
        latent = latent + (then - now) * (u + 2 * (c - u))
    return latent


@torch.no_grad()
def in_two_calls(model) -> torch.Tensor:
    latent, _ = DIT.start(1, seed=3)
    for now, then in itertools.pairwise(SIGMAS):
        c, u = (call(model, latent, now, labels) for labels in (SOMEBODY, NOBODY))
        latent = latent + (then - now) * (u + 2 * (c - u))
    return latent


def cached(**arguments) -> DiffusionPolicy:
    return DiffusionPolicy(gate=Interval(every=1), companions=(GuidanceCache(**arguments),))


def test_the_guidance_cache_agrees_with_diffusers():
    model = DIT.build()
    with accelerated(model, cached()) as acceleration:
        ours = batched(model)
        shares = [record.computed for _, record in acceleration.report().steps]
    # Steps 0 to 3 are above timestep 641, step 5 renews.
    assert shares == [1, 1, 1, 1, 0.5, 1, 0.5, 0.5, 0.5, 0.5]
    now = [0.0]
    config = FasterCacheConfig(
        spatial_attention_block_skip_range=None,
        tensor_format="BCHW",
        current_timestep_callback=lambda: now[0],
        _unconditional_conditional_input_kwargs_identifiers=[
            "hidden_states", "timestep", "class_labels",
        ],
    )  # fmt: skip
    apply_faster_cache(model, config)
    theirs = batched(model, lambda sigma: now.__setitem__(0, 1000 * float(sigma)))
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_two_calls_give_what_one_batch_gives():
    model = DIT.build()
    with accelerated(model, cached()) as acceleration:
        one = batched(model)
        acceleration.reset()
        before = acceleration.report().computed
        two = in_two_calls(model)
        computed = acceleration.report().computed - before
    assert torch.allclose(one, two, atol=1e-4)
    assert computed == 2 * STEPS - 5


def test_renewed_at_every_step_it_is_the_untouched_model():
    model = DIT.build()
    plain = batched(model), in_two_calls(model)
    for off in ({"renew": 1}, {"below": 0.0}):
        with accelerated(model, cached(**off)):
            assert torch.equal(batched(model), plain[0])
            assert torch.equal(in_two_calls(model), plain[1])


def test_fastercache_goes_through_modules_with_half_a_batch():
    """Whichever half runs, modules keep the rows of both apart."""
    model = DIT.build()
    with accelerated(model, "fastercache", before=1001.0, below=1001.0) as acceleration:
        first = batched(model)
        assert torch.equal(first, batched(model))
        shares = [record.computed for _, record in acceleration.report().steps]
        assert min(shares) < 0.5
        assert acceleration.nbytes > 0
    assert torch.isfinite(first).all()
    assert not torch.equal(first, batched(model))
    assert not hasattr(model, "_diffusers_hook")


@pytest.mark.parametrize("run", [batched, in_two_calls])
def test_a_half_that_was_made_begins_again_with_all_modules(run):
    """Their kept values are older than attention's own interval allows."""
    model = DIT.build()
    with accelerated(model, "fastercache", renew=3) as acceleration:
        run(model)
        found = [(record.index, record.computed) for _, record in acceleration.report().steps]
    assert {computed for step, computed in found if step in (6, 9)} == {1.0}
    assert all(computed < 1 for step, computed in found if step in (5, 7))


def test_a_guidance_cache_does_not_go_with_judging_blocks():
    model = DIT.build()
    for policy in (
        DiffusionPolicy(Span(), companions=(GuidanceCache(),)),
        DiffusionPolicy(gate=FirstBlock(), companions=(GuidanceCache(),)),
    ):
        with pytest.raises(RecipeError, match="half of a batch"), accelerated(model, policy):
            pass
    with pytest.raises(RecipeError, match="renew is 1 or more"):
        GuidanceCache(renew=0)
    line = cached(renew=3)
    assert DiffusionPolicy.from_yaml(line.to_yaml()) == line


def test_the_first_extrapolated_attention_is_that_of_diffusers():
    """Theirs remembers extrapolated outputs as if computed, so later ones differ."""
    model = DIT.build()
    gate = Pyramid(spatial=2, cross=1, after=-1.0, before=681.0)
    policy = DiffusionPolicy(Modules(feed_forward=False), gate, Extrapolate(weight=0.5))
    with accelerated(model, policy) as acceleration:
        ours = sample(DIT, model, STEPS, stop=7)
        assert [r.computed for _, r in acceleration.report().steps] == [1, 1, 1, 1, 1, 0, 1]
    times = iter((1000 * SIGMAS).tolist())
    now = [0.0]
    model.register_forward_pre_hook(lambda *_: now.__setitem__(0, next(times)))
    config = FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 681),
        is_guidance_distilled=True,
        tensor_format="BCHW",
        attention_weight_callback=lambda module: 0.5,
        current_timestep_callback=lambda: now[0],
    )
    apply_faster_cache(model, config)
    assert torch.allclose(sample(DIT, model, STEPS, stop=7), ours, atol=1e-5)


def test_low_frequencies_are_the_smooth_part():
    flat = torch.ones(1, 1, 10, 10)
    wave = torch.cos(torch.pi * torch.arange(10.0)).expand(1, 1, 10, 10)
    assert torch.allclose(low_frequencies(flat + wave), flat, atol=1e-6)


SOLVERS = [
    (FlowMatchEulerDiscreteScheduler, {}, False),
    (DPMSolverMultistepScheduler, {"solver_order": 1}, False),
    (DPMSolverMultistepScheduler, {"solver_order": 2}, True),
    (UniPCMultistepScheduler, {}, True),
    (DEISMultistepScheduler, {}, True),
]


@pytest.mark.parametrize(("kind", "config", "multistep"), SOLVERS)
def test_multistep_solvers_are_recognized(kind, config, multistep):
    assert Solver(SimpleNamespace(scheduler=kind(**config))).multistep is multistep


def test_a_solver_is_told_of_reuse_where_the_policy_says_so():
    pipe = SimpleNamespace(
        transformer=DIT.build(),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2
        ),
    )
    orders = {}
    for choice in ("leave", "inform"):
        pipe.scheduler.set_timesteps(6)
        latent, extra = DIT.start(1)
        orders[choice] = []
        policy = DiffusionPolicy(gate=Interval(every=2), multistep=choice)
        with torch.no_grad(), accelerated(pipe, policy):
            for time in pipe.scheduler.timesteps:
                v = DIT.call(pipe.transformer, latent, float(time) / 1000, extra)
                orders[choice].append(pipe.scheduler.lower_order_nums)
                latent = pipe.scheduler.step(v, time, latent, return_dict=False)[0]
    assert orders == {"leave": [0, 1, 2, 2, 2, 2], "inform": [0, 0, 1, 0, 1, 0]}
    with pytest.raises(RecipeError, match="multistep is one of"):
        DiffusionPolicy(multistep="ask")
