"""SeaCache compares latents by the frequencies that carry signal."""

from __future__ import annotations

import pytest
import torch
from denoisers import denoiser, sample
from diffusers.hooks.sea_cache import _apply_sea_filter

from recollect.diffusion import accelerated
from recollect.diffusion.engine.clock import Step
from recollect.diffusion.gates import Ledger
from recollect.diffusion.spectral import SpectralChange, filter_signal

DIT = denoiser("DiTTransformer2DModel")


@pytest.mark.parametrize("shape", [(2, 4, 3, 8, 6), (2, 4, 1, 8, 8)])
@pytest.mark.parametrize("sigma", [0.0, 0.3, 0.9, 1.0])
def test_the_filter_is_that_of_diffusers(shape, sigma):
    latent = torch.randn(shape)
    theirs = torch.stack([_apply_sea_filter(one.movedim(0, -1), sigma, 3.0) for one in latent])
    assert torch.allclose(filter_signal(latent, sigma), theirs.movedim(-1, 1), atol=1e-5)


def test_an_image_is_a_film_of_one_frame():
    latent = torch.randn(2, 4, 8, 8)
    film = filter_signal(latent[:, :, None], 0.4)[:, :, 0]
    assert torch.allclose(filter_signal(latent, 0.4), film, atol=1e-5)


def test_noise_counts_less_than_a_change_of_the_image():
    gate, flat = SpectralChange(), torch.ones(1, 1, 16, 16)
    noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))
    noise -= noise.mean()
    drifts = []
    for change in (noise, torch.full_like(noise, float(noise.abs().mean()))):
        ledger = Ledger.of(1)
        gate.judge(Step(0, 900.0, 0.9), ledger, flat)
        gate.judge(Step(1, 890.0, 0.9), ledger, flat + 0.1 * change)
        drifts.append(float(ledger.drift))
    assert drifts[0] < 0.5 * drifts[1]


def test_seacache_skips_and_switches_off():
    model = DIT.build()
    plain = sample(DIT, model, 8)
    with accelerated(model, "seacache", threshold=0.0):
        assert torch.equal(sample(DIT, model, 8), plain)
    with accelerated(model, "seacache", threshold=1e9) as acceleration:
        sample(DIT, model, 8)
        marks = [record.computed for _, record in acceleration.report().steps]
    assert marks == [1, 0, 0, 1, 0, 0, 1, 0]  # at most two in a row


def test_latents_without_an_image_are_computed():
    gate, ledger = SpectralChange(threshold=1e9), Ledger.of(1)
    for index in range(2):
        latent = torch.zeros(1, 6, 4)  # six tokens are no square
        assert not gate.judge(Step(index, 500.0, 0.5), ledger, latent).any()
    for index in range(2):
        square = gate.judge(Step(index, 500.0, 0.5), ledger, torch.ones(1, 16, 4))
    assert square.all()
