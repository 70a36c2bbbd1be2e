"""A condition for the editing model of the zoo: an outline says where a new shape goes.

`tiny-flux-edit` puts a new shape where the old one was, in a size of its own choice. The adapter
that is learned here makes it follow a drawn outline; the model's own weights stay.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from recollect.diffusion.banks.conditions import LearningBank
from recollect.diffusion.banks.lora import adapter, new_adapter, train_condition
from recollect.diffusion.engine.attach import accelerated
from recollect.diffusion.policy import DiffusionPolicy
from recollect.diffusion.schedules import Interval
from recollect.zoo import edits
from recollect.zoo.edits import classifier, sampling
from recollect.zoo.training import begin, device_or_default

NAME = "tiny-flux-edit-outlines"
MODELS = (NAME,)
BASE = "tiny-flux-edit"
FIRST = 2
"""Number of the condition: 0 is the result, 1 the picture that is edited."""
FOLLOWED = 0.8
"""Overlap from which on a shape counts as the one that was outlined."""
STEPS = 1500
BATCH = 16
RANK = 16
RATE = 1e-2
CHECKPOINT = 120.0
"""Seconds between checkpoints."""


def train(
    name: str,
    out: str | Path,
    steps: int = STEPS,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Learn the adapter by rectified flow on drawn edits; save it in `out`.

    Args:
        name: `tiny-flux-edit-outlines`.
        out: folder for `outlines.safetensors` and `outlines.json`, the card; the former is there
            while training goes on, too.
        steps: updates of 16 edits.
        seed: of weights and data.
        device: torch device; a CUDA device where there is one, else the CPU.
        progress: show a progress bar.

    Returns:
        The card: how the adapter was trained, and how often the outline is followed.

    Raises:
        RecipeError: unknown name, or no steps.
        StoreError: `out` cannot be written to.
    """
    folder = begin("condition", name, MODELS, steps, out)
    device = device_or_default(device)
    model, words = (part.to(device) for part in edits.load(BASE))
    path, started = folder / "outlines.safetensors", time.monotonic()
    weights = new_adapter(model, RANK, seed)
    lesson, bank = _Lesson(model, words, seed), LearningBank(first=FIRST, weights=weights)
    saved = started
    with (
        Progress(transient=True, disable=not progress) as bar,
        accelerated(model, DiffusionPolicy(gate=Interval(every=1), companions=(bank,))) as taught,
    ):
        task = bar.add_task("training", total=steps)

        def told(step: int, loss: float) -> None:
            nonlocal saved
            taught.reset()  # frees the graph
            bar.update(task, completed=step, description=f"training, loss {loss:.4f}")
            if time.monotonic() - saved > CHECKPOINT:
                adapter(model, weights, step, torch.float16).save(path)
                saved = time.monotonic()

        train_condition(model, weights, lesson.loss, steps, RATE, told)
    made = adapter(model, weights, steps, torch.float16)
    made.save(path)
    card = {
        "name": name,
        "base": BASE,
        "parameters": sum(tensor.numel() for tensor in made.tensors.values()),
        "trained_on": "outlined edits drawn by recollect.zoo.edits.pairs",
        "recipe": {"script": f"recollect zoo train {name}", "steps": steps, "seed": seed},
        "minutes": round((time.monotonic() - started) / 60, 1),
        "measured": {
            "adapter": measure(model.cpu(), words.cpu(), str(path)),
            "no adapter": measure(model, words, ()),
            "no condition": measure(model, words, None),
        },
    }
    (folder / "outlines.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def follow(
    model: Any,
    words: Any,
    drawn: edits.Edits,
    lora: str | tuple[str, ...] | None,
    steps: int = 28,
    seed: int = 10_000,
    **arguments: Any,
) -> torch.Tensor:
    """Edit pictures with the outlines of what is wanted for a condition: (B, 3, 16, 16).

    Args:
        model, words: the editing model and its instructions.
        drawn: what is edited; nothing but the outline is taken of its result.
        lora: file of the adapter; () for condition tokens without one, None for no condition.
        steps: of Euler.
        seed: of the noise.
        arguments: of `ConditionBank`.
    """
    prompt = words(drawn.instructions)
    if lora is None:
        return sampling.edit(model, drawn.before, prompt, steps, seed)
    with accelerated(model, "easycontrol", lora=lora, first=FIRST, **arguments):
        return sampling.edit(model, drawn.before, prompt, steps, seed, edits.outline(drawn.cover))


def measure(
    model: Any,
    words: Any,
    lora: str | tuple[str, ...] | None,
    count: int = 64,
    steps: int = 28,
    seed: int = 10_000,
) -> dict[str, float]:
    """How well replaced shapes fill their outlines, and whether they are the shapes asked for.

    Arguments are those of `follow`, for so many edits drawn with this seed.

    Returns:
        Mean overlap (intersection over union), the share of at least `FOLLOWED`, and the share
        of edits that the judge recognizes.
    """
    drawn = edits.draw_edits(count, torch.Generator().manual_seed(seed), far=True)
    pictures = follow(model, words, drawn, lora, steps, seed)
    filled = edits.overlap(pictures, drawn)
    right = classifier.recognized(classifier.load(edits.path(BASE)), pictures, drawn)
    return {
        "overlap": float(filled.mean()),
        "followed": float((filled >= FOLLOWED).float().mean()),
        "recognized": float(right.float().mean()),
    }


class _Lesson:
    """Draws batches, and tells the loss of the model under the adapter that is learned."""

    def __init__(self, model: Any, words: Any, seed: int) -> None:
        self.model, self.words = model, words
        self.device = next(model.parameters()).device
        self.generator = torch.Generator().manual_seed(seed)

    def loss(self) -> torch.Tensor:
        """Of noise - data at random noise levels."""
        drawn = edits.draw_edits(BATCH, self.generator, far=True)
        before, data, condition = (
            sampling.pack(pictures).to(self.device)
            for pictures in (drawn.before, drawn.after, edits.outline(drawn.cover))
        )
        noise = torch.randn(data.shape, generator=self.generator).to(self.device)
        # Mostly noisy: where a shape goes is settled early.
        level = torch.sigmoid(0.7 + torch.randn(BATCH, generator=self.generator)).to(self.device)
        mixed = data + level.view(-1, 1, 1) * (noise - data)
        prompt = self.words(drawn.instructions.to(self.device))
        guess = sampling.velocity(self.model, mixed, before, level, prompt, condition)
        return torch.nn.functional.mse_loss(guess, noise - data)
