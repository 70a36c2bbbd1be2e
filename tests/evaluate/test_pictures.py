"""Picture distances against their definitions."""

import math

import pytest
import torch

from recollect.evaluate.pictures import psnr, ssim


def test_psnr_is_the_peak_over_the_error_per_picture():
    one = torch.zeros(2, 3, 16, 16)
    other = one.clone()
    other[0] += 0.2
    other[1] += 0.02
    assert psnr(one, other).tolist() == pytest.approx([20.0, 40.0], abs=1e-3)
    assert math.isinf(float(psnr(one, one)[0]))


def test_what_lies_outside_the_range_is_clipped():
    assert math.isinf(float(psnr(torch.full((1, 3, 8, 8), 1.0), torch.full((1, 3, 8, 8), 5.0))))


def test_equal_pictures_are_alike_and_noise_is_not():
    pictures = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert ssim(pictures, pictures).tolist() == pytest.approx([1.0] * 4)
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))
    slightly, strongly = ssim(pictures, pictures + 0.05 * noise), ssim(pictures, noise)
    assert bool((slightly > 0.9).all())
    assert bool((strongly < 0.3).all())


def test_flat_pictures_follow_the_formula():
    one, other = torch.full((1, 1, 16, 16), 0.5), torch.full((1, 1, 16, 16), 0.1)
    expected = (2 * 0.05 + 0.0004) / (0.25 + 0.01 + 0.0004)
    assert float(ssim(one, other)) == pytest.approx(expected, rel=1e-3)
