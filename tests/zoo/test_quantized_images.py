"""On trained models: what corrections win back of what quantization and caching lose together."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recollect.diffusion import DiffusionPolicy, accelerated
from recollect.diffusion.predictors import Reuse
from recollect.diffusion.profiles import record_each
from recollect.diffusion.quantized import cachequant
from recollect.diffusion.quantized.calibrate import calibrate
from recollect.diffusion.quantized.pool import record_calls
from recollect.diffusion.quantized.qc import variance_correction
from recollect.diffusion.quantized.temporal import calibrate_features
from recollect.diffusion.schedules import Interval
from recollect.diffusion.sites import Branch, Modules
from recollect.evaluate.pictures import psnr
from recollect.zoo import images

STEPS, EVERY, SEEDS = 12, 3, (2000, 3000)


def draw(model, seed, count=8):
    return images.sample(model, torch.arange(count) % 4, STEPS, seed=seed)


class Trained:
    """A model with what several tests want of it, made once."""

    def __init__(self, name: str, folder: Path) -> None:
        self.model, self.folder, self._integers = images.load(name), folder, {}
        self.plain = {seed: draw(self.model, seed) for seed in SEEDS}
        self.pool = record_calls(self.model, self.run)

    def run(self):
        """Draw the pictures to calibrate on."""
        return draw(self.model, 9000, count=12)

    def integers(self, bits: int):
        if bits not in self._integers:
            path = str(self.folder / f"integers-{bits}")
            self._integers[bits] = calibrate(path, self.model, self.pool, bits)
        return self._integers[bits]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of the zoo by its name."""
    return functools.cache(lambda name: Trained(name, tmp_path_factory.mktemp(name)))


def decibels(subject: Trained, policies) -> list[dict[str, float]]:
    """Of every policy, for every set of seeds."""
    model, found = subject.model, []
    for seed, plain in subject.plain.items():
        row = {}
        for name, policy in policies.items():
            with accelerated(model, policy):
                row[name] = float(psnr(draw(model, seed), plain).mean())
        found.append(row)
    print(*found, sep="\n")
    return found


def alone(*companions):
    return DiffusionPolicy(gate=Interval(every=1), companions=companions)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "site", "bits"),
    [("tiny-unet", Branch(), 8), ("tiny-unet", Branch(), 4), ("tiny-dit", Modules(), 4)],
)
def test_cachequant_wins_back_a_part_of_what_is_lost(tmp_path, trained, name, site, bits):
    subject = trained(name)
    integers = subject.integers(bits)
    joint = cachequant.calibrate(tmp_path, subject.model, subject.run, integers, EVERY, site)
    half = replace(joint, companions=(integers,))
    scores = decibels(
        subject,
        {
            "uniform": DiffusionPolicy(site, Interval(every=EVERY), companions=(integers,)),
            "groups": replace(half, corrector=None),
            "dec-cache": half,
            "dec-quant": joint,
        },
    )
    for row in scores:
        assert row["dec-cache"] > max(row["uniform"], row["groups"])
        # With eight bits there is little left to win, and 0.2 dB are lost on the U-Net.
        assert row["dec-quant"] >= row["dec-cache"] - (0.3 if bits == 8 else 0)


@pytest.mark.slow
def test_restored_variance_brings_a_quantized_cache_nearer(tmp_path, trained):
    subject = trained("tiny-dit")
    model, integers = subject.model, subject.integers(8)
    truths = record_each(model, subject.run, Modules())
    guesses = record_each(model, subject.run, Modules(), (integers,))
    naive = DiffusionPolicy(Modules(), Interval(every=EVERY), companions=(integers,))
    with accelerated(model, alone(integers)):
        corrector = variance_correction(
            str(tmp_path / "variance"),
            model,
            guesses,
            truths,
            Reuse(),
            tuple(range(0, STEPS, EVERY)),
        )
    corrected = replace(naive, corrector=corrector)
    for row in decibels(
        subject, {"naive": naive, "corrected": corrected, "quantized": alone(integers)}
    ):
        assert row["naive"] < row["corrected"] < row["quantized"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-unet", "tiny-dit"])
def test_temporal_features_bring_four_bits_nearer(tmp_path, trained, name):
    subject = trained(name)
    integers = subject.integers(4)
    path = str(tmp_path / "features")
    table = calibrate_features(path, subject.model, subject.pool, integers)
    for row in decibels(subject, {"quantized": alone(integers), "table": alone(integers, table)}):
        assert row["table"] > row["quantized"]
