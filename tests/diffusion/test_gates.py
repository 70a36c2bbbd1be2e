"""Gates: worked examples of the papers, limits, and what threshold 0 means."""

from __future__ import annotations

import pytest
import torch

from recollect.diffusion.drifts import (
    FirstBlock,
    ForecastError,
    LatentChange,
    MagnitudeRatio,
    ModulatedInput,
)
from recollect.diffusion.engine.clock import Clock, Step
from recollect.diffusion.gates import Ledger
from recollect.diffusion.schedules import Interval, Mask, step_mask
from recollect.errors import RecipeError

ONE = torch.tensor([True])


def step(index: int, total: int | None = None) -> Step:
    return Step(index, 1 - index / 10, 1 - index / 10, total)


def schedule(gate, steps: int, total: int | None = None) -> list[int]:
    """The computed steps of a gate that looks at nothing."""
    ledger, computed = Ledger.of(1), []
    for i in range(steps):
        now = step(i, total)
        reuse = gate.judge(now, ledger, torch.zeros(1, 2)) & gate.allowed(now, ledger)
        if not bool(reuse):
            computed.append(i)
        ledger.settle(~reuse)
    return computed


def test_intervals_count_from_the_end_of_the_warm_up():
    assert schedule(Interval(every=4), 10) == [0, 4, 8]
    assert schedule(Interval(every=6, warmup=3), 15) == [0, 1, 2, 8, 14]
    assert schedule(Interval(every=1), 4) == [0, 1, 2, 3]


def test_limits_hold_for_every_gate():
    assert schedule(Interval(every=9, longest=2), 8) == [0, 3, 6]
    assert schedule(Interval(every=9, most=3), 8) == [0, 4, 5, 6, 7]
    assert schedule(Interval(every=9, tail=2), 8, total=8) == [0, 6, 7]


def test_masks_say_which_steps():
    assert schedule(Mask(steps=(True, False, True, False, False)), 5) == [0, 2]
    assert schedule(Mask(steps=(True, False)), 4) == [0, 2, 3]  # beyond its end all is computed
    with pytest.raises(RecipeError, match="the mask has 2 steps and the trajectory 5"):
        schedule(Mask(steps=(True, False)), 5, total=5)
    with pytest.raises(RecipeError, match="the first step is computed"):
        Mask(steps=(False, True))


@pytest.mark.parametrize(
    ("computed", "reused", "count"),
    [
        ([8, 3, 3, 2, 1, 1], [1, 2, 2, 2, 3], 18),
        ([6, 2, 2, 2, 2, 1], [1, 3, 3, 3, 3], 15),
        ([6, 1, 1, 1, 1, 1], [1, 3, 4, 5, 4], 11),
        ([4, 1, 1, 1, 1], [2, 5, 6, 7], 8),
    ],
)
def test_presets_of_the_step_computation_mask(computed, reused, count):
    mask = step_mask(computed, reused)
    assert (len(mask), sum(mask)) == (28, count)
    stretched = step_mask(computed, reused, 50)
    assert len(stretched) == 50
    assert stretched[0]
    assert sum(stretched) == pytest.approx(50 * count / 28, abs=3)


def test_easycache_spends_its_threshold_and_is_strict():
    gate, ledger = LatentChange(threshold=0.05, warmup=0), Ledger.of(1)
    ledger.notes = {
        "x": torch.zeros(1, 4),
        "gain": torch.tensor([0.5]),
        "level": torch.tensor([2.0]),
    }
    first = gate.judge(step(3), ledger, torch.full((1, 4), 0.1))
    assert float(ledger.spent) == pytest.approx(0.025)
    assert bool(first)
    second = gate.judge(step(4), ledger, torch.full((1, 4), 0.2))
    assert float(ledger.spent) == pytest.approx(0.05)
    assert not bool(second)


def test_first_block_compares_with_the_last_computed_residual():
    gate, ledger, old = FirstBlock(threshold=0.125), Ledger.of(1), torch.full((1, 4), 8.0)
    assert not bool(gate.judge(step(0), ledger, old))
    gate.learn(step(0), ledger, old, old, ONE)
    assert bool(gate.judge(step(1), ledger, torch.full((1, 4), 9.0)))  # an eighth: at the threshold
    assert not bool(gate.judge(step(2), ledger, torch.full((1, 4), 9.1)))
    strict = FirstBlock(threshold=0.125, strict=True)
    assert not bool(strict.judge(step(1), ledger, torch.full((1, 4), 9.0)))


