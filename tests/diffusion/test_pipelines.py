"""Policies on whole pipelines: their schedulers say how many steps are to come."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from denoisers import denoiser
from diffusers import FlowMatchEulerDiscreteScheduler

from recollect.diffusion import DiffusionPolicy, accelerated
from recollect.diffusion.engine.clock import Clock
from recollect.diffusion.host.timeline import Timeline
from recollect.diffusion.schedules import Interval, Mask
from recollect.errors import RecipeError

FLUX = denoiser("FluxTransformer2DModel")


def pipeline(steps: int):
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(steps)
    return SimpleNamespace(transformer=FLUX.build(), scheduler=scheduler)


def generate(pipe, begin: int = 0) -> None:
    """As FLUX pipelines do: the model is given a thousandth of the timestep."""
    latent, extra = FLUX.start(1)
    with torch.no_grad():
        for time in pipe.scheduler.timesteps[begin:]:
            v = FLUX.call(pipe.transformer, latent, float(time) / 1000, extra)
            latent = latent - 0.05 * v


def computed(pipe, policy: DiffusionPolicy, begin: int = 0) -> list[int]:
    with accelerated(pipe, policy) as acceleration:
        generate(pipe, begin)
        return [r.index for _, r in acceleration.report().steps if r.computed]


def test_the_last_steps_are_known_wherever_a_trajectory_starts():
    pipe, policy = pipeline(10), DiffusionPolicy(gate=Interval(every=9, tail=2))
    assert computed(pipe, policy) == [0, 8, 9]
    assert computed(pipe, policy, begin=4) == [0, 4, 5]


def test_a_mask_of_another_length_is_refused_before_it_draws_a_wrong_picture():
    pipe = pipeline(6)
    with pytest.raises(RecipeError, match="the mask has 4 steps and the trajectory 6"):
        computed(pipe, DiffusionPolicy(gate=Mask(steps=(True, False, True, True))))
    assert computed(pipe, DiffusionPolicy(gate=Mask(steps=(True, False) * 3))) == [0, 2, 4]


@pytest.mark.parametrize("given", [lambda t: t, lambda t: t / 1000, lambda t: 1 - t / 1000])
def test_times_are_found_on_whatever_scale_the_model_is_given(given):
    timeline, clock = Timeline(pipeline(20)), Clock()
    for _ in range(2):  # a second generation follows the first
        for place, time in enumerate(timeline.pipe.scheduler.timesteps):
            remaining = timeline.remaining(given(time), clock)
            assert remaining == 19 - place
            clock.tick(given(time), remaining)


def test_a_scheduler_that_does_not_know_the_time_is_not_believed():
    assert Timeline(pipeline(4)).remaining(333.3, Clock()) is None
    assert Timeline(SimpleNamespace()).remaining(500.0, Clock()) is None


def test_every_denoiser_of_a_pipeline_has_its_own_state():
    pipe = pipeline(6)
    pipe.transformer_2 = FLUX.build()
    with accelerated(pipe, "taylorseer") as acceleration:
        assert set(acceleration.sessions) == {"transformer", "transformer_2"}
        generate(pipe)
        assert {name for name, _ in acceleration.report().steps} == {"transformer"}
