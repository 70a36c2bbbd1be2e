"""What depends on time alone runs once for each time, whatever the family, and never goes stale."""

from __future__ import annotations

import pytest
import torch
from denoisers import denoiser, sample
from torch.overrides import TorchFunctionMode

from recollect.diffusion import accelerate, accelerated
from recollect.diffusion.policy import policy
from recollect.diffusion.tables import table_of
from recollect.errors import HostError, RecipeError

FAMILIES = [
    "FluxTransformer2DModel",
    "WanTransformer3DModel",
    "DiTTransformer2DModel",
    "SD3Transformer2DModel",
    "PixArtTransformer2DModel",
    "QwenImageTransformer2DModel",
    "ChromaTransformer2DModel",
    "HunyuanVideoTransformer3DModel",
    "ZImageTransformer2DModel",
    "UNet2DConditionModel",
]
DIT = denoiser("DiTTransformer2DModel")


class Used(TorchFunctionMode):
    """Notes the weights that linear layers multiply with."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: set[int] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.linear:
            self.weights.add(id(args[1]))
        return func(*args, **(kwargs or {}))


def inside(model) -> set[int]:
    """The weights of the modules that are in the table."""
    return {id(p) for f in table_of(model).features for p in f.module.parameters()}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_second_trajectory_runs_none_of_it_and_has_the_same_bits(name):
    family = denoiser(name)
    model = family.build()
    with Used() as everything:
        plain = sample(family, model, 2)
    with accelerated(model, "tfmq-tib"):
        assert torch.equal(sample(family, model, 2), plain)
        table = table_of(model)
        misses = table.misses
        with Used() as second:
            assert torch.equal(sample(family, model, 2), plain)
        assert inside(model) & everything.weights
        assert second.weights == everything.weights - inside(model)
        assert table.misses == misses
    assert torch.equal(sample(family, model, 2), plain)
    assert not any(hasattr(module, "_diffusers_hook") for module in model.modules())


def test_the_modulation_is_found_by_what_flows_into_it():
    model = DIT.build()
    with accelerated(model, "tfmq-tib"):
        sample(DIT, model, 1)
        names = [feature.name for feature in table_of(model).features]
    assert "transformer_blocks.0.norm1.emb" in names
    assert "transformer_blocks.0.norm1.linear" in names
    assert "proj_out_1" in names  # the last modulation
    assert not any("attn" in name or "ff" in name for name in names)


def test_another_prompt_of_the_same_shape_is_not_mixed_up():
    flux = denoiser("FluxTransformer2DModel")
    model = flux.build()
    plain = [sample(flux, model, 2, seed=seed) for seed in (1, 2)]
    with accelerated(model, "tfmq-tib"):
        for _ in range(2):
            for seed, expected in zip((1, 2), plain, strict=True):
                assert torch.equal(sample(flux, model, 2, seed=seed), expected)


@pytest.mark.parametrize("way", ["in place", "through data", "another tensor"])
def test_changed_weights_are_never_answered_from_the_table(way):
    model = DIT.build()
    with accelerated(model, "tfmq-tib"):
        before = sample(DIT, model, 2)
        weight = model.transformer_blocks[1].norm1.linear.weight
        with torch.no_grad():
            if way == "in place":
                weight.mul_(1.5)
            elif way == "through data":
                weight.data.mul_(1.5)
            else:
                weight.data = weight.data * 1.5
        after = sample(DIT, model, 2)
    assert not torch.equal(after, before)
    assert torch.equal(after, sample(DIT, model, 2))


class Lora(torch.nn.Module):
    """An adapter beside a linear layer, as peft puts it in."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.scaling = base, {"default": 1.0}
        self.down = torch.nn.Linear(base.in_features, 2)
        self.up = torch.nn.Linear(2, base.out_features)

    def forward(self, x):
        return self.base_layer(x) + self.scaling["default"] * self.up(self.down(x))


def test_a_lora_is_seen_and_so_is_its_strength():
    model = DIT.build()
    embedder = model.transformer_blocks[0].norm1.emb.timestep_embedder
    with accelerated(model, "tfmq-tib"):
        pictures = [sample(DIT, model, 2)]
        lora = embedder.linear_1 = Lora(embedder.linear_1)
        for strength in (1.0, 3.0):
            lora.scaling["default"] = strength
            pictures.append(sample(DIT, model, 2))
            assert torch.equal(sample(DIT, model, 2), pictures[-1])
    assert torch.equal(sample(DIT, model, 2), pictures[-1])
    assert not torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[1], pictures[2])


