"""ERTACache: steps that drift little are reused, shortened without losing way, and corrected."""

from __future__ import annotations

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from recollect.diffusion import accelerate, accelerated, ertacache
from recollect.diffusion.engine.clock import Step
from recollect.diffusion.policy import policy
from recollect.diffusion.profiles import Profile
from recollect.diffusion.sites import Transform, Velocity
from recollect.errors import HostError, RecipeError

STEPS = 8


class Drifting(torch.nn.Module):
    """v = x + c(t): its residual depends on time alone, so that everything about it is known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.2, -0.4]))
        self.config = {"channels": 2}

    def forward(self, hidden_states, timestep, return_dict=False):
        offset = self.weight * (1 + timestep.view(-1, 1) / 1000) ** 2
        return (hidden_states + offset.view(-1, 2, 1),)


@torch.no_grad()
def sample(model, sigmas=None, steps=STEPS, shift=1.0) -> torch.Tensor:
    timeline = scheduler(sigmas, steps, shift)
    x = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    for time in timeline.timesteps:
        velocity = model(x, time.expand(2))[0]
        x = timeline.step(velocity, time, x, return_dict=False)[0]
    return x


def scheduler(sigmas=None, steps=STEPS, shift=1.0):
    made = FlowMatchEulerDiscreteScheduler(shift=shift)
    made.set_timesteps(steps) if sigmas is None else made.set_timesteps(sigmas=list(sigmas))
    return made


def profile(values, site=None) -> Profile:
    steps = tuple(Step(i, 1000 - i, 1 - i / 1000, len(values)) for i in range(len(values)))
    return Profile(site or Transform(), steps, tuple((torch.tensor(v),) for v in values))


@pytest.fixture
def model():
    return Drifting().eval()


def test_a_step_is_reused_while_the_residual_is_near_the_last_computed_one():
    residuals = profile([[[1.0]], [[1.05]], [[1.12]], [[1.3]], [[1.4]]])
    assert ertacache.reuse_policy(residuals, 0.1) == (0, 2, 3)
    assert ertacache.reuse_policy(residuals, 0.0) == (0, 1, 2, 3, 4)
    assert ertacache.reuse_policy(residuals, 9.0) == (0,)


def test_a_reused_step_goes_as_far_as_it_is_right():
    residuals = profile([[[1.0]], [[1.1]], [[2.0]], [[2.1]]])
    velocities = profile([[[0.0]], [[0.0]], [[0.4]], [[0.3]]], Velocity())
    scales = ertacache.step_scales(residuals, velocities, (0, 2))
    assert scales == pytest.approx((1, 1 - 0.1 / 0.4, 1, 1))
    wild = ertacache.step_scales(residuals, profile([[[0.0]]] * 4, Velocity()), (0, 2))
    assert wild == (1, 0.01, 1, 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=6, max_size=6), st.sets(st.integers(1, 5)))
def test_adjusted_steps_end_where_the_others_do(scales, others):
    computed = sorted({0} | others)
    scales = [1.0 if step in computed else scale for step, scale in enumerate(scales)]
    sigmas = [1.0, 0.8, 0.5, 0.4, 0.2, 0.1, 0.0]
    found = ertacache.adjusted(sigmas, scales, computed)
    assert found[0] == 1
    assert found[-1] == pytest.approx(0, abs=1e-6)
    assert sorted(found, reverse=True) == found
    assert ertacache.adjusted(sigmas, [1.0] * 6, computed) == pytest.approx(sigmas)


def test_the_scheduler_uses_the_levels_that_were_meant():
    for shift in (1.0, 3.0):
        own = scheduler(shift=shift)
        levels = [1.0, *(0.9 * own.sigmas[1:-1]).tolist(), 0.0]
        given_ = ertacache.sigmas_to_pass(own, levels)
        torch.testing.assert_close(
            scheduler(given_, shift=shift).sigmas, torch.tensor(levels), atol=1e-6, rtol=0
        )


def test_an_offset_is_taken_out_exactly(model, tmp_path):
    path = tmp_path / "erta.safetensors"
    plain = sample(model)
    reused = ertacache.calibrate(path, model, lambda s: sample(model, s), 0.6, rectify=False)
    with accelerated(model, reused.policy) as acceleration:
        wrong = sample(model)
        assert acceleration.report().computed == len(reused.computed) < STEPS
    made = ertacache.calibrate(path, model, lambda s: sample(model, s), 0.6)
    assert made.computed == reused.computed
    assert all(share > 0.99 for share in made.explained.values())
    with accelerated(model, "ertacache", artefact=str(path)) as acceleration:
        assert acceleration.policy == made.policy
        torch.testing.assert_close(sample(model), plain, atol=1e-5, rtol=1e-5)
    assert float((wrong - plain).abs().max()) > 0.01


def test_threshold_zero_is_the_untouched_model(model, tmp_path):
    path = tmp_path / "erta.safetensors"
    made = ertacache.calibrate(path, model, lambda s: sample(model, s), 0.0, scheduler())
    assert made.computed == tuple(range(STEPS))
    assert made.scales == (1.0,) * STEPS
    plain = sample(model)
    with accelerated(model, made.policy):
        assert torch.equal(sample(model), plain)
    torch.testing.assert_close(sample(model, made.sigmas), plain)
    assert ertacache.load_sigmas(path) == made.sigmas


def test_adjusted_steps_are_calibrated_and_run_at_their_own_times(model, tmp_path):
    path = tmp_path / "erta.safetensors"
    made = ertacache.calibrate(path, model, lambda s: sample(model, s), 0.6, scheduler())
    assert min(made.scales) < 1
    with accelerated(model, made.policy) as acceleration:
        torch.testing.assert_close(sample(model, made.sigmas), sample(model, made.sigmas))
        assert acceleration.report().computed == 2 * len(made.computed)
        with pytest.raises(RecipeError, match="not on the trajectory"):
            sample(model)


def test_the_logistic_form_is_what_its_tangent_says(model):
    residuals = profile([[[1.0]], [[1.2]], [[1.4]]])
    shifted = Profile(
        Transform(), residuals.steps, tuple((torch.randn(4, 1, 5),) for _ in residuals.steps)
    )
    lines, _ = ertacache.rectification(shifted, (0,))
    curves, _ = ertacache.rectification(shifted, (0,), logistic=True)
    for name, (scale, shift) in lines.items():
        k, b = curves[name]
        v = torch.linspace(-1, 1, 5)
        torch.testing.assert_close(v - (0.5 + (k * v + b) / 4), scale * v + shift)


def test_what_cannot_be_adjusted_or_run_is_refused(model, tmp_path):
    path = tmp_path / "erta.safetensors"
    several = DPMSolverMultistepScheduler(solver_order=2)
    several.set_timesteps(4)
    with pytest.raises(HostError, match="several steps at once"):
        ertacache.calibrate(path, model, lambda s: sample(model, s), 0.5, several)
    with pytest.raises(RecipeError, match="0 or more"):
        ertacache.calibrate(path, model, lambda s: sample(model, s), -1.0)
    with pytest.raises(RecipeError, match="calibrate-diffusion ertacache"):
        accelerate(model, "ertacache")
    made = ertacache.calibrate(path, model, lambda s: sample(model, s), 0.5)
    with accelerated(model, made.policy), pytest.raises(RecipeError, match="not on the traj"):
        sample(model, steps=STEPS + 1)
    other = Drifting()
    with torch.no_grad():
        other.weight.add_(1)
    with pytest.raises(HostError, match="another model"):
        accelerate(other, policy("ertacache", artefact=str(path)))
