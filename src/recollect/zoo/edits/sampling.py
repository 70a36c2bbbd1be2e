"""The editing model of the zoo: a picture and an instruction in, the edited picture out.

Tokens are laid out as in FLUX.1 Kontext: those of the noise come first and those of the picture to
be edited follow, told apart by the first of their three position ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from recollect.zoo.edits.pairs import WORDS
from recollect.zoo.images.sampling import scheduler

GRID = 8
"""Tokens along an edge: each is 2 x 2 pixels."""
CHANNELS = 12
WIDTH = 32
"""Width of a word."""
_FILE = "instructions.safetensors"


class Prompt(NamedTuple):
    """Encoded instructions: a row for each word (B, 3, 32), and their mean (B, 32)."""

    words: torch.Tensor
    pooled: torch.Tensor


class Instructions(torch.nn.Embedding):
    """A vector for every word of `WORDS`: the text encoder of the editing model."""

    def __init__(self) -> None:
        super().__init__(len(WORDS), WIDTH)

    def forward(self, instructions: torch.Tensor) -> Prompt:  # type: ignore[override]
        """Encode instructions (B, 3) int64."""
        rows = super().forward(instructions)
        return Prompt(rows, rows.mean(1))

    def save(self, folder: str | Path) -> None:
        """Write beside the model in `folder`."""
        save_file({"weight": self.weight.detach().half()}, Path(folder) / _FILE)

    @classmethod
    def load(cls, folder: str | Path) -> Instructions:
        """Those of the model in `folder`."""
        found = cls()
        found.load_state_dict({"weight": load_file(Path(folder) / _FILE)["weight"].float()})
        return found.eval().requires_grad_(False)


def pack(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures (B, 3, 16, 16) as tokens (B, 64, 12), as Kontext packs its latents."""
    return torch.nn.functional.pixel_unshuffle(pictures, 2).flatten(2).transpose(1, 2)


def unpack(tokens: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack`."""
    maps = tokens.transpose(1, 2).unflatten(2, (GRID, GRID))
    return torch.nn.functional.pixel_shuffle(maps, 2)


def positions(kinds: int = 2) -> torch.Tensor:
    """Position ids (64 * kinds, 3) of noise, picture and condition tokens: flag, row, column."""
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    flags = (torch.full_like(rows, flag) for flag in range(kinds))
    return torch.cat([torch.stack([f, rows, columns], -1).flatten(0, 1) for f in flags]).float()


def velocity(
    model: Any,
    noisy: torch.Tensor,
    picture: torch.Tensor,
    level: torch.Tensor,
    prompt: Prompt,
    condition: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the model says of noisy tokens (B, 64, 12) at noise levels (B,): (B, 64, 12).

    A condition (B, 64, 12) is for models under EasyControl, which tells it from the picture.
    """
    given = (noisy, picture) if condition is None else (noisy, picture, condition)
    output = model(
        hidden_states=torch.cat(given, 1),
        encoder_hidden_states=prompt.words,
        pooled_projections=prompt.pooled,
        timestep=level,
        img_ids=positions(len(given)).to(noisy.device),
        txt_ids=torch.zeros(prompt.words.shape[1], 3, device=noisy.device),
        return_dict=False,
    )[0]
    return output[:, : noisy.shape[1]]


def noise(count: int, seed: int) -> torch.Tensor:
    """Tokens of noise (B, 64, 12); a picture's own, whatever batch it is edited in."""
    rows = [torch.Generator().manual_seed(seed + row) for row in range(count)]
    return torch.stack([torch.randn(GRID * GRID, CHANNELS, generator=row) for row in rows])


@torch.no_grad()
def edit(
    model: Any,
    pictures: torch.Tensor,
    prompt: Prompt,
    steps: int = 28,
    seed: int = 0,
    condition: torch.Tensor | None = None,
) -> torch.Tensor:
    """Edit pictures (B, 3, 16, 16) in [-1, 1] with Euler steps: (B, 3, 16, 16).

    A condition is a picture of that shape, too; see `velocity`.
    """
    timeline = scheduler("euler", steps)
    picture, latent = pack(pictures), noise(len(pictures), seed)
    drawn = None if condition is None else pack(condition)
    for time in timeline.timesteps:
        level = (time / 1000).expand(len(pictures))
        guess = velocity(model, latent, picture, level, prompt, drawn)
        latent = timeline.step(guess, time, latent, return_dict=False)[0]
    return unpack(latent)
