"""A denoiser on integers is small, near the float one, and itself again afterwards."""

from __future__ import annotations

import pytest
import torch
from denoisers import denoiser, sample
from hypothesis import given, settings
from hypothesis import strategies as st

from recollect.diffusion import accelerate, accelerated
from recollect.diffusion.engine.values import nbytes
from recollect.diffusion.policy import policy
from recollect.diffusion.quantized.arithmetic import (
    activation_range,
    encode_activation,
    encode_weight,
)
from recollect.diffusion.quantized.calibrate import calibrate
from recollect.diffusion.quantized.denoiser import Quantized, quantized
from recollect.diffusion.quantized.pool import record_calls
from recollect.errors import HostError, RecipeError, StoreError

FAMILIES = ["DiTTransformer2DModel", "FluxTransformer2DModel", "UNet2DConditionModel"]
DIT = denoiser("DiTTransformer2DModel")


def made(family, model, path, bits=8, steps=3, **arguments):
    pool = record_calls(model, lambda: sample(family, model, steps, batch=2))
    return calibrate(str(path), model, pool, bits, **arguments)


def near(one, other) -> float:
    """Relative distance."""
    return float((one - other).norm() / other.norm())


@given(st.integers(0, 10_000), st.sampled_from([4, 8]), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_a_weight_is_within_half_a_step_of_its_codes(seed, bits, width):
    weight = torch.randn(5, width, generator=torch.Generator().manual_seed(seed))
    codes = encode_weight(weight, bits)
    decoded = codes.integers() * codes.scale[:, None]
    assert decoded.shape == weight.shape
    top = (2 ** (bits - 1) - 1) * codes.scale[:, None]
    clipped = weight.clamp(-top, top)
    assert bool(((decoded - clipped).abs() <= codes.scale[:, None] / 2 + 1e-6).all())


@given(st.floats(-50, 50), st.floats(0.01, 50))
@settings(max_examples=30, deadline=None)
def test_an_activation_is_within_half_a_step_and_zero_is_zero(low, width):
    to = activation_range(low, low + width, 8)
    x = torch.linspace(low, low + width, 20)
    assert float((encode_activation(x, to) * to.scale - x).abs().max()) <= 1.01 * to.scale
    assert float(encode_activation(torch.zeros(1), to)) == 0


def test_codes_of_four_bits_take_half_a_byte():
    weight = torch.randn(8, 3, 3, 3)
    four, eight = encode_weight(weight, 4), encode_weight(weight, 8)
    assert eight.codes.numel() == 8 * 27
    assert four.codes.numel() == 8 * 14
    assert four.integers().shape == weight.shape


@pytest.mark.parametrize("name", FAMILIES)
def test_eight_bits_are_near_and_come_off_without_a_trace(name, tmp_path):
    family = denoiser(name)
    model = family.build()
    plain = sample(family, model, 3, batch=2)
    weights = {n: p.clone() for n, p in model.named_parameters()}
    before = nbytes(list(model.parameters()))
    companion = made(family, model, tmp_path / "w8a8")
    assert torch.equal(sample(family, model, 3, batch=2), plain)
    with accelerated(model, policy("quantized", weights=companion.weights)):
        coded = sample(family, model, 3, batch=2)
        left = nbytes(list(model.parameters()))  # biases, norms, tables of classes
        assert quantized(model).nbytes - left < 0.35 * (before - left)
    assert 0 < near(coded, plain) < 0.05
    assert torch.equal(sample(family, model, 3, batch=2), plain)
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert not any(hasattr(module, "_diffusers_hook") for module in model.modules())


def test_four_bits_are_smaller_and_farther_but_for_the_first_and_last_layer(tmp_path):
    model = DIT.build()
    plain = sample(DIT, model, 3)
    errors, sizes = [], []
    for bits in (8, 4):
        companion = made(DIT, model, tmp_path / str(bits), bits)
        with accelerated(model, policy("quantized", weights=companion.weights)):
            errors.append(near(sample(DIT, model, 3), plain))
            held = quantized(model)
            sizes.append(sum(layer.codes.codes.numel() for layer in held.layers.values()))
    assert errors[0] < errors[1] < 0.5
    assert sizes[1] < 0.6 * sizes[0]
    wide = {name for name, layer in held.layers.items() if layer.codes.codes.dtype == torch.int8}
    assert wide == {"pos_embed.proj", "proj_out_2"}


def test_ranges_for_every_step_are_better_than_one_for_all(tmp_path):
    model = DIT.build()
    with torch.no_grad():  # activations that grow with time
        model.transformer_blocks[0].norm1.linear.weight.mul_(20)
    plain = sample(DIT, model, 4)
    errors = []
    for each in (True, False):
        companion = made(DIT, model, tmp_path / str(each), steps=4, per_step=each)
        with accelerated(model, policy("quantized", weights=companion.weights)):
            errors.append(near(sample(DIT, model, 4), plain))
    assert errors[0] < errors[1]


def test_it_goes_with_any_policy_and_is_what_the_policy_caches(tmp_path):
    flux = denoiser("FluxTransformer2DModel")
    model = flux.build()
    companion = made(flux, model, tmp_path / "q")
    with accelerated(model, policy("quantized", weights=companion.weights)):
        alone = sample(flux, model, 4)
    for recipe in ("fora", "fbcache"):
        with accelerated(model, f"{recipe} + quantized", weights=companion.weights) as done:
            sample(flux, model, 4)
            reused = done.report().computed < 4
        assert reused == (recipe == "fora")
        off = {"every": 1} if recipe == "fora" else {"threshold": 0.0}
        with accelerated(model, f"{recipe} + quantized", weights=companion.weights, **off):
            assert torch.equal(sample(flux, model, 4), alone)
    with accelerated(model, "tfmq-tib + quantized", weights=companion.weights):
        for _ in range(2):
            assert torch.equal(sample(flux, model, 4), alone)


def test_times_between_calibrated_ones_have_ranges_between_theirs(tmp_path):
    model = DIT.build()
    companion = made(DIT, model, tmp_path / "q", steps=3)
    plain = sample(DIT, model, 5)
    with accelerated(model, policy("quantized", weights=companion.weights)):
        assert near(sample(DIT, model, 5), plain) < 0.1


def test_integers_of_another_model_are_refused(tmp_path):
    model, other = DIT.build(), DIT.build()
    companion = made(DIT, model, tmp_path / "q")
    with torch.no_grad():
        next(other.parameters()).add_(1)
    weights = {n: p.clone() for n, p in other.named_parameters()}
    with pytest.raises(HostError, match="another model"):
        accelerate(other, policy("quantized", weights=companion.weights))
    assert all(torch.equal(p, weights[n]) for n, p in other.named_parameters())
    assert not any(hasattr(module, "_diffusers_hook") for module in other.modules())
    with pytest.raises(HostError, match="make them with calibrate"):
        accelerate(other, "quantized")
    with pytest.raises(StoreError, match="cannot read"):
        accelerate(other, policy("quantized", weights=str(tmp_path / "none")))
    with pytest.raises(RecipeError, match="weight_bits is 4 or 8"):
        made(DIT, model, tmp_path / "q", bits=3)
    with pytest.raises(RecipeError, match="originals is host or disk"):
        Quantized(originals="cloud")
    line = policy("quantized", weights=companion.weights).to_yaml()
    assert policy(line).companions == (companion,)
