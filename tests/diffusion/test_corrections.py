"""Corrections are least squares per channel, belong to one model and run where they were fitted."""

from __future__ import annotations

import pytest
import torch
from denoisers import denoiser, sample

from recollect.diffusion import DiffusionPolicy, accelerate, accelerated
from recollect.diffusion.artefacts import Artefact, fingerprint
from recollect.diffusion.calibration import affine_correction, fit_line, forecasts
from recollect.diffusion.planner import record
from recollect.diffusion.predictors import Reuse, Taylor
from recollect.diffusion.profiles import record_each
from recollect.diffusion.schedules import Mask
from recollect.diffusion.sites import Modules, Velocity
from recollect.errors import HostError, RecipeError, StoreError

FLUX = denoiser("FluxTransformer2DModel")


def test_a_line_through_the_truth_is_found():
    guess = torch.randn(5, 3, 4)
    scale, shift = torch.tensor([2.0, 1.0, -1.0]), torch.tensor([3.0, 0.0, 0.5])
    line, explained = fit_line(guess, guess * scale[:, None] + shift[:, None], axis=1)
    torch.testing.assert_close(line, torch.stack([scale, shift]))
    assert explained == pytest.approx(1)


def test_a_right_guess_is_left_alone():
    guess = torch.randn(5, 3, 4)
    line, explained = fit_line(guess, guess, axis=-1)
    torch.testing.assert_close(line, torch.tensor([[1.0] * 4, [0.0] * 4]))
    assert explained == 0


def test_a_fit_is_never_worse_than_none():
    guess, truth = torch.randn(50, 3), torch.randn(50, 3)
    (scale, shift), explained = fit_line(guess, truth, axis=1)
    assert (guess * scale + shift - truth).square().mean() < (guess - truth).square().mean()
    assert 0 < explained < 1


def test_forecasts_continue_what_was_computed():
    model, computed = FLUX.build(), (0, 1, 4)
    recorded = record(model, lambda: sample(FLUX, model, 5))
    pairs = list(forecasts(recorded, Taylor(1), computed))
    assert [step.index for step, _, _ in pairs] == [2, 3]
    (_, guess, truth), _ = pairs
    older, newer = (recorded.values[i][0] for i in (0, 1))
    torch.testing.assert_close(guess[0], newer + (newer - older))
    assert torch.equal(truth[0], recorded.values[2][0])


def test_a_corrected_run_is_nearer_to_the_uncached_one(tmp_path):
    model, computed = FLUX.build(), (0, 3)
    plain = sample(FLUX, model, 5)
    profiles = record_each(model, lambda: sample(FLUX, model, 5))
    gate = Mask(steps=tuple(i in computed for i in range(5)))
    path = str(tmp_path / "correction.safetensors")
    corrector = affine_correction(path, model, profiles, Reuse(), computed, axis=-1)
    errors = []
    for chosen in (None, corrector):
        with accelerated(model, DiffusionPolicy(Velocity(), gate, Reuse(), chosen)):
            errors.append(float((sample(FLUX, model, 5) - plain).square().mean()))
    assert errors[1] < 0.8 * errors[0]


def test_modules_are_recorded_by_name():
    model = FLUX.build()
    profiles = record_each(model, lambda: sample(FLUX, model, 3), Modules(feed_forward=False))
    assert any("attn" in name for name in profiles)
    assert all(len(profile.values) == 3 for profile in profiles.values())


def test_a_correction_of_another_model_or_length_is_refused(tmp_path):
    model = FLUX.build()
    path = str(tmp_path / "correction.safetensors")
    profiles = record_each(model, lambda: sample(FLUX, model, 4))
    corrector = affine_correction(path, model, profiles, Reuse(), (0, 2), axis=-1)
    policy = DiffusionPolicy(Velocity(), Mask(steps=(True, False, True)), Reuse(), corrector)
    other = FLUX.build()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(HostError, match="another model"):
        accelerate(other, policy)
    assert not hasattr(other, "_diffusers_hook")
    with pytest.raises(RecipeError, match="first step is computed"):
        list(forecasts(profiles["output"], Reuse(), (1, 2)))


def test_artefacts_are_read_back_or_refused(tmp_path):
    path, model = tmp_path / "a.safetensors", FLUX.build()
    made = Artefact("kind", fingerprint(model), {"steps": 3}, {"x": torch.arange(3)})
    made.save(path)
    read = Artefact.load(path, "kind")
    assert read.settings == made.settings
    assert torch.equal(read.tensors["x"], torch.arange(3))
    read.check(model)
    Artefact("kind", "m").save(path)
    assert Artefact.load(path, "kind").tensors == {}
    with pytest.raises(StoreError, match="holds 'kind'"):
        Artefact.load(path, "other")
    path.write_bytes(b"nonsense")
    with pytest.raises(StoreError, match="cannot read"):
        Artefact.load(path, "kind")