def test_teacache_accumulates_the_polynomial_of_the_change():
    gate, ledger = ModulatedInput(threshold=0.5, polynomial=(2.0, 0.0)), Ledger.of(1)
    inputs = [1.0, 1.1, 1.21]
    answers = [
        bool(gate.judge(step(i), ledger, torch.full((1, 4), x))) for i, x in enumerate(inputs)
    ]
    assert answers == [False, True, True]
    assert float(ledger.spent) == pytest.approx(0.4, rel=1e-5)


def test_a_negative_polynomial_adds_nothing_unless_asked():
    for floor, spent in ((True, 0.0), (False, -0.1)):
        gate = ModulatedInput(threshold=0.5, polynomial=(-1.0, 0.0), floor=floor)
        ledger = Ledger.of(1)
        gate.judge(step(0), ledger, torch.full((1, 4), 1.0))
        gate.judge(step(1), ledger, torch.full((1, 4), 1.1))
        assert float(ledger.spent) == pytest.approx(spent, abs=1e-6)


def test_magcache_multiplies_ratios_and_resets_when_computed():
    gate = MagnitudeRatio(threshold=0.15, longest=3, ratios=(1.0, 0.9, 0.9, 0.9), retention=0.0)
    assert schedule(gate, 4, total=4) == [0, 2]  # |1-.9| = .1, then |1-.81| + .1 = .29
    with pytest.raises(RecipeError, match="needs `ratios`"):
        MagnitudeRatio().judge(step(0), Ledger.of(1), torch.zeros(1, 2))


def test_a_first_block_that_comes_true_is_trusted():
    gate, ledger = ForecastError(threshold=1e-6, warmup=2, tail=0), Ledger.of(1)
    for i in range(3):
        value = torch.full((1, 4), 5.0 + 2 * i)
        trusted = gate.judge(step(i), ledger, value)
        if i < 2:
            gate.learn(step(i), ledger, value, value, ONE)
    assert bool(trusted)
    assert not bool(gate.judge(step(3), ledger, torch.full((1, 4), 99.0)))


def test_samples_are_judged_alone():
    gate, ledger = FirstBlock(threshold=0.1), Ledger.of(2)
    old = torch.full((2, 4), 10.0)
    gate.judge(step(0), ledger, old)
    gate.learn(step(0), ledger, old, old, torch.tensor([True, True]))
    new = torch.tensor([10.5, 20.0])[:, None].expand(2, 4)
    assert gate.judge(step(1), ledger, new).tolist() == [True, False]


@pytest.mark.parametrize(
    "gate",
    [
        lambda: FirstBlock(threshold=-1),
        lambda: LatentChange(threshold=float("nan")),
        lambda: Interval(every=0),
        lambda: Interval(warmup=-1),
        lambda: FirstBlock(blocks=0),
        lambda: ForecastError(threshold=-0.1),
    ],
)
def test_impossible_gates_are_refused(gate):
    with pytest.raises(RecipeError):
        gate()


def ticks(*times: float) -> list[tuple[int, bool]]:
    clock = Clock()
    return [(s.index, fresh) for s, fresh in (clock.tick(t) for t in times)]


def test_a_trajectory_begins_when_time_jumps_back():
    assert ticks(1000, 800, 600, 1000, 800) == [
        (0, True), (1, False), (2, False), (0, True), (1, False),
    ]  # fmt: skip


def test_image_to_image_may_start_anywhere():
    assert ticks(600, 400, 200, 600, 400)[3:] == [(0, True), (1, False)]


def test_models_whose_time_rises_are_followed_too():
    assert ticks(0.0, 0.2, 0.4, 0.0, 0.2) == [
        (0, True), (1, False), (2, False), (0, True), (1, False),
    ]  # fmt: skip


def test_the_direction_is_kept_over_an_abandoned_first_step():
    clock = Clock()
    for time in (1000, 800, 600, 400):
        clock.tick(time)
    assert clock.tick(700)[1]  # another request starts late …
    assert clock.tick(1000)[1]  # … and is abandoned after one step


def test_equal_times_begin_anew_and_vectors_count_whole():
    assert ticks(500, 500) == [(0, True), (0, True)]
    clock = Clock()
    first = torch.tensor([900.0, 0.0, 900.0])
    assert clock.tick(first)[1]
    assert not clock.tick(torch.tensor([900.0, 0.0, 850.0]))[1]  # the largest stays, others move
    assert clock.step is not None
    assert clock.step.index == 1


def test_noise_levels_are_read_from_both_scales():
    clock = Clock()
    assert clock.tick(750.0)[0].sigma == 0.75
    assert Clock().tick(0.75)[0].sigma == 0.75
    assert clock.tick(1.0)[0].sigma == 0.001  # a small training timestep is still one
