"""What is done to a predicted value before it is used."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from recollect.diffusion.artefacts import Artefact, fingerprint, version
from recollect.diffusion.engine.clock import Step
from recollect.diffusion.engine.values import Value
from recollect.diffusion.parts import Part
from recollect.errors import RecipeError

AFFINE = "affine-correction"


@dataclass(frozen=True)
class Corrector(Part):
    """Corrects what a predictor says, by step and site."""

    @abstractmethod
    def correct(self, value: Value, step: Step, site: str) -> Value:
        """The corrected tensors.

        Args:
            value: predicted tensors (B, …).
            step: the skipped step.
            site: name of the site, as in reports; `output` for the whole model.
        """


@dataclass(frozen=True)
class Affine(Corrector):
    """`scale * value + shift` for each channel, step and site.

    Made by `calibration.affine_correction` for one model, schedule and number of steps (DEC of
    CacheQuant, arXiv:2503.01323; the rectification of ERTACache, arXiv:2508.21091; the variance
    compensation of Q&C, arXiv:2503.02508, is the same map with another fit).

    Attributes:
        artefact: path of the coefficients.
    """

    artefact: str = ""

    def check(self, model: torch.nn.Module, sites: tuple[str, ...]) -> None:
        _load(self.artefact, version(self.artefact)).check(model)

    def correct(self, value: Value, step: Step, site: str) -> Value:
        found = _load(self.artefact, version(self.artefact))
        steps = found.settings["steps"]
        if step.total is not None and step.total != steps:
            raise RecipeError(
                f"the correction was made for {steps} steps and the trajectory has {step.total}"
            )
        return tuple(
            _apply(tensor, found, f"{site}/{place}/{step.index}")
            for place, tensor in enumerate(value)
        )


def _apply(tensor: torch.Tensor, found: Artefact, name: str) -> torch.Tensor:
    """One tensor, corrected; untouched where calibration saw no such skipped step."""
    coefficients = found.tensors.get(name)
    if coefficients is None:
        return tensor
    scale, shift = coefficients.to(tensor.device, torch.float32)
    shape = [1] * tensor.ndim
    shape[found.settings["axis"]] = -1
    line = tensor.float() * scale.view(shape) + shift.view(shape)
    if found.settings.get("form") == "logistic":
        line = tensor.float() - torch.sigmoid(line)
    return line.to(tensor.dtype)


@functools.lru_cache(maxsize=8)
def _load(path: str, written: int) -> Artefact:
    return Artefact.load(path, AFFINE)


def save_affine(
    path: str,
    model: torch.nn.Module,
    coefficients: dict[str, torch.Tensor],
    steps: int,
    axis: int,
    about: Mapping[str, Any] | None = None,
) -> Affine:
    """Write coefficients (2, C) by ``site/place/step`` and return the corrector that reads them.

    Args:
        path: where to.
        model: the denoiser they were fitted on.
        coefficients: scale and shift of every corrected tensor.
        steps: number of steps of the trajectory.
        axis: the axis of the channels: 1 for latents (B, C, …), -1 for tokens (B, S, C).
        about: further settings; with ``form: logistic`` the error is a logistic function of the
            line.
    """
    settings = {"steps": steps, "axis": axis, **(about or {})}
    Artefact(AFFINE, fingerprint(model), settings, coefficients).save(path)
    return Affine(path)
