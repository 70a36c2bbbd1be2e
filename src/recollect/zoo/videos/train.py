"""Train the video models: rectified flow on drawn clips, within an hour on one CPU thread."""

from __future__ import annotations

import copy
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors.torch import save_file

from recollect.errors import StoreError
from recollect.zoo.muon import Muon
from recollect.zoo.training import begin, descend, device_or_default, follow
from recollect.zoo.videos import classifier as judges
from recollect.zoo.videos.captions import WIDTH, Captions
from recollect.zoo.videos.clips import FRAMES, MOTIONS, SHAPES, asked, draw, to_latent, with_places
from recollect.zoo.videos.sampling import LATENT, sample

BATCH = 16
NULL = 0.1  # share of the training clips without a caption, for guidance
EARLY = 0.4  # share of the training clips that are nearly all noise
BAR = 0.95
"""Share of uncached samples of which the classifier must recognize shape and motion, each."""
CHECKPOINT_EVERY = 120.0
"""Seconds between checkpoints."""
_WARMUP, _DECAY = 50, 0.35  # steps of rising rate; share of the training with a falling one


def tiny_video_dit() -> Any:
    """A Wan transformer in diffusers' layout: 128 tokens, 6 blocks, width 64."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=2,
        attention_head_dim=32,
        in_channels=LATENT[0] + sum(LATENT[1:]),  # with places
        out_channels=LATENT[0],
        text_dim=WIDTH,
        freq_dim=64,
        ffn_dim=192,
        num_layers=6,
        cross_attn_norm=True,
        rope_max_seq_len=4 * FRAMES,
    )


MODELS: dict[str, Callable[[], Any]] = {"tiny-video-dit": tiny_video_dit}


def train(
    name: str,
    out: str | Path,
    steps: int = 5000,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a video model and the classifier that judges it; save both in `out`.

    A training that was stopped goes on from the checkpoint in `out`.

    Args:
        name: a model of `MODELS`.
        out: folder for weights, captions, classifier and card.
        steps: updates of 16 clips.
        seed: of weights and data.
        device: torch device; a CUDA device where there is one, else the CPU.
        progress: show a progress bar.

    Returns:
        The card: how the model was trained and what it was measured to do.

    Raises:
        RecipeError: unknown name, or no steps.
        StoreError: `out` cannot be written to, or holds a checkpoint of something else.
    """
    folder = begin("video", name, MODELS, steps, out)
    run = _Run(name, folder, seed, device_or_default(device))
    run.restore()
    run.train(steps, progress)
    trained = (folder / "classifier.safetensors").exists()  # by a training that was stopped
    judge = judges.load(folder) if trained else judges.train(seed=seed, progress=progress)
    model, captions = run.average.to("cpu")
    save_file(judge.state_dict(), folder / "classifier.safetensors")
    model.half().save_pretrained(folder)
    captions.save(folder)
    card = {
        "name": name,
        "parameters": sum(p.numel() for p in (*model.parameters(), *captions.parameters())),
        "trained_on": "clips drawn by recollect.zoo.videos.clips",
        "recipe": {"script": f"recollect zoo train {name}", "steps": steps, "seed": seed},
        "minutes": round(run.seconds / 60, 1),
        "measured": measure(model.float(), Captions.load(folder), judge),
    }
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return card


def measure(
    model: Any, captions: Captions, judge: Any, count: int = 256, steps: int = 30
) -> dict[str, Any]:
    """Of how many uncached samples the classifier recognizes the shape, the motion, and both."""
    pairs = torch.tensor(list(itertools.product(range(len(SHAPES)), range(len(MOTIONS)))))
    shapes, motions = pairs.repeat(-(-count // len(pairs)), 1)[:count].T
    clips = sample(model.eval(), captions, shapes, motions, steps, seed=10_000).cpu()
    right = judge.recognizes(clips, shapes, motions).float()
    return {
        "shape": float(right[:, 0].mean()),
        "motion": float(right[:, 1].mean()),
        "recognized": float(right.amin(1).mean()),
        "samples": count,
        "steps": steps,
    }


class _Run:
    """A model and its captions in training, and the running mean of their weights."""

    def __init__(self, name: str, folder: Path, seed: int, device: str) -> None:
        torch.manual_seed(seed)
        self.folder, self.seed, self.step, self.seconds = folder, seed, 0, 0.0
        self.parts: Any = torch.nn.ModuleList([MODELS[name](), Captions()]).to(device)
        self.average: Any = copy.deepcopy(self.parts).eval()
        inner: list[torch.Tensor] = []
        others: list[torch.Tensor] = []
        for label, weight in self.parts.named_parameters():
            (inner if "blocks" in label and weight.ndim == 2 else others).append(weight)
        self.optimizers: list[Any] = [
            Muon([{"params": inner, "peak": 0.02}]),
            torch.optim.AdamW([{"params": others, "peak": 3e-3}], weight_decay=0.01),
        ]

    def train(self, steps: int, progress: bool) -> None:
        """Rectified flow: learn noise - data at a random noise level."""
        # Continue with fresh data, not with that of the first steps again.
        generator = torch.Generator().manual_seed(self.seed + self.step)
        before = saved = time.monotonic()
        left = range(self.step, steps)
        for step in track(left, "training", disable=not progress, transient=True):
            self._loss(generator).backward()
            rate = min(1.0, (step + 1) / _WARMUP, (steps - step) / (_DECAY * steps))
            descend(self.parts.parameters(), self.optimizers, rate)
            follow(self.average, self.parts, step, most=0.995)
            self.step = step + 1
            now = time.monotonic()
            self.seconds, before = self.seconds + now - before, now
            if now - saved > CHECKPOINT_EVERY:
                self.checkpoint()
                saved = now
        self.checkpoint()

    def _loss(self, generator: torch.Generator) -> torch.Tensor:
        model, captions = self.parts
        device = next(model.parameters()).device
        shapes, motions = asked(BATCH, generator)
        data = to_latent(draw(shapes, motions, generator)[0]).to(device)
        noise = torch.randn(data.shape, generator=generator).to(device)
        # Mostly noisy: where a shape goes is settled early, and captions are about that.
        level = torch.sigmoid(0.5 + torch.randn(BATCH, generator=generator))
        early = torch.rand(BATCH, generator=generator)
        level = torch.where(early < EARLY, 0.88 + 0.12 * early / EARLY, level).to(device)
        dropped = torch.rand(BATCH, generator=generator) < NULL
        told = [torch.where(dropped, -1, labels).to(device) for labels in (shapes, motions)]
        mixed = data + level.view(-1, 1, 1, 1, 1) * (noise - data)
        guess = model(with_places(mixed), 1000 * level, captions(*told), return_dict=False)[0]
        return torch.nn.functional.mse_loss(guess, noise - data)

    def checkpoint(self) -> None:
        """Save the run, so that an interruption at any time leaves one whole checkpoint."""
        path, fresh = self.folder / "checkpoint.pt", self.folder / "checkpoint.new"
        held = {
            "parts": self.parts.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(held, fresh)
        os.replace(fresh, path)

    def restore(self) -> None:
        """Continue from the checkpoint in the folder, if there is one."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        try:
            held = torch.load(path, weights_only=True, map_location="cpu")
            self.parts.load_state_dict(held["parts"])
            self.average.load_state_dict(held["average"])
            for optimizer, state in zip(self.optimizers, held["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.step, self.seconds = held["step"], held["seconds"]
        except Exception as error:
            raise StoreError(f"{path} is damaged or of another model; delete it") from error
