"""Train the image models: rectified flow on drawn shapes, in minutes on a CPU."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors.torch import save_file

from recollect.zoo.images import classifier as judges
from recollect.zoo.images.sampling import sample
from recollect.zoo.images.shapes import CLASSES, draw, to_latent
from recollect.zoo.training import begin, descend, device_or_default, follow

BATCH = 64
NULL = 0.1  # share of the training pictures without a class, for guidance
BAR = 0.95
"""Share of uncached samples that the classifier must recognize."""


def tiny_dit() -> Any:
    """A class-conditional DiT in diffusers' layout: 16 tokens, 6 blocks, width 64."""
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=32,
        in_channels=48,
        out_channels=48,
        num_layers=6,
        sample_size=4,
        patch_size=1,
        num_embeds_ada_norm=len(CLASSES),
    )


def tiny_unet() -> Any:
    """A class-conditional U-Net in diffusers' layout: 8 x 8 positions, three resolutions."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=8,
        in_channels=12,
        out_channels=12,
        layers_per_block=1,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=16,
        norm_num_groups=8,
        num_class_embeds=len(CLASSES) + 1,
    )


MODELS: dict[str, Callable[[], Any]] = {"tiny-dit": tiny_dit, "tiny-unet": tiny_unet}
STEPS = {"tiny-dit": 14000, "tiny-unet": 2500}
"""Updates that a model is trained with unless told."""


def train(
    name: str,
    out: str | Path,
    steps: int | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train an image model and the classifier that judges it; save both in `out`.

    Args:
        name: a model of `MODELS`.
        out: folder for weights, classifier and card.
        steps: updates of 64 pictures; those of `STEPS` by default.
        seed: of weights and data.
        device: torch device; a CUDA device where there is one, else the CPU.
        progress: show a progress bar.

    Returns:
        The card: how the model was trained and what it was measured to do.

    Raises:
        RecipeError: unknown name, or no steps.
        StoreError: `out` cannot be written to.
    """
    steps = STEPS.get(name, 1) if steps is None else steps
    folder = begin("image", name, MODELS, steps, out)
    device = device_or_default(device)
    started = time.monotonic()
    judge = judges.train(seed=seed, progress=progress)
    torch.manual_seed(seed)
    model = _flow(MODELS[name]().to(device), steps, seed, progress)
    minutes = (time.monotonic() - started) / 60
    save_file(judge.state_dict(), folder / "classifier.safetensors")
    model.half().save_pretrained(folder)
    card = {
        "name": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_on": "shapes drawn by recollect.zoo.images.shapes",
        "recipe": {"script": f"recollect zoo train {name}", "steps": steps, "seed": seed},
        "minutes": round(minutes, 1),
        "measured": measure(model.float(), judge),
    }
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def measure(model: Any, judge: Any, count: int = 256, steps: int = 30) -> dict[str, Any]:
    """How many uncached samples the classifier recognizes, and their distance to real pictures."""
    labels = torch.arange(count) % len(CLASSES)
    pictures = sample(model.eval(), labels, steps, seed=10_000).cpu()
    real = draw(labels, torch.Generator().manual_seed(99))
    return {
        "recognized": float((judge(pictures).argmax(1) == labels).float().mean()),
        "frechet": judges.frechet(judge, pictures, real),
        "samples": count,
        "steps": steps,
    }


def _flow(model: Any, steps: int, seed: int, progress: bool) -> Any:
    """Rectified flow: learn noise - data at a random noise level. Returns the averaged weights."""
    device = next(model.parameters()).device
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW([{"params": model.parameters(), "peak": 2e-3}], weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for step in track(range(steps), "training", disable=not progress, transient=True):
        labels = torch.randint(0, len(CLASSES), (BATCH,), generator=generator)
        data = to_latent(draw(labels, generator), model.config.in_channels).to(device)
        noise = torch.randn(data.shape, generator=generator).to(device)
        level = torch.sigmoid(torch.randn(BATCH, generator=generator)).to(device)
        dropped = torch.rand(BATCH, generator=generator) < NULL
        labels = torch.where(dropped, len(CLASSES), labels).to(device)
        mixed = data + level.view(-1, 1, 1, 1) * (noise - data)
        guess = model(mixed, 1000 * level, class_labels=labels, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(guess, noise - data)
        loss.backward()
        rate = min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        descend(model.parameters(), [optimizer], rate)
        follow(average, model, step)
    return average
