"""Train the editing model: rectified flow on drawn edits, in half an hour on a CPU."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors.torch import save_file

from recollect.zoo.edits import classifier
from recollect.zoo.edits.classifier import EditJudge
from recollect.zoo.edits.pairs import draw_edits
from recollect.zoo.edits.sampling import (
    CHANNELS,
    WIDTH,
    Instructions,
    edit,
    pack,
    velocity,
)
from recollect.zoo.muon import Muon
from recollect.zoo.training import begin, descend, device_or_default, follow

BATCH = 32
STEPS = 3500
BAR = 0.95
"""Share of uncached edits in which the judge must find what was asked for."""
CHECKPOINT = 120.0
"""Seconds between checkpoints."""
_WARMUP = 50


def tiny_flux_edit() -> Any:
    """A FLUX transformer: 64 tokens of noise, 64 of the picture and 3 of text; width 64."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 14, 14),
    )


MODELS: dict[str, Callable[[], Any]] = {"tiny-flux-edit": tiny_flux_edit}


def train(
    name: str,
    out: str | Path,
    steps: int = STEPS,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train the editing model and its judge; save both in `out`.

    Args:
        name: a model of `MODELS`.
        out: folder for weights, words, judge and card; holds a checkpoint of the averaged weights
            while training goes on.
        steps: updates of 32 edits.
        seed: of weights and data.
        device: torch device; a CUDA device where there is one, else the CPU.
        progress: show a progress bar.

    Returns:
        The card: how the model was trained and what it was measured to do.

    Raises:
        RecipeError: unknown name, or no steps.
        StoreError: `out` cannot be written to.
    """
    folder = begin("editing", name, MODELS, steps, out)
    device = device_or_default(device)
    started = time.monotonic()
    torch.manual_seed(seed)
    fresh = MODELS[name]().to(device), Instructions().to(device)
    model, words = (part.cpu() for part in _flow(*fresh, steps, seed, folder, progress))
    _save(model, words, folder)
    judge = classifier.train(seed=seed, progress=progress)
    save_file(judge.state_dict(), folder / "judge.safetensors")
    minutes = (time.monotonic() - started) / 60
    card = {
        "name": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_on": "edits drawn by recollect.zoo.edits.pairs",
        "recipe": {"script": f"recollect zoo train {name}", "steps": steps, "seed": seed},
        "minutes": round(minutes, 1),
        "measured": (measured := measure(model, words, judge)),
        "bar": {"recognized": BAR, "met": measured["recognized"] >= BAR},
    }
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


@torch.no_grad()
def measure(
    model: Any, words: Instructions, judge: EditJudge, count: int = 256, steps: int = 28
) -> dict[str, Any]:
    """How many edits the judge recognizes, and how well what is outside their region stays."""
    edits = draw_edits(count, torch.Generator().manual_seed(99))
    pictures = edit(model, edits.before, words(edits.instructions), steps, seed=10_000)
    outside = ~edits.region
    error = (pictures.clamp(-1, 1) - edits.before).square() * outside
    error = error.sum((1, 2, 3)) / (3 * outside.sum((1, 2, 3)))
    return {
        "recognized": float(classifier.recognized(judge, pictures, edits).float().mean()),
        "real_recognized": float(classifier.recognized(judge, edits.after, edits).float().mean()),
        "background_psnr": float((10 * torch.log10(4 / error)).mean()),
        "samples": count,
        "steps": steps,
    }


def _flow(
    model: Any, words: Instructions, steps: int, seed: int, folder: Path, progress: bool
) -> tuple[Any, Instructions]:
    """Rectified flow: learn noise - data at a random noise level. Returns the averaged weights."""
    both = torch.nn.ModuleList([model, words])
    average: Any = copy.deepcopy(both).eval().requires_grad_(False)
    optimizers = _optimizers(both)
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    saved = time.monotonic()
    model.train()
    for step in track(range(steps), "training", disable=not progress, transient=True):
        edits = draw_edits(BATCH, generator)
        before, data = pack(edits.before).to(device), pack(edits.after).to(device)
        start = torch.randn(data.shape, generator=generator).to(device)
        level = torch.sigmoid(torch.randn(BATCH, generator=generator)).to(device)
        mixed = data + level.view(-1, 1, 1) * (start - data)
        prompt = words(edits.instructions.to(device))
        guess = velocity(model, mixed, before, level, prompt)
        loss = torch.nn.functional.mse_loss(guess, start - data)
        loss.backward()
        rate = min(1.0, (step + 1) / _WARMUP) * (1 - step / steps)
        descend(both.parameters(), optimizers, rate)
        follow(average, both, step)
        if time.monotonic() - saved > CHECKPOINT:
            _save(average[0], average[1], folder)
            saved = time.monotonic()
    return average[0], average[1]


def _optimizers(both: torch.nn.ModuleList) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices of the blocks, AdamW for what goes in and out."""
    inside = [p for n, p in both.named_parameters() if "blocks" in n and p.ndim == 2]
    chosen = {id(p) for p in inside}
    rest = [p for p in both.parameters() if id(p) not in chosen]
    return (
        Muon([{"params": inside, "peak": 0.02}]),
        torch.optim.AdamW([{"params": rest, "peak": 2e-3}], weight_decay=0.01),
    )


def _save(model: Any, words: Instructions, folder: Path) -> None:
    copy.deepcopy(model).half().save_pretrained(folder)
    words.save(folder)
