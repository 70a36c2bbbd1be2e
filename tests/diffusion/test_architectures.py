"""Every family of denoisers: off is bit-identical, reuse skips work, restore leaves no trace."""

from __future__ import annotations

import pytest
import torch
from denoisers import DENOISERS, NAMES, counted, denoiser, sample

from recollect.diffusion import accelerate
from recollect.errors import HostError

STEPS = 5
WHOLE = [("taylorseer", {"every": 1}), ("easycache", {"threshold": 0.0})]
BLOCKS = [
    ("fora", {"every": 1}),
    ("fbcache", {"threshold": 0.0}),
    ("teacache", {"threshold": 0.0}),
    ("cg-taylor", {"threshold": 0.0}),
    ("delta-dit", {"every": 1}),
]
SKIPPING = [
    ("taylorseer", {"every": 3, "warmup": 1}, 2),
    ("fora", {"every": 3}, 2),
    ("fbcache", {"threshold": 1e9}, 1),
    ("teacache", {"threshold": 1e9, "tail": 0}, 1),
    ("cg-taylor", {"threshold": 1e9, "tail": 0}, 2),
]


@pytest.fixture(scope="module", params=NAMES)
def family(request):
    chosen = denoiser(request.param)
    model = chosen.build()
    return chosen, model, sample(chosen, model, STEPS)


def test_there_are_at_least_25_families_of_transformers():
    assert len([one for one in DENOISERS if one.blocks]) >= 25


def test_off_is_bit_identical(family):
    chosen, model, expected = family
    for spec, arguments in WHOLE + (BLOCKS if chosen.blocks else []):
        with accelerate(model, spec, **arguments) as acceleration:
            assert torch.equal(sample(chosen, model, STEPS), expected), spec
            report = acceleration.report()
            assert report.computed == report.evaluations == STEPS


def test_reuse_skips_the_blocks_and_repeats_itself(family):
    chosen, model, expected = family
    with counted(model) as plain:
        sample(chosen, model, STEPS)
    for spec, arguments, computed in SKIPPING[:1] if not chosen.blocks else SKIPPING:
        with accelerate(model, spec, **arguments) as acceleration:
            first = sample(chosen, model, STEPS)
            with counted(model) as ran:
                again = sample(chosen, model, STEPS)
            assert acceleration.report().computed == 2 * computed, spec
        assert torch.equal(first, again), spec
        assert not torch.equal(first, expected), spec
        assert torch.isfinite(first).all()
        assert len(ran) < len(plain), spec


def test_restore_leaves_no_trace(family):
    chosen, model, expected = family
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    with accelerate(model, "fora" if chosen.blocks else "taylorseer"):
        sample(chosen, model, 2)
    after = {name: dict(module.__dict__) for name, module in model.named_modules()}
    assert {n: set(d) for n, d in before.items()} == {n: set(d) for n, d in after.items()}
    assert torch.equal(sample(chosen, model, STEPS), expected)


def test_a_denoiser_without_recognizable_blocks_is_refused_in_words():
    model = denoiser("UNet2DConditionModel").build()
    with pytest.raises(HostError, match="no blocks can be recognized in UNet2DConditionModel"):
        accelerate(model, "fbcache")
    assert not hasattr(model, "_diffusers_hook")


def test_blocks_whose_streams_cannot_be_followed_are_refused_in_words():
    chosen = denoiser("HiDreamImageTransformer2DModel")
    model = chosen.build()
    with accelerate(model, "fbcache"), pytest.raises(HostError, match="cannot tell which"):
        sample(chosen, model, 2)
    with accelerate(model, "fora") as acceleration:
        sample(chosen, model, STEPS)
    assert acceleration.report().computed == 2


def test_deepcache_runs_the_outer_blocks_of_a_u_net_only():
    chosen = denoiser("UNet2DConditionModel")
    model = chosen.build()
    plain = sample(chosen, model, STEPS)
    with accelerate(model, "deepcache", every=1):
        assert torch.equal(sample(chosen, model, STEPS), plain)
    outer = {"down_blocks.0", "up_blocks.1"}
    ran = dict.fromkeys(
        ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"], 0
    )
    hooks = []
    for name in ran:
        inner = next(iter(model.get_submodule(name).resnets))

        def count(*_, name=name):
            ran[name] += 1

        hooks.append(inner.register_forward_hook(count))
    with accelerate(model, "deepcache", every=3) as acceleration:
        first = sample(chosen, model, 6)
        assert acceleration.report().computed == 2
        assert ran == {name: 6 if name in outer else 2 for name in ran}
        assert torch.equal(sample(chosen, model, 6), first)
    for hook in hooks:
        hook.remove()
    with pytest.raises(HostError, match="leaves nothing to reuse"):
        accelerate(model, "deepcache", depth=1)
    with pytest.raises(HostError, match="DeepCache is for U-Nets"):
        accelerate(denoiser("FluxTransformer2DModel").build(), "deepcache")
