"""What papers claim and a trained model shows: at no more computation, nearer to the original.

Every claim is checked on two sets of noise, with a margin. What does not hold on this model is
written in docs/diffusion-measured.md instead.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from recollect.diffusion import DiffusionPolicy, accelerated, ertacache
from recollect.diffusion.guidance import GuidanceCache
from recollect.diffusion.learned import gate_fits
from recollect.diffusion.policy import policy
from recollect.diffusion.predictors import Reuse
from recollect.diffusion.schedules import Interval, ModuleMask
from recollect.diffusion.sites import Hidden, Modules
from recollect.evaluate import clips as distances
from recollect.evaluate.diffusion.operations import Operations
from recollect.evaluate.pictures import psnr
from recollect.zoo import images, videos

STEPS, SEEDS = 20, (2000, 3000)
LABELS = torch.arange(8) % 4

Judge = Callable[..., tuple[list[float], int]]


@pytest.fixture(scope="module")
def model():
    return images.load("tiny-dit")


@pytest.fixture(scope="module")
def judge(model) -> Judge:
    """Decibels for each set of noise, and how many evaluations were computed, most of them."""
    plain = {seed: images.sample(model, LABELS, STEPS, seed) for seed in SEEDS}

    def decibels(chosen) -> tuple[list[float], int]:
        found, computed = [], 0.0
        for seed, pictures in plain.items():
            with accelerated(model, chosen) as acceleration:
                drawn = images.sample(model, LABELS, STEPS, seed)
                computed = max(computed, acceleration.report().computed / 2)
            found.append(float(psnr(drawn, pictures).mean()))
        return found, round(computed)

    return decibels


def beats(judge: Judge, better, worse, margin: float) -> None:
    """The better one costs no more, and is nearer by the margin on every set of noise."""
    (high, computed), (low, allowed) = judge(better), judge(worse)
    print(f"{high} with {computed} against {low} with {allowed}")
    assert computed <= allowed
    assert all(a > b + margin for a, b in zip(high, low, strict=True))


def calibration(model):
    return lambda *sigmas: images.sample(model, LABELS, STEPS, 7_000)


def test_fora_beats_modules_at_random(model, judge):
    modules = 12
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(modules * (STEPS - 1), generator=generator) < modules * (STEPS / 2 - 1)
    rows = [
        "1" * modules,
        *("".join("01"[int(b)] for b in row) for row in chosen.view(-1, modules)),
    ]
    anywhere = DiffusionPolicy(Modules(), ModuleMask(steps=tuple(rows)))
    uniform = policy("fora", every=2, warmup=1)
    assert judge(uniform)[1] * modules == "".join(rows).count("1")
    beats(judge, uniform, anywhere, 5)


@pytest.mark.parametrize(("threshold", "every"), [(0.02, 2), (0.05, 3)])
def test_a_gated_forecast_beats_a_uniform_one(judge, threshold, every):
    gated = policy("cg-taylor", threshold=threshold)
    beats(judge, gated, policy("taylorseer", site=Hidden(), every=every, warmup=2), 0.4)


def test_exponentials_beat_lines(judge):
    schedule = {"every": 3, "warmup": 4}
    beats(judge, policy("dmd", **schedule), policy("taylorseer", **schedule), 1.5)


def test_a_calibrated_forecast_beats_a_line(judge):
    schedule = {"every": 3, "warmup": 3}
    beats(judge, policy("foca", **schedule), policy("taylorseer", **schedule), 0.8)


def test_rectified_reuse_beats_plain_reuse(model, judge, tmp_path):
    def calibrated(name: str, rectify: bool) -> DiffusionPolicy:
        path = tmp_path / name
        return ertacache.calibrate(path, model, calibration(model), 0.15, rectify=rectify).policy

    beats(judge, calibrated("with", True), calibrated("without", False), 2)


def test_a_fitted_polynomial_beats_none(model, judge):
    fitted = gate_fits.teacache(model, calibration(model), threshold=0.1)
    beats(judge, fitted, policy("teacache", threshold=0.25), 0.5)


def test_latents_compared_where_their_signal_is_beat_modulated_inputs(model, judge):
    # as published: SeaCache forecasts, TeaCache's polynomial is fitted
    fitted = gate_fits.teacache(model, calibration(model), threshold=0.1)
    beats(judge, policy("seacache", threshold=0.3), fitted, 3)
    # the gates alone
    reused = policy("seacache", threshold=0.15, predictor=Reuse(), longest=None)
    beats(judge, reused, policy("teacache", threshold=0.1), 3)


@pytest.mark.parametrize("recipe", ["fbcache", "dbcache"])
def test_a_larger_threshold_computes_less_and_is_further_away(judge, recipe):
    given = {"blocks": 2, "warmup": 2} if recipe == "dbcache" else {}
    low, high = (judge(policy(recipe, threshold=t, **given)) for t in (0.2, 0.4))
    assert high[1] < low[1] < STEPS
    assert all(a > b + 2 for a, b in zip(low[0], high[0], strict=True))


@pytest.fixture(scope="module")
def film():
    """Decibels of clips to the uncached ones for each set of noise, and operations of the last."""
    model, captions = videos.load("tiny-video-dit")
    shapes, motions = torch.tensor([0, 2]), torch.tensor([0, 1])

    def draw(seed: int) -> torch.Tensor:
        return videos.sample(model, captions, shapes, motions, 12, seed)

    plain = {seed: draw(seed) for seed in SEEDS}

    def decibels(chosen) -> tuple[list[float], int]:
        found = []
        for seed, clips in plain.items():
            last = seed == SEEDS[-1]
            with accelerated(model, chosen), Operations() if last else nullcontext() as counted:
                found.append(float(distances.psnr(draw(seed), clips).mean()))
        return found, counted.total

    return decibels


def test_made_guidance_and_extrapolated_attention_beat_broadcast_attention(film):
    beats(film, policy("fastercache", renew=2), policy("pab", spatial=2, cross=6), 8)


def test_extrapolated_attention_beats_reused_attention(film):
    extrapolated = policy("fastercache", renew=1)
    beats(film, extrapolated, replace(extrapolated, predictor=Reuse()), 8)


def test_differences_of_guidance_that_grow_beat_those_that_do_not(film):
    grown, held = (
        DiffusionPolicy(gate=Interval(every=1), companions=(GuidanceCache(renew=2, growth=g),))
        for g in (1.1, 1.0)
    )
    beats(film, grown, held, 0.4)
