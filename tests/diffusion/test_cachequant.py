"""Groups of steps are the cheapest ones, and both corrections bring the result nearer."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from denoisers import denoiser, sample

from recollect.diffusion import DiffusionPolicy, accelerate, accelerated
from recollect.diffusion.engine.clock import Step
from recollect.diffusion.planner import groups, partition
from recollect.diffusion.profiles import Profile
from recollect.diffusion.quantized import cachequant
from recollect.diffusion.quantized.calibrate import calibrate
from recollect.diffusion.quantized.denoiser import quantized
from recollect.diffusion.quantized.pool import record_calls
from recollect.diffusion.schedules import Interval
from recollect.diffusion.sites import Branch, Hidden, Modules, Velocity
from recollect.errors import HostError, RecipeError

UNET = denoiser("UNet2DConditionModel")
DIT = denoiser("DiTTransformer2DModel")


def quantizer(family, model, folder, bits=8):
    pool = record_calls(model, lambda: sample(family, model, 6, batch=2))
    return calibrate(str(folder / "integers"), model, pool, bits)


@pytest.mark.parametrize("every", [1, 2, 3, 5])
@pytest.mark.parametrize("total", [5, 9, 12])
def test_a_partition_is_the_best_of_all(total, every):
    generator = torch.Generator().manual_seed(total * every)
    costs = [
        [0.0, *torch.rand(total - i - 1, generator=generator).cumsum(0).tolist()]
        for i in range(total)
    ]
    count = -(-total // every)
    shortest, longest = min(-(-every // 2), total // count), 2 * every
    found = {}
    for cuts in itertools.combinations(range(1, total), count - 1):
        edges = (0, *cuts, total)
        lengths = [b - a for a, b in itertools.pairwise(edges)]
        if all(shortest <= length <= longest for length in lengths):
            found[edges[:-1]] = sum(costs[a][n - 1] for a, n in zip(edges, lengths, strict=False))
    starts = partition(costs, every)
    assert starts in found
    assert found[starts] == pytest.approx(min(found.values()))


def test_groups_begin_where_the_feature_jumps():
    values = [torch.full((1, 2), float(v)) for v in (0, 0, 5, 5, 9, 9)]
    steps = tuple(Step(i, 1 - i / 6, 1 - i / 6) for i in range(6))
    profile = Profile(Velocity(), steps, tuple((v,) for v in values))
    assert groups([profile], 2) == (0, 2, 4)
    assert groups([profile, profile], 2) == (0, 2, 4)
    assert groups([profile], 1) == (0, 1, 2, 3, 4, 5)
    with pytest.raises(RecipeError, match="every is 1 or more"):
        groups([profile], 0)
    with pytest.raises(RecipeError, match="nothing was recorded"):
        groups([], 2)


@pytest.mark.parametrize(
    ("family", "site", "readers"),
    [
        (UNET, Branch(), {"up_blocks.1.resnets.0.conv1", "up_blocks.1.resnets.0.conv_shortcut"}),
        (DIT, Hidden(), {"proj_out_2"}),
        (DIT, Modules(), set()),
    ],
)
def test_both_corrections_bring_the_calibration_samples_nearer(tmp_path, family, site, readers):
    model = family.build()
    plain = sample(family, model, 6, batch=2)
    run = lambda: sample(family, model, 6, batch=2)  # noqa: E731
    integers = quantizer(family, model, tmp_path)
    joint = cachequant.calibrate(tmp_path, model, run, integers, every=3, site=site)
    if readers:
        consumers = joint.companions[0]
        half = replace(joint, companions=(replace(consumers, consumers=""),))
    else:
        half = joint
    errors = []
    for policy in (replace(half, corrector=None), half, joint):
        with accelerated(model, policy) as done:
            coded = run()
            assert done.report().computed == 2
            corrected = {n for n, layer in quantized(model).layers.items() if layer.lines}
        errors.append(float((coded - plain).square().mean()))
    assert corrected == readers
    assert errors[1] < errors[0]
    assert errors[2] < errors[0]
    with accelerated(model, DiffusionPolicy.from_yaml(joint.to_yaml())):
        assert torch.equal(run(), coded)
    assert torch.equal(run(), plain)


def test_the_cached_channels_alone_are_corrected(tmp_path):
    model = UNET.build()
    integers = quantizer(UNET, model, tmp_path)
    with accelerated(model, DiffusionPolicy(companions=(integers,))):
        layer = quantized(model).layers["up_blocks.1.resnets.0.conv1"]
        x = torch.randn(1, layer.module.in_channels, 4, 4)
        cached = x.clone()
        cached[:, 16:] = 0
        whole, part = (layer.run(v, 500.0, None) for v in (x, cached))
        outputs = layer.module.out_channels
        bias = layer.module.bias.view(-1, 1, 1)
        layer.channels = 16
        layer.lines[3] = torch.stack([torch.full((outputs,), 2.0), torch.full((outputs,), 0.5)])
        torch.testing.assert_close(layer.run(x, 500.0, 3), whole + (part - bias) + 0.5)
        assert torch.equal(layer.run(x, 500.0, None), whole)


def test_corrections_are_of_one_quantized_model(tmp_path):
    model = DIT.build()
    run = lambda: sample(DIT, model, 4)  # noqa: E731
    integers = quantizer(DIT, model, tmp_path)
    joint = cachequant.calibrate(tmp_path, model, run, integers, every=2, site=Hidden())
    with pytest.raises(HostError, match="another model"):
        accelerate(model, replace(joint, companions=()))
    other = tmp_path / "other"
    other.mkdir()
    four = quantizer(DIT, model, other, bits=4)
    mixed = replace(joint.companions[0], weights=four.weights)
    with pytest.raises(HostError, match="another model"):
        accelerate(model, replace(joint, companions=(mixed,)))
    every = replace(joint, gate=Interval(every=2))
    with pytest.raises(HostError, match="another schedule"):
        accelerate(model, every)
    with pytest.raises(RecipeError, match="fixed schedule"):
        cachequant.correct_consumers(str(tmp_path / "c"), model, run, every, {})
    assert torch.equal(run(), run())
    assert not any(p.numel() == 0 for p in model.parameters())
