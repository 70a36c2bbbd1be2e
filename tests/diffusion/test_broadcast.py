"""Modules at intervals of their own kind (PAB), and tokens computed between full steps (ToCa)."""

from __future__ import annotations

import pytest
import torch
from denoisers import counted, denoiser, sample
from diffusers.hooks import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

from recollect.diffusion import DiffusionPolicy, accelerated
from recollect.diffusion.host.blocks import find_blocks
from recollect.diffusion.host.modules import find_submodules
from recollect.diffusion.predictors import Reuse, Taylor
from recollect.diffusion.pyramid import Pyramid
from recollect.diffusion.schedules import Interval
from recollect.diffusion.selection import Tokens, attention_received, grid_of, importance
from recollect.diffusion.sites import Modules
from recollect.errors import RecipeError

STEPS = 8
PEERS = ["DiTTransformer2DModel", "PixArtTransformer2DModel", "CogVideoXTransformer3DModel",
         "LatteTransformer3DModel", "FluxTransformer2DModel"]  # fmt: skip


def test_the_kind_of_a_module_is_seen_in_the_model():
    expected = {
        "LatteTransformer3DModel": {"spatial", "temporal", "cross", "feed_forward"},
        "WanTransformer3DModel": {"spatial", "cross", "feed_forward"},
        "CogVideoXTransformer3DModel": {"spatial", "feed_forward"},
        "FluxTransformer2DModel": {"spatial", "feed_forward", "fused"},
    }
    for name, kinds in expected.items():
        blocks = find_blocks(denoiser(name).build())
        assert {part.kind for part in find_submodules(blocks, Modules())} == kinds, name


@pytest.mark.parametrize("name", PEERS)
def test_pab_agrees_with_diffusers(name):
    """Their patterns take temporal blocks for spatial ones, so both have one interval here."""
    family = denoiser(name)
    model = family.build()
    policy = DiffusionPolicy(
        Modules(feed_forward=False),
        Pyramid(spatial=2, temporal=2, cross=3, after=100, before=800),
    )
    with accelerated(model, policy) as acceleration:
        ours = sample(family, model, STEPS)
        shares = {record.computed for _, record in acceleration.report().steps}
    times = iter(torch.linspace(1000, 0, STEPS + 1).tolist())
    now = [0.0]
    model.register_forward_pre_hook(lambda *_: now.__setitem__(0, next(times)))
    cross = any(getattr(m, "is_cross_attention", False) for m in model.modules())
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=3 if cross else None,
        spatial_attention_timestep_skip_range=(100, 800),
        cross_attention_timestep_skip_range=(100, 800),
        current_timestep_callback=lambda: now[0],
    )
    apply_pyramid_attention_broadcast(model, config)
    assert torch.equal(sample(family, model, STEPS), ours)
    assert min(shares) < 1


def test_pab_broadcasts_the_feed_forward_of_listed_blocks_only():
    family = denoiser("LatteTransformer3DModel")
    model = family.build()
    plain = sample(family, model, 4)
    off = Pyramid(spatial=1, temporal=1, cross=1)
    with accelerated(model, DiffusionPolicy(Modules(), off)):
        assert torch.equal(sample(family, model, 4), plain)
    chosen = Pyramid(
        spatial=1, temporal=1, cross=1, feed_forward=4, blocks=(1,), after=-1, before=1001
    )
    ran: list[str] = []
    for name, module in model.named_modules():
        if name.endswith("ff"):
            module.net[2].register_forward_hook(lambda *_, name=name: ran.append(name))
    with accelerated(model, DiffusionPolicy(Modules(), chosen)):
        sample(family, model, 4)
    counts = {name: ran.count(name) for name in ran}
    assert counts.pop("transformer_blocks.1.ff") == 1
    assert set(counts.values()) == {4}


def test_pyramids_that_make_no_sense_are_refused():
    for wrong in ({"cross": 0}, {"after": 800, "before": 100}):
        with pytest.raises(RecipeError):
            Pyramid(**wrong)
    policy = DiffusionPolicy(Modules(feed_forward=False), Pyramid(blocks=(1, 2)))
    assert DiffusionPolicy.from_yaml(policy.to_yaml()) == policy


def drawn(family, model, site, predictor=None, steps=6, batch=1) -> torch.Tensor:
    policy = DiffusionPolicy(site, Interval(every=3), predictor or Reuse())
    with accelerated(model, policy):
        return sample(family, model, steps, batch=batch)


@pytest.mark.parametrize(
    "name", ["DiTTransformer2DModel", "PixArtTransformer2DModel", "FluxTransformer2DModel"]
)
def test_toca_goes_from_fora_to_the_untouched_model(name):
    family = denoiser(name)
    model = family.build()
    plain = sample(family, model, 6)
    fora = drawn(family, model, Modules())
    assert torch.equal(drawn(family, model, Tokens(share=1.0)), plain)
    assert torch.equal(drawn(family, model, Tokens(share=0.0)), fora)
    between = [
        drawn(family, model, Tokens(share=share, on_attention=1, on_feed_forward=1, slope=0, by=by))
        for share in (0.5, 0.9)
        for by in ("values", "attention", "random")
    ]
    for one in between:
        assert torch.isfinite(one).all()
        assert not torch.equal(one, fora)


