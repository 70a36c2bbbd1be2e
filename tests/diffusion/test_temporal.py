"""Temporal features of a quantized denoiser are had the better way, and travel in a file."""

from __future__ import annotations

import pytest
import torch
from denoisers import denoiser, sample

from recollect.diffusion import DiffusionPolicy, accelerate, accelerated
from recollect.diffusion.artefacts import Artefact
from recollect.diffusion.quantized.calibrate import calibrate
from recollect.diffusion.quantized.pool import record_calls
from recollect.diffusion.quantized.temporal import calibrate_features
from recollect.diffusion.schedules import Interval
from recollect.diffusion.tables import FEATURES, table_of
from recollect.errors import HostError

FAMILIES = ["DiTTransformer2DModel", "UNet2DConditionModel"]


def computed(*companions):
    return DiffusionPolicy(gate=Interval(every=1), companions=companions)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_brings_a_coarse_model_nearer(name, tmp_path):
    family = denoiser(name)
    model = family.build()
    plain = sample(family, model, 4, batch=2)
    pool = record_calls(model, lambda: sample(family, model, 4, batch=2))
    integers = calibrate(str(tmp_path / "integers"), model, pool, 4)
    table = calibrate_features(str(tmp_path / "features"), model, pool, integers)
    errors = []
    for companions in ((integers,), (integers, table)):
        with accelerated(model, computed(*companions)):
            errors.append(float((sample(family, model, 4, batch=2) - plain).square().mean()))
    assert errors[1] < errors[0]
    assert torch.equal(sample(family, model, 4, batch=2), plain)


@pytest.mark.parametrize("bits", [8, 4])
def test_every_feature_takes_the_way_with_the_lower_error(tmp_path, bits):
    dit = denoiser("DiTTransformer2DModel")
    model = dit.build()
    pool = record_calls(model, lambda: sample(dit, model, 4, batch=2))
    integers = calibrate(str(tmp_path / "integers"), model, pool, bits)
    path = str(tmp_path / "features")
    table = calibrate_features(path, model, pool, integers)
    made = Artefact.load(path, FEATURES)
    kept = {key.split("/")[0] for key in made.settings["rows"]}
    for name, errors in made.settings["ways"].items():
        assert (name in kept) == (errors["kept"] < errors["rebuilt"])
        assert (f"line/{name}" in made.tensors) == (name not in kept)
    with accelerated(model, computed(integers, table)):
        before = table_of(model).rows
        sample(dit, model, 4, batch=2)
        after = table_of(model).rows
    assert {name for name in after if before[name]} == kept
    assert all(after[name] == before[name] for name in kept)  # none was missing
    assert bool(kept) == (bits == 4)
    with pytest.raises(HostError, match="another model"):
        accelerate(model, computed(table))