def test_a_time_per_token_is_computed_once_for_each_time():
    wan = denoiser("WanTransformer3DModel")
    model = wan.build()
    latent, extra = wan.start(1)
    times = torch.zeros(1, 2 * 4 * 4)
    times[:, 16:] = 500.0  # the first frame is given, the others are noise

    def call():
        with torch.no_grad():
            return model(hidden_states=latent, timestep=times, **extra, return_dict=False)[0]

    plain = call()
    with accelerated(model, "tfmq-tib"):
        assert torch.equal(call(), plain)
        assert torch.equal(call(), plain)
    with accelerated(model, "tfmq-tib", exact=False):
        call()
        table = table_of(model)
        misses = table.misses
        torch.testing.assert_close(call(), plain, rtol=1e-4, atol=1e-4)
        assert table.misses == misses
        assert misses <= 2 * len(table.features) + len(table.features)


def test_samples_of_a_batch_share_rows_where_the_last_bit_may_differ():
    model = DIT.build()
    plain = sample(DIT, model, 2, batch=4)
    with accelerated(model, "tfmq-tib", exact=False):
        torch.testing.assert_close(sample(DIT, model, 2, batch=4), plain, rtol=1e-4, atol=1e-4)
        with Used() as second:
            sample(DIT, model, 2, batch=4)
        assert second.weights
        assert not inside(model) & second.weights


def test_a_small_table_forgets_and_is_still_right():
    model = DIT.build()
    plain = sample(DIT, model, 3)
    with accelerated(model, "tfmq-tib", table_bytes=2000):
        for _ in range(2):
            assert torch.equal(sample(DIT, model, 3), plain)
            assert table_of(model).nbytes <= 2000


@pytest.mark.parametrize("place", ["host", "disk"])
def test_weights_that_are_not_needed_are_put_aside_and_come_back(place):
    model = DIT.build()
    plain = {steps: sample(DIT, model, steps) for steps in (2, 3)}
    weights = {name: p.clone() for name, p in model.named_parameters()}
    with accelerated(model, "tfmq-tib", offload=place):
        sample(DIT, model, 2)
        full = table_of(model).weights
        for _ in range(2):
            assert torch.equal(sample(DIT, model, 2), plain[2])
        assert full > 0
        assert table_of(model).weights == 0
        assert torch.equal(sample(DIT, model, 3), plain[3])  # other times: they come back
        assert table_of(model).weights == full
        for _ in range(2):
            sample(DIT, model, 3)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_coded_rows_are_small_and_near():
    model = DIT.build()
    plain = sample(DIT, model, 2)
    sizes = []
    for arguments in ({}, {"codec": "int8"}):
        with accelerated(model, "tfmq-tib", exact=False, **arguments):
            sample(DIT, model, 2)
            coded = sample(DIT, model, 2)
            sizes.append(table_of(model).nbytes)
    assert sizes[1] < 0.5 * sizes[0]
    assert 0 < float((coded - plain).abs().max()) < 0.05 * float(plain.abs().max())


def test_a_table_goes_with_any_policy():
    model = DIT.build()
    with accelerated(model, "fora", every=2):
        alone = sample(DIT, model, 4)
    with accelerated(model, "fora + tfmq-tib", every=2):
        assert torch.equal(sample(DIT, model, 4), alone)
        assert torch.equal(sample(DIT, model, 4), alone)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(RecipeError, match="exact=False"):
        policy("tfmq-tib", codec="int8")
    with pytest.raises(RecipeError, match="offload is host or disk"):
        policy("tfmq-tib", offload="cloud")
    line = policy("tfmq-tib", exact=False, table_bytes=10).to_yaml()
    assert policy(line).companions == policy("tfmq-tib", exact=False, table_bytes=10).companions
    with pytest.raises(HostError, match="no table"):
        table_of(DIT.build())
    model = DIT.build()
    with accelerate(model, "fora"), pytest.raises(HostError, match="no table"):
        table_of(model)
