"""Latents compared where their signal is: frequencies that noise still covers do not count."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recollect.diffusion.drifts import Accumulated
from recollect.diffusion.engine.clock import Step
from recollect.diffusion.engine.values import relative_change
from recollect.diffusion.gates import Ledger

_TINY = 1e-16


@dataclass(frozen=True, kw_only=True)
class SpectralChange(Accumulated):
    """SeaCache (arXiv:2602.18993): change of the filtered latent, added up until a computed step.

    Latents without the axes of an image (tokens whose number is no square) are always computed.

    Attributes:
        power: exponent of the signal's spectrum, which falls as ``1 / frequency**power``.
    """

    threshold: float = 0.25
    tail: int = 1
    longest: int | None = 2
    power: float = 3.0

    def judge(self, step: Step, ledger: Ledger, seen: torch.Tensor) -> torch.Tensor:
        never = torch.zeros(len(ledger.run), dtype=torch.bool)
        image = _image(seen)
        if image is None:
            return never
        filtered = filter_signal(image, step.sigma, self.power)
        before = ledger.notes.get("filtered")
        ledger.notes["filtered"] = filtered
        if before is None:
            return never
        return self._spend(ledger, relative_change(filtered, before))


def filter_signal(latent: torch.Tensor, sigma: float, power: float = 3.0) -> torch.Tensor:
    """A latent (B, C, …axes) with each frequency weighted by how much signal it carries: float32.

    Along every axis the gain of a frequency f is ``(1-s) P / ((1-s)**2 P + s**2)`` with noise level
    s and signal power ``P = |f|**-power``; the product over the axes is scaled to a mean of 1.
    """
    sigma = min(max(sigma, 1e-6), 1 - 1e-6)
    axes = tuple(range(2, latent.ndim))
    gain = torch.ones((), device=latent.device)
    for axis in axes:
        length = latent.shape[axis]
        frequency = torch.fft.fftfreq(length, device=latent.device).abs()
        signal = 1 / (frequency**power + _TINY)
        along = (1 - sigma) * signal / ((1 - sigma) ** 2 * signal + sigma**2 + _TINY)
        gain = gain * along.view(-1, *[1] * (latent.ndim - 1 - axis))
    spectrum = torch.fft.fftn(latent.float(), dim=axes)
    return torch.fft.ifftn(spectrum * (gain / gain.mean()), dim=axes).real


def _image(latent: torch.Tensor) -> torch.Tensor | None:
    """The latent with its axes as (B, C, …); packed tokens (B, S, C) of a square are unpacked."""
    if latent.ndim > 3:
        return latent
    if latent.ndim < 3:
        return None
    side = round(latent.shape[1] ** 0.5)
    if side * side != latent.shape[1]:
        return None
    return latent.unflatten(1, (side, side)).movedim(-1, 1)