def test_rows_computed_alone_are_those_of_the_whole_module():
    """With every token chosen, row by row gives the uncached model in a DiT."""
    family = denoiser("DiTTransformer2DModel")
    model = family.build()
    site = Tokens(share=0.999, on_attention=2, on_feed_forward=2, slope=0)
    assert torch.allclose(drawn(family, model, site), sample(family, model, 6), atol=1e-5)


def test_a_small_share_computes_a_part_of_the_feed_forward_layers():
    family = denoiser("DiTTransformer2DModel")
    model = family.build()
    rows: list[int] = []
    for block in model.transformer_blocks:
        block.ff.net[2].register_forward_hook(lambda m, a, o: rows.append(a[0].shape[1]))
    drawn(family, model, Tokens(share=0.1, slope=0), steps=3)
    assert rows == [16] * 3 + [4] * 6  # 0.1 x 2.5 of 16 tokens


def test_the_halves_of_guidance_choose_the_same_tokens():
    family = denoiser("DiTTransformer2DModel")
    model = family.build()
    latent, _ = family.start(1)
    given: list[torch.Tensor] = []
    policy = DiffusionPolicy(Tokens(share=0.1, slope=0), Interval(every=3), Reuse())
    model.transformer_blocks[0].ff.register_forward_pre_hook(lambda m, a: given.append(a[0]))
    with torch.no_grad(), accelerated(model, policy) as acceleration:
        (session,) = acceleration.sessions.values()
        for sigma in (1.0, 0.9):
            model(torch.cat([latent, latent]), torch.full((2,), 1000 * sigma),
                  class_labels=torch.tensor([1, 2]))  # fmt: skip
        (branch,) = session.branches
        for age in branch.beside["tokens"].ages.values():
            assert torch.equal(age[0], age[1])


def test_tokens_that_wait_grow_older_until_they_are_chosen():
    score = torch.tensor([[3.0, 2.0, 1.0, 0.5]])
    site = Tokens(age=1.0, bonus=0.0)
    fresh = importance(score, torch.zeros(1, 4), site, None)
    waited = importance(score, torch.tensor([[0.0, 0.0, 0.0, 2.0]]), site, None)
    assert int(fresh.argmax()) == 0
    assert int(waited.argmax()) == 3


def test_the_bonus_goes_to_one_token_of_every_cell():
    score = torch.arange(16.0).view(1, 16)
    with_bonus = importance(score, torch.zeros(1, 16), Tokens(age=0, bonus=0.6), (4, 4))
    without = importance(score, torch.zeros(1, 16), Tokens(age=0, bonus=0.0), (4, 4))
    assert (with_bonus - without).nonzero()[:, 1].tolist() == [5, 7, 13, 15]


def test_attention_received_is_the_column_sum_of_the_map():
    q, k = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    maps = [(q[..., h : h + 4] @ k[..., h : h + 4].transpose(1, 2) / 2).softmax(-1) for h in (0, 4)]
    expected = torch.stack(maps).sum(2).mean(0)
    assert torch.allclose(attention_received(q, k, heads=2, chunk=4), expected, atol=1e-6)


def test_the_grid_of_tokens_is_read_off_the_latent():
    assert grid_of(16, torch.empty(1, 4, 8, 8)) == (4, 4)
    assert grid_of(32, torch.empty(1, 4, 2, 8, 8)) == (4, 4)
    assert grid_of(16, torch.empty(1, 16, 4)) == (4, 4)
    assert grid_of(6, torch.empty(1, 4, 8, 8)) is None


def test_toca_forecasts_the_rows_it_does_not_compute():
    family = denoiser("DiTTransformer2DModel")
    model = family.build()
    site = Tokens(share=0.2)
    assert not torch.equal(
        drawn(family, model, site, Taylor(1), 9), drawn(family, model, site, Reuse(), 9)
    )


@pytest.mark.parametrize(
    "wrong", [{"share": 2.0}, {"by": "x"}, {"slope": -1.0}, {"bonus": -0.1}], ids=str
)
def test_selections_that_make_no_sense_are_refused(wrong):
    with pytest.raises(RecipeError):
        Tokens(**wrong)


def test_fewer_layers_run_under_pab():
    family = denoiser("WanTransformer3DModel")
    model = family.build()
    with counted(model) as plain:
        sample(family, model, STEPS)
    policy = DiffusionPolicy(Modules(feed_forward=False), Pyramid())
    with accelerated(model, policy), counted(model) as ran:
        sample(family, model, STEPS)
    assert len(ran) < len(plain)
