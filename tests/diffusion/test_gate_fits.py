"""Constants of gates are what was recorded; calibrations are commands, too."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from denoisers import denoiser, sample

from recollect.cli import main
from recollect.diffusion import accelerate, accelerated
from recollect.diffusion.engine.clock import Step
from recollect.diffusion.learned import gate_fits
from recollect.diffusion.policy import policy
from recollect.diffusion.profiles import Profile
from recollect.diffusion.sites import Span
from recollect.errors import HostError, RecipeError
from recollect.zoo import images

DIT = denoiser("DiTTransformer2DModel")


def test_ratios_are_of_magnitudes_averaged_over_tokens():
    steps = tuple(Step(i, 1 - i / 3, 1 - i / 3) for i in range(3))
    first = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    values = ((first,), (first * torch.tensor([[[2.0], [4.0]]]),), (first,))
    found = gate_fits.magnitude_ratios({"blocks 0-2": Profile(Span(), steps, values)})
    assert found == pytest.approx((1.0, 3.0, 0.375))


def test_a_polynomial_is_found_again_and_held_within_what_was_seen():
    x = np.linspace(0.1, 0.6, 30)
    fit = gate_fits.fit_polynomial(x, 3 * x**2 - x + 0.5, degree=2)
    assert fit.polynomial == pytest.approx((3, -1, 0.5))
    assert fit.calibrated == pytest.approx((0.1, 0.6))
    assert fit.explained == pytest.approx(1)
    with pytest.raises(RecipeError, match="more than 2 different"):
        gate_fits.fit_polynomial([1, 1, 2], [1, 1, 2], degree=2)


def test_the_range_of_a_fit_holds_for_its_gate():
    gate = policy("teacache", polynomial=(1.0, 0.0), calibrated=(0.2, 0.3), threshold=9.0).gate
    from recollect.diffusion.gates import Ledger

    for now, drift in ((1.0, 0.2), (1.25, 0.25), (3.0, 0.3)):
        ledger = Ledger.of(1)
        gate.judge(Step(0, 1, 1), ledger, torch.ones(1, 4))
        gate.judge(Step(1, 0.9, 0.9), ledger, torch.full((1, 4), now))
        assert float(ledger.drift) == pytest.approx(drift)


@pytest.mark.parametrize("recipe", ["magcache", "teacache"])
def test_a_calibrated_recipe_runs_in_one_call_on_its_model_only(recipe):
    model = DIT.build()

    def run() -> None:
        sample(DIT, model, 6, batch=2)

    made = getattr(gate_fits, recipe)(
        model, run, threshold=0.5, **({"degree": 2} if recipe == "teacache" else {})
    )
    assert policy(made.to_yaml()) == made
    with accelerated(model, made.to_yaml()) as acceleration:
        sample(DIT, model, 6)
        assert 0 < acceleration.report().computed < 6
    other = DIT.build()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(HostError, match="another model"):
        accelerate(other, made)


def test_pairs_of_changes_are_one_for_every_step_and_sample():
    model = DIT.build()
    x, y = gate_fits.input_and_output_changes(model, lambda: sample(DIT, model, 5, batch=3))
    assert len(x) == len(y) == 4 * 3
    assert min(x) > 0
    assert min(y) > 0


@pytest.mark.parametrize("method", ["harmonica", "bac", "ertacache", "magcache", "teacache"])
def test_a_command_writes_what_the_recipe_takes(method, tmp_path):
    suffix = "yaml" if method in ("magcache", "teacache") else "safetensors"
    path = tmp_path / f"made.{suffix}"
    arguments = ["calibrate-diffusion", method, "--model", "tiny-dit", "--out", str(path),
                 "--steps", "4", "--samples", "2", "--trajectories", "1", "--updates", "2",
                 "--degree", "1", "--threshold", "0.3", "--json"]  # fmt: skip
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    model = images.load("tiny-dit")
    spec = (str(path), {}) if suffix == "yaml" else (method, {"artefact": str(path)})
    assert found["method"] == method
    assert str(path) in found["use"]
    labels = torch.tensor([1, 2])
    with accelerated(model, spec[0], **spec[1]) as acceleration:
        images.sample(model, labels, 4)
        assert 0 < acceleration.report().computed <= 8


def test_a_command_says_what_is_wrong_in_one_line(tmp_path):
    path = str(tmp_path / "x")
    for arguments in (
        ["harmonica", "--model", "tiny-dot", "--out", path],
        ["ertacache", "--model", "tiny-dit", "--out", path, "--solver", "dpm", "--adjust"],
        ["harmonica", "--model", "tiny-dit", "--out", path, "--share", "2"],
    ):
        done = CliRunner().invoke(main, ["calibrate-diffusion", *arguments])
        assert done.exit_code == 2
        assert len(done.stderr.strip().splitlines()) == 1
