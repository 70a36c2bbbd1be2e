"""What is calibrated on covers contents and times; lost variance is given back."""

from __future__ import annotations

import pytest
import torch
from denoisers import denoiser, sample

from recollect.diffusion import DiffusionPolicy, accelerated
from recollect.diffusion.predictors import Reuse
from recollect.diffusion.profiles import record_each
from recollect.diffusion.quantized.calibrate import calibrate
from recollect.diffusion.quantized.pool import record_calls
from recollect.diffusion.quantized.qc import (
    KINDS,
    affinity,
    select,
    spectral_clusters,
    variance_correction,
    variance_factor,
)
from recollect.diffusion.schedules import Interval
from recollect.diffusion.sites import Modules
from recollect.errors import RecipeError

DIT = denoiser("DiTTransformer2DModel")


def same_partition(one, other) -> bool:
    pairs = set(zip(one.tolist(), other.tolist(), strict=True))
    return len(pairs) == len(one.unique()) == len(other.unique())


def two_by_two(seed=0):
    """Samples of two contents at two far times, with what each belongs to."""
    generator = torch.Generator().manual_seed(seed)
    content, late = torch.arange(40) % 2, torch.arange(40) // 20
    centres = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
    latents = centres[content] + 0.05 * torch.randn(40, 3, generator=generator)
    return latents, late * 900.0 + torch.arange(40) % 20, content, late


def test_clusters_follow_content_or_time():
    latents, times, content, late = two_by_two()
    by_content = spectral_clusters(affinity(latents, times, alpha=1), 2)
    assert same_partition(by_content, content)
    by_time = spectral_clusters(affinity(latents, times / 20, alpha=0), 2)
    assert same_partition(by_time, late)


def test_rare_samples_are_selected_more_often_than_by_chance():
    latents = torch.cat([torch.eye(3)[:1].repeat(80, 1), torch.eye(3)[1:2].repeat(20, 1)])
    latents = latents + 0.01 * torch.randn(
        latents.shape, generator=torch.Generator().manual_seed(0)
    )
    times = torch.zeros(100)
    clustered = [int((select(latents, times, 10, 2, 1, 1.0, seed=s) >= 80).sum()) for s in range(9)]
    uniform = [int((select(latents, times, 10, 1, 1, 1.0, seed=s) >= 80).sum()) for s in range(9)]
    assert sum(clustered) > 1.5 * sum(uniform)


@pytest.mark.parametrize("subsamples", [1, 3])
def test_as_many_are_selected_as_wanted_each_once(subsamples):
    latents, times, _, _ = two_by_two()
    chosen = select(latents, times, 12, clusters=4, subsamples=subsamples)
    assert len(chosen) == len(chosen.unique()) == 12
    with pytest.raises(RecipeError, match="between 1 and 40"):
        select(latents, times, 41)


@pytest.mark.parametrize("kind", KINDS)
def test_factors_that_are_known_are_found(kind):
    truth = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) + 2
    factor, shift = variance_factor(truth, truth, 1, kind)
    torch.testing.assert_close(factor, torch.ones(3))
    torch.testing.assert_close(shift, torch.zeros(3))
    mean = truth.mean(0)
    factor, shift = variance_factor(mean + (truth - mean) / 2, truth, 1, kind)
    torch.testing.assert_close(factor, torch.full((3,), 2.0))
    torch.testing.assert_close(shift, -mean, rtol=1e-4, atol=1e-4)


def test_the_spread_is_restored():
    generator = torch.Generator().manual_seed(1)
    truth = torch.randn(500, 4, generator=generator)
    guess = 0.6 * truth + 0.1 * torch.randn(500, 4, generator=generator) + 1
    factor, shift = variance_factor(guess, truth, 1, "deviation")
    torch.testing.assert_close((guess * factor + shift).std(0), truth.std(0), rtol=0.01, atol=0)
    with pytest.raises(RecipeError, match="kind is one of"):
        variance_factor(guess, truth, 1, "other")


def test_a_pool_gives_back_its_samples():
    model = DIT.build()
    pool = record_calls(model, lambda: sample(DIT, model, 3, batch=4))
    latents, times = pool.samples()
    assert latents.shape == (12, 4 * 8 * 8)
    assert len(times.unique()) == 3
    chosen = torch.tensor([0, 5, 6, 11])
    few, few_times = pool.only(chosen).samples()
    assert torch.equal(few, latents[chosen])
    assert torch.equal(few_times, times[chosen])


def test_a_corrected_run_has_the_spread_of_the_float_model(tmp_path):
    model = DIT.build()
    run = lambda: sample(DIT, model, 4, batch=2)  # noqa: E731
    pool = record_calls(model, run)
    integers = calibrate(str(tmp_path / "integers"), model, pool, 4)
    truths = record_each(model, run, Modules())
    guesses = record_each(model, run, Modules(), (integers,))
    gate = Interval(every=2)
    base = DiffusionPolicy(Modules(), gate, Reuse(), companions=(integers,))
    with accelerated(model, base):
        corrector = variance_correction(
            str(tmp_path / "variance"), model, guesses, truths, Reuse(), (0, 2), -1, "deviation"
        )
    seen = {}
    for name, chosen in (("naive", None), ("corrected", corrector)):
        policy = DiffusionPolicy(Modules(), gate, Reuse(), chosen, companions=(integers,))
        with accelerated(model, policy) as done:
            run()
            seen[name] = done.report().computed
    assert seen == {"naive": 2, "corrected": 2}
    name, profile = next(iter(guesses.items()))
    truth = truths[name].values[1][0]
    step = profile.steps[1]
    (value,) = corrector.correct(profile.values[0], step, name)
    torch.testing.assert_close(value.std((0, 1)), truth.std((0, 1)), rtol=0.01, atol=1e-4)
