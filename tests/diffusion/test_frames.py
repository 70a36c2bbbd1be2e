"""A time for every frame: equal ones decide like a single one, given frames stay as they are."""

from __future__ import annotations

import itertools

import pytest
import torch
from denoisers import denoiser

from recollect.diffusion import DiffusionPolicy, accelerated
from recollect.diffusion.drifts import FirstBlock, LatentChange, ModulatedInput
from recollect.diffusion.engine.clock import Clock
from recollect.diffusion.frames import euler_step, frame_levels, token_times
from recollect.diffusion.predictors import Reuse, Taylor
from recollect.diffusion.schedules import Interval, Mask
from recollect.diffusion.sites import Blocks, Hidden, Modules, Span, Velocity
from recollect.errors import RecipeError

WAN = denoiser("WanTransformer3DModel")
TOKENS = 16  # of a frame
FRAMES = 2
GATES = (
    Interval(every=2),
    Mask(steps=(True, True, False, True, False, False)),
    LatentChange(threshold=0.6),
    FirstBlock(threshold=0.1),
    ModulatedInput(threshold=0.2),
)


@torch.no_grad()
def draw(model, given, steps: int = 6, batch: int = 1, vector: bool = True, noise: float = 0.0):
    """Per-frame Euler steps with the model's time as one number a sample, or one a token."""
    latent, extra = WAN.start(batch, seed=3)
    levels = frame_levels(torch.linspace(1, 0, steps + 1), given.expand(batch, FRAMES), noise)
    for now, then in itertools.pairwise(levels):
        time = token_times(now, TOKENS) if vector else 1000 * now.amax(1)
        velocity = model(latent, time, **extra, return_dict=False)[0]
        latent = euler_step(latent, velocity, now, then)
    return latent


NONE_GIVEN = torch.zeros(1, FRAMES, dtype=torch.bool)
FIRST_GIVEN = torch.tensor([[True, False]])


def computed(acceleration) -> list[float]:
    (session,) = acceleration.sessions.values()
    return [record.computed for record in session.records]


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: type(gate).__name__)
@pytest.mark.parametrize("site", [Velocity(), Span(), Modules()], ids=lambda s: type(s).__name__)
def test_equal_times_decide_like_a_single_one(gate, site):
    model = WAN.build()
    found = []
    for vector in (False, True):
        with accelerated(model, DiffusionPolicy(site, gate, Taylor(1))) as acceleration:
            found.append((draw(model, NONE_GIVEN, vector=vector), computed(acceleration)))
    (one, first), (other, second) = found
    assert first == second
    assert 0 < sum(first) < len(first)
    assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("site", [Velocity(), Hidden(), Span(), Blocks((0, 2)), Modules()])
def test_off_is_off_with_a_time_per_frame(site):
    model = WAN.build()
    plain = draw(model, FIRST_GIVEN)
    with accelerated(model, DiffusionPolicy(site, Interval(every=1))):
        assert torch.equal(draw(model, FIRST_GIVEN), plain)


def test_given_frames_stay_while_steps_are_skipped():
    model = WAN.build()
    start, _ = WAN.start(1, seed=3)
    with accelerated(model, "taylorseer", every=2, warmup=1) as acceleration:
        drawn = draw(model, FIRST_GIVEN)
        again = draw(model, FIRST_GIVEN)
        steps = computed(acceleration)
    assert torch.equal(drawn[:, :, 0], start[:, :, 0])
    assert not torch.allclose(drawn[:, :, 1], start[:, :, 1], atol=0.1)
    assert torch.equal(drawn, again)
    assert steps == [1, 0, 1, 0, 1, 0] * 2


def test_a_sample_is_what_it_would_be_alone():
    model = WAN.build()
    policy = DiffusionPolicy(Velocity(), LatentChange(threshold=0.6), Reuse(), batch="split")
    latent, extra = WAN.start(2, seed=3)
    given = torch.tensor([[True, False], [False, False]])
    levels = frame_levels(torch.linspace(1, 0, 7), given)

    @torch.no_grad()
    def run(rows):
        x, told = latent[rows], {name: value[rows] for name, value in extra.items()}
        with accelerated(model, policy):
            for now, then in itertools.pairwise(levels[:, rows]):
                velocity = model(x, token_times(now, TOKENS), **told, return_dict=False)[0]
                x = euler_step(x, velocity, now, then)
        return x

    together = run(slice(0, 2))
    for row in range(2):
        assert torch.allclose(run(slice(row, row + 1)), together[row : row + 1], atol=1e-5)


def test_tables_of_time_take_a_time_per_token():
    model = WAN.build()
    plain = draw(model, FIRST_GIVEN)
    with accelerated(model, "tfmq-tib"):
        assert torch.equal(draw(model, FIRST_GIVEN), plain)
    with accelerated(model, "tfmq-tib", exact=False):
        assert torch.allclose(draw(model, FIRST_GIVEN), plain, atol=1e-5)


def test_levels_and_steps():
    levels = frame_levels(torch.tensor([1.0, 0.5, 0.0]), torch.tensor([[True, False]]), noise=0.2)
    assert levels.tolist() == [
        [[pytest.approx(0.2), 1.0]],
        [[pytest.approx(0.1), 0.5]],
        [[0.0, 0.0]],
    ]
    assert token_times(levels[1], 2).tolist() == [
        [pytest.approx(100), pytest.approx(100), 500, 500]
    ]
    latent, velocity = torch.ones(1, 3, 2, 4, 4), torch.full((1, 3, 2, 4, 4), 2.0)
    moved = euler_step(latent, velocity, torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 0.5]]))
    assert torch.equal(moved[:, :, 0], latent[:, :, 0])
    assert torch.equal(moved[:, :, 1], torch.zeros(1, 3, 4, 4))
    with pytest.raises(RecipeError, match="between 0 and 1"):
        frame_levels(torch.ones(2), torch.tensor([[True]]), noise=2)


def tick(clock, *times):
    return clock.tick(torch.tensor([list(times)]))


def test_the_clock_reads_the_noisiest_frame_and_compares_all_of_them():
    clock = Clock()
    step, fresh = tick(clock, 0.0, 900.0)
    assert (step.time, step.sigma, fresh) == (900.0, 0.9, True)
    step, fresh = tick(clock, 0.0, 600.0)
    assert (step.index, fresh) == (1, False)
    step, fresh = tick(clock, 100.0, 600.0)  # the noisiest stays, another moves: one step on
    assert (step.index, fresh) == (2, False)
    step, fresh = tick(clock, 100.0, 600.0)  # all alike: another trajectory
    assert (step.index, fresh) == (0, True)


def test_where_times_rise_a_step_of_the_other_frames_turns_nothing_round():
    clock = Clock()
    for index, times in enumerate([(0.0, 0.4), (0.0, 0.5), (0.2, 0.5), (0.4, 0.6), (0.6, 0.8)]):
        step, fresh = tick(clock, *times)
        assert (step.index, fresh) == (index, index == 0)
    assert tick(clock, 0.0, 0.4)[1]
