"""Accelerated models that are copied, pickled, moved to another dtype or given other weights."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from types import SimpleNamespace

import pytest
import torch
from denoisers import denoiser

from recollect.diffusion import accelerate, accelerated, restore
from recollect.diffusion.banks.lora import adapter, new_adapter
from recollect.errors import HostError

FLUX = denoiser("FluxTransformer2DModel")


@pytest.fixture
def model():
    return FLUX.build()


@pytest.fixture(scope="module")
def others():
    """Weights of another model of the same architecture."""
    return {name: 0.9 * weight for name, weight in FLUX.build().state_dict().items()}


@torch.no_grad()
def draw(model, steps: int = 6) -> torch.Tensor:
    """A trajectory of six steps, or its first ones, in the model's dtype."""
    latent, extra = FLUX.start(1)
    latent, extra = latent.to(model.dtype), {n: t.to(model.dtype) for n, t in extra.items()}
    for step in range(steps):
        latent = latent - FLUX.call(model, latent, 1 - step / 6, extra) / 6
    return latent


@pytest.mark.parametrize("spec", ["taylorseer", "fora", "easycontrol", "tfmq-tib"])
@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_copies_of_an_accelerated_model_are_refused(model, spec, copied):
    """What diffusers' registry would copy computes with the weights of the original."""
    with accelerated(model, spec):
        before = draw(model)
        for target in (model, SimpleNamespace(transformer=model)):
            with pytest.raises(HostError, match="restore first"):
                copied(target)
        assert torch.equal(draw(model), before)
    assert torch.equal(draw(copy.deepcopy(model)), draw(model))


def test_blocks_of_an_accelerated_model_are_not_copied_either(model):
    with accelerated(model, "fora"), pytest.raises(HostError, match="cannot be copied"):
        copy.deepcopy(model.transformer_blocks[0].attn)


def test_a_copy_is_accelerated_and_restored_by_itself(model):
    other = copy.deepcopy(model)
    plain = draw(model)
    first = accelerate(model, "taylorseer", every=2, warmup=1)
    reused = draw(model)
    assert not torch.equal(reused, plain)
    assert torch.equal(draw(other), plain)
    restore(other)  # has nothing on it
    second = accelerate(other, "taylorseer", every=2, warmup=1)
    assert torch.equal(draw(other), reused)
    restore(model)
    assert torch.equal(draw(model), plain)
    assert torch.equal(draw(other), reused)
    restore(other)
    assert torch.equal(draw(other), plain)
    assert first.report().evaluations == 6
    assert second.report().evaluations == 12


def test_accelerating_twice_is_refused_and_the_first_one_stays(model):
    first = accelerate(model, "taylorseer", every=2, warmup=1)
    reused = draw(model)
    for target in (model, SimpleNamespace(transformer=FLUX.build(), transformer_2=model)):
        with pytest.raises(HostError, match="is accelerated already"):
            accelerate(target, "fora")
    assert torch.equal(draw(model), reused)
    restore(model)
    first.restore()
    with accelerated(model, "fora", every=1):
        assert not torch.equal(draw(model), reused)


@pytest.mark.parametrize("spec", ["taylorseer + tfmq-tib", "fora", "easycontrol"])
def test_another_dtype_is_as_if_accelerated_afterwards(model, spec):
    with accelerated(model, spec):
        draw(model)
        draw(model, steps=3)  # and a trajectory that was left
        moved = draw(model.to(torch.float64))
    with accelerated(model, spec):
        assert torch.equal(draw(model), moved)


@pytest.mark.parametrize("spec", ["taylorseer + tfmq-tib", "fora", "easycontrol"])
def test_other_weights_are_as_if_accelerated_afterwards(model, others, spec):
    with accelerated(model, spec) as acceleration:
        draw(model, steps=3)
        model.load_state_dict(others)
        assert acceleration.nbytes == 0
        loaded = draw(model)
    with accelerated(model, spec):
        assert torch.equal(draw(model), loaded)


def test_what_was_learned_for_other_weights_is_refused_when_they_are_loaded(
    model, others, tmp_path
):
    path = str(tmp_path / "adapter.safetensors")
    adapter(model, new_adapter(model, rank=1), 0).save(path)
    with (
        accelerated(model, "easycontrol", lora=path),
        pytest.raises(HostError, match="was made for another model"),
    ):
        model.load_state_dict(others)


def test_nothing_is_loaded_into_weights_that_are_put_aside(model, others):
    with accelerated(model, "tfmq-tib", offload="host"):
        for _ in range(3):
            draw(model)
        assert any(weight.numel() == 0 for weight in model.parameters())
        with pytest.raises(HostError, match="put aside"):
            model.load_state_dict(others)
    model.load_state_dict(others)


def test_a_model_that_nobody_holds_is_freed(model):
    accelerate(model, "taylorseer")
    gone = weakref.ref(FLUX.build())
    assert gone() is None
    other = FLUX.build()
    accelerate(other, "taylorseer")
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None
