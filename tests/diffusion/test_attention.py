"""Attention maps are read without touching the output, and tell what blocks look at."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from denoisers import denoiser, sample

from recollect.diffusion import DiffusionPolicy, accelerate, accelerated
from recollect.diffusion.attention.focal import FocalGuidance, _Loans, blended
from recollect.diffusion.attention.maps import (
    AttentionMap,
    AttentionMaps,
    over_modules,
    record_maps,
    sampled,
)
from recollect.diffusion.attention.profiling import (
    BlockPreferences,
    listed_schedule,
    moving,
    preference,
    profile_blocks,
)
from recollect.diffusion.attention.responses import LayerRanks, moran, rank_layers
from recollect.diffusion.host.attention import Attending
from recollect.diffusion.schedules import Interval
from recollect.diffusion.sites import Blocks, Span
from recollect.errors import HostError, RecipeError

WAN = denoiser("WanTransformer3DModel")
JOINT = ("FluxTransformer2DModel", "SD3Transformer2DModel", "HunyuanVideoTransformer3DModel")
TEXT = 6


def attending(queries: int = 5, keys: int = 7, heads: int = 4, kept: int = 2, **changed):
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(2, heads, queries, 8, generator=draw)
    key, value = torch.randn(2, 2, kept, keys, 8, generator=draw)
    given = {"mask": None, "causal": False, "scale": 0.3, "visual": slice(0, queries)}
    given |= {"visual_keys": None, "text_keys": slice(0, keys)} | changed
    return Attending(query, key, value, **given)


@pytest.mark.parametrize("masked", ["no", "bool", "bias", "causal"])
def test_probabilities_times_values_are_what_torch_computes(masked):
    draw = torch.Generator().manual_seed(1)
    bias = torch.randn(2, 1, 5, 7, generator=draw)
    mask = {"bool": bias > -0.5, "bias": bias}.get(masked)
    call = attending(mask=mask, causal=masked == "causal")
    rows = torch.tensor([0, 3, 4])
    values = call.value.repeat_interleave(2, 1)
    ours = torch.stack(
        [each @ values[:, head] for head, each in enumerate(call.probabilities(rows))], 1
    )
    theirs = torch.nn.functional.scaled_dot_product_attention(
        call.query,
        call.key,
        call.value,
        attn_mask=mask,
        is_causal=call.causal,
        scale=0.3,
        enable_gqa=True,
    )
    assert torch.allclose(ours, theirs[:, :, rows], atol=1e-5)


def test_maps_add_up_over_steps_and_leave_the_output_and_the_model_alone():
    model = WAN.build()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    plain = sample(WAN, model, 3)
    maps = AttentionMaps(rows=5)
    policy = DiffusionPolicy(gate=Interval(every=1), companions=(maps,))
    with accelerated(model, policy):
        assert torch.equal(sample(WAN, model, 3), plain)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    found = maps.of(model)
    assert list(found) == [f"blocks.{n}.attn{k}" for n in range(3) for k in (1, 2)]
    for name, one in found.items():
        assert one.count == 3
        assert one.total.shape == (1, 5, 32 if name.endswith("1") else TEXT)
        assert torch.allclose(one.mean.sum(-1), torch.ones(1, 5), atol=1e-5)
    maps.clear()
    with pytest.raises(HostError, match="no attention of WanTransformer3DModel was heard"):
        maps.of(model)


@pytest.mark.parametrize("name", JOINT)
def test_text_and_image_are_told_apart_where_their_tokens_are_joined(name):
    family = denoiser(name)
    model = family.build()
    visual, text = (
        record_maps(model, lambda: sample(family, model, 1), AttentionMaps(rows=4, keys=keys))
        for keys in ("visual", "text")
    )
    assert visual.keys() == text.keys()
    for module, one in visual.items():
        both = one.mean.sum(-1) + text[module].mean.sum(-1)
        assert torch.allclose(both, torch.ones_like(both), atol=1e-5)
        assert text[module].mean.shape[-1] == TEXT


def test_the_text_keys_are_those_that_follow_the_text():
    family = denoiser("FluxTransformer2DModel")
    model = family.build()
    latent, extra = family.start(1)
    moved = dict(extra, encoder_hidden_states=extra["encoder_hidden_states"].clone())
    moved["encoder_hidden_states"][:, 2] += 5
    ones = [
        record_maps(
            model, lambda e=e: family.call(model, latent, 0.5, e), AttentionMaps(keys="text")
        )["transformer_blocks.0.attn"].mean
        for e in (extra, moved)
    ]
    moved = (ones[1] / ones[0] - 1).abs().mean(1)[0]
    assert int(moved.argmax()) == 2
    assert float(moved[2]) > 3 * float(moved.sort().values[-2])


def test_as_many_text_tokens_as_visual_ones_are_not_guessed_at():
    family = denoiser("FluxTransformer2DModel")
    model = family.build()
    latent, extra = family.start(1)
    text = latent.shape[1]
    extra |= {"encoder_hidden_states": torch.randn(1, text, 32), "txt_ids": torch.zeros(text, 3)}

    def run():
        family.call(model, latent, 0.5, extra)

    with pytest.raises(HostError, match="as many text tokens"):
        record_maps(model, run, AttentionMaps(keys="text"))
    with (
        pytest.raises(HostError, match="as many text tokens"),
        accelerated(model, "focal-guidance", sources=(0,), weak=(1,)),
    ):
        run()
    assert len(record_maps(model, run, AttentionMaps(rows=2))) == 4


def test_what_keys_receive_is_the_mean_over_queries():
    model = WAN.build()

    def record(**settings):
        maps = AttentionMaps(rows=None, keys="visual", **settings)
        return record_maps(model, lambda: sample(WAN, model, 2), maps)["blocks.1.attn1"].mean

    assert torch.allclose(record().mean(1), record(received=True), atol=1e-6)


def test_maps_of_modules_that_see_the_same_are_averaged():
    model = WAN.build()
    maps = record_maps(model, lambda: sample(WAN, model, 2), AttentionMaps(rows=None, keys="text"))
    mean = over_modules(maps)
    assert mean.shape == (1, 32, TEXT)
    assert torch.allclose(mean, sum(one.mean for one in maps.values()) / 3, atol=1e-6)
    every = record_maps(model, lambda: sample(WAN, model, 1), AttentionMaps(rows=4))
    with pytest.raises(RecipeError, match="different queries or keys"):
        over_modules(every)


def test_batches_of_other_sizes_are_kept_apart():
    model = WAN.build()
    maps = AttentionMaps(rows=3)
    with accelerated(model, DiffusionPolicy(gate=Interval(every=1), companions=(maps,))):
        sample(WAN, model, 1, batch=1)
        sample(WAN, model, 1, batch=2)
    assert sorted(len(one.total) for _, _, one in maps.branches(model)) == [1] * 6 + [2] * 6
    with pytest.raises(RecipeError, match="clear"):
        maps.of(model)


def test_rows_are_drawn_once_and_in_order():
    rows = sampled(slice(10, 100), 8, seed=0)
    assert torch.equal(rows, sampled(slice(10, 100), 8, seed=0))
    assert torch.equal(rows, rows.sort().values)
    assert len(rows.unique()) == 8
    assert int(rows.min()) >= 10
    assert int(rows.max()) < 100
    assert sampled(slice(2, 5), None, 0).tolist() == [2, 3, 4]


# -- ProfilingDiT ---------------------------------------------------------------------------------


def test_preference_is_mass_over_area():
    mass = torch.tensor([[0.4, 0.4, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]])
    received = AttentionMap(torch.empty(0), 3 * mass, 3)
    foreground = torch.tensor([[True, False, False, False]])
    assert preference(received, foreground).tolist() == pytest.approx([1.6, 1.0])
    everything = torch.ones(2, 4, dtype=torch.bool)
    assert preference(received, everything).tolist() == pytest.approx([1, 1])
    with pytest.raises(HostError, match="3 tokens"):
        preference(received, torch.ones(1, 3, dtype=torch.bool))


def test_what_moves_is_foreground():
    latent = torch.randn(2, 3, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    latent = latent.repeat(1, 1, 5, 1, 1)
    wanted = torch.zeros(2, 5, 2, 3, dtype=torch.bool)
    for frame in range(4):
        latent[:, :, frame, 2 * (frame % 2) : 2 * (frame % 2) + 2, 2:4] += 4
        wanted[:, frame, frame % 2, 1] = True
    latent[:, :, 4, :, :] = latent[:, :, 4].clone()
    assert torch.equal(moving(latent, (1, 2, 2)), wanted.flatten(1))


def test_a_foreground_of_everything_gives_no_preference():
    model = WAN.build()
    found = profile_blocks(
        model, lambda n: sample(WAN, model, 2, seed=n), foreground=torch.ones(1, 32)
    )
    assert found.scores == pytest.approx([1, 1, 1])


def test_profiles_are_saved_used_and_refused_for_another_model(tmp_path):
    model = WAN.build()
    path = tmp_path / "blocks.safetensors"
    found = profile_blocks(model, lambda n: sample(WAN, model, 2, batch=2, seed=n), batches=2)
    assert len(found.scores) == 3
    site = found.save(path, count=2)
    chosen = found.background(count=2)
    gate = Interval(every=2)
    with accelerated(model, "profilingdit", profile=str(path), every=2, warmup=1):
        by_file = sample(WAN, model, 5)
    with accelerated(model, DiffusionPolicy(Blocks(chosen), gate)):
        assert torch.equal(sample(WAN, model, 5), by_file)
    line = DiffusionPolicy(site, gate).to_yaml()
    assert DiffusionPolicy.from_yaml(line).site == site
    with torch.no_grad():
        model.proj_out.weight += 1
    with pytest.raises(HostError, match="another model"):
        accelerate(model, "profilingdit", profile=str(path))


def test_no_blocks_is_uncached_and_all_blocks_is_the_whole_stack():
    model = WAN.build()
    plain = sample(WAN, model, 4)
    gate = Interval(every=2)
    with accelerated(model, DiffusionPolicy(Blocks(()), gate)):
        assert torch.equal(sample(WAN, model, 4), plain)
    with accelerated(model, DiffusionPolicy(Span(), gate)):
        stack = sample(WAN, model, 4)
    with accelerated(model, DiffusionPolicy(Blocks((0, 1, 2)), gate)):
        assert torch.equal(sample(WAN, model, 4), stack)
    assert not torch.equal(stack, plain)
    with pytest.raises(RecipeError, match="no blocks are chosen"):
        accelerate(model, "profilingdit")
    with pytest.raises(RecipeError, match="not both"):
        Blocks((1,), profile="x")


def test_a_run_of_blocks_that_starts_the_model_keeps_its_input():
    """In the reference a run that starts at block 0 never records it."""
    model = WAN.build()
    with accelerated(model, DiffusionPolicy(Blocks((0, 2)), Interval(every=2))) as acceleration:
        (session,) = acceleration.sessions.values()
        sample(WAN, model, 3)
        assert session.spans == ((0, 1), (2, 3))
        (branch,) = session.branches
        assert set(branch.histories) == {"blocks 0-0", "blocks 2-2"}


def test_full_steps_are_the_first_six_and_every_sixth():
    model = WAN.build()
    with accelerated(model, "profilingdit", chosen=(1,)) as acceleration:
        sample(WAN, model, 20)
        (session,) = acceleration.sessions.values()
        computed = [record.index for record in session.records if record.computed]
    assert computed == [*range(6), 6, 12, 18]
    listed = [i for i, full in enumerate(listed_schedule().steps) if full]
    assert listed == [*range(6), 6, 18, 26, 32, 38, 42, 46, 48]


def test_blocks_are_chosen_by_cut_or_count():
    found = BlockPreferences(torch.nn.Identity(), (0.9, 1.4, 0.7, 1.0))
    assert found.background() == (0, 2)
    assert found.background(cut=0.8) == (2,)
    assert found.background(count=3) == (0, 2, 3)
    with pytest.raises(RecipeError, match="count is 0 to 4"):
        found.background(count=5)


# -- Focal Guidance -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [slice(0, 7), slice(0, 3), slice(4, 7)])
def test_blended_rows_sum_to_one_and_mix_the_text(text):
    draw = torch.Generator().manual_seed(0)
    probabilities = torch.rand(2, 5, 7, generator=draw).softmax(-1)
    source = torch.rand(2, 5, 7, generator=draw).softmax(-1)[..., text]
    if text == slice(0, 7):
        source = source / source.sum(-1, keepdim=True)
    mixed = blended(probabilities, source, text, 0.25)
    assert torch.allclose(mixed.sum(-1), torch.ones(2, 5), atol=1e-6)
    wanted = 0.75 * probabilities[..., text] + 0.25 * source
    assert torch.allclose(mixed[..., text], wanted, atol=1e-6)
    assert torch.allclose(blended(probabilities, source, text, 0.0), probabilities, atol=1e-6)


@pytest.mark.parametrize("name", ["WanTransformer3DModel", *JOINT])
def test_no_weight_changes_nothing_and_some_weight_does(name):
    family = denoiser(name)
    model = family.build()
    plain = sample(family, model, 2)
    with accelerated(model, "focal-guidance", blend=0.0, sources=(0,), weak=(1,)):
        assert torch.equal(sample(family, model, 2), plain)
    with accelerated(model, "focal-guidance", blend=0.5, sources=(0,), weak=(1,)):
        assert not torch.allclose(sample(family, model, 2), plain, atol=1e-5)
    assert torch.equal(sample(family, model, 2), plain)


def test_a_layer_attends_with_the_blended_map():
    session = SimpleNamespace(evaluation=type("Call", (), {})())
    own, lent = attending(heads=1, kept=1), attending(heads=1, kept=1, scale=0.9)
    rows = torch.arange(5)
    loans = _Loans(0.25, session)
    assert loans.borrow("before any source", own) is None
    loans.lend("source", lent)
    mixed = 0.75 * own.mean(rows) + 0.25 * lent.mean(rows)
    assert torch.allclose(loans.borrow("weak", own), (mixed @ own.value[:, 0])[:, None], atol=1e-6)
    loans.lend("another source", own)
    mean = (own.mean(rows) + lent.mean(rows)) / 2
    mixed = 0.75 * own.mean(rows) + 0.25 * mean
    assert torch.allclose(loans.borrow("weak", own), (mixed @ own.value[:, 0])[:, None], atol=1e-6)


def test_only_the_touched_layers_leave_the_fused_kernel():
    model = WAN.build()
    names = {
        id(module.norm_q): name
        for name, module in model.named_modules()
        if "attn" in name.split(".")[-1] and hasattr(module, "norm_q")
    }
    running: list[str] = []
    for module in model.modules():
        if id(module) in names:
            module.register_forward_hook(
                lambda m, *_: running.append(names[id(m)]),
            )
    fused: list[str] = []
    counting = _Counting(lambda: fused.append(running[-1]))
    with accelerated(model, "focal-guidance", sources=(0,), weak=(2,)), counting:
        sample(WAN, model, 1)
    assert fused == [f"blocks.{n}.attn{k}" for n in range(3) for k in (1, 2)][:-1]


class _Counting(torch.overrides.TorchFunctionMode):
    def __init__(self, note):
        super().__init__()
        self.note = note

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.note()
        return func(*args, **(kwargs or {}))


def test_samples_that_are_computed_alone_borrow_their_own_map():
    model = WAN.build()
    policy = {"sources": (0,), "weak": (1,), "blend": 0.7}
    latent, extra = WAN.start(2)
    with accelerated(model, "focal-guidance", **policy):
        together = WAN.call(model, latent, 0.5, extra)
    for row in range(2):
        alone = {name: value[row : row + 1] for name, value in extra.items()}
        with accelerated(model, "focal-guidance", **policy):
            one = WAN.call(model, latent[row : row + 1], 0.5, alone)
        assert torch.allclose(one, together[row : row + 1], atol=1e-5)


def test_weak_blocks_come_after_a_source_and_exist():
    model = WAN.build()
    for sources, weak, said in (
        ((1,), (0,), "after a source"),
        ((1,), (1,), "after a source"),
        ((), (1,), "sources"),
    ):
        with pytest.raises(RecipeError, match=said):
            accelerate(model, "focal-guidance", sources=sources, weak=weak)
    with pytest.raises(HostError, match="blocks 0 to 2"):
        accelerate(model, "focal-guidance", sources=(0,), weak=(7,))
    with pytest.raises(RecipeError, match="between 0 and 1"):
        FocalGuidance(blend=1.5)


def test_morans_i_tells_patches_from_noise():
    smooth = torch.zeros(8, 8)
    smooth[2:6, 2:6] = 1
    checks = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    noise = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    found = moran(torch.stack([smooth, checks.float(), noise, torch.ones(8, 8)]))
    assert float(found[0]) > 0.5
    assert float(found[1]) == pytest.approx(-1, abs=0.02)
    assert float(found[2].abs()) < 0.3
    assert float(found[3]) == 0


def test_ranks_choose_layers_and_their_file_is_refused_for_another_model(tmp_path):
    model = WAN.build()
    ranks = rank_layers(model, lambda: sample(WAN, model, 1), (2, 4, 4))
    assert len(ranks.coherence) == len(ranks.contrast) == 3
    known = LayerRanks(model, (0.8, 0.1, 0.5), (1.0, 1.0, 1.0))
    assert known.choose() == FocalGuidance(sources=(0,), weak=(1,))
    path = tmp_path / "layers.safetensors"
    companion = known.save(path, sources=1, weak=2)
    plain = sample(WAN, model, 1)
    with accelerated(model, "focal-guidance", layers=companion.layers):
        by_file = sample(WAN, model, 1)
    with accelerated(model, "focal-guidance", sources=(0,), weak=(1, 2)):
        assert torch.equal(sample(WAN, model, 1), by_file)
    assert not torch.equal(by_file, plain)
    with pytest.raises(RecipeError, match="only 0 blocks"):
        LayerRanks(model, (0.1, 0.2, 0.9), (1.0, 1.0, 1.0)).choose()
    with pytest.raises(HostError, match="does not hold"):
        rank_layers(model, lambda: sample(WAN, model, 1), (2, 4, 5))
    with torch.no_grad():
        model.proj_out.weight += 1
    with pytest.raises(HostError, match="another model"):
        accelerate(model, "focal-guidance", layers=companion.layers)
