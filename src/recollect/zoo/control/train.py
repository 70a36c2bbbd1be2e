"""Train the control policy on scripted demonstrations, in minutes on a CPU."""

from __future__ import annotations

import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from recollect.errors import RecipeError
from recollect.zoo.control import load_folder
from recollect.zoo.control.model import PolicyTransformer
from recollect.zoo.control.rollouts import STEPS, scheduler, success
from recollect.zoo.control.task import lessons
from recollect.zoo.training import begin, descend, follow

MODELS = {"tiny-policy": PolicyTransformer}
BATCH = 32
EPISODES = 1500


def train(
    name: str,
    out: str | Path,
    steps: int = 8000,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
    start: str | Path | None = None,
) -> dict[str, Any]:
    """Train the policy and save it in `out`.

    Args:
        name: `tiny-policy`.
        out: folder for weights and card.
        steps: updates of 32 plans.
        seed: of weights and data.
        device: `cpu` or None: the model is too small for anything else.
        progress: show a progress bar.
        start: folder of a trained policy to go on from, with another seed.

    Returns:
        The card: how the policy was trained and what it was measured to do.

    Raises:
        RecipeError: unknown name, or no steps.
        StoreError: `out` cannot be written to.
    """
    if device not in (None, "cpu"):
        raise RecipeError(f"{name} trains on the cpu, not on {device}")
    folder = begin("control", name, MODELS, steps, out)
    started = time.monotonic()
    recipe: dict[str, Any] = {"script": f"recollect zoo train {name}", "steps": steps, "seed": seed}
    if start is not None:
        recipe["started_from"] = json.loads((Path(start) / "card.json").read_text())["recipe"]
    model = _learn(steps, seed, progress, start)
    minutes = (time.monotonic() - started) / 60
    model.half().save_pretrained(folder)
    episodes = 64
    card = {
        "name": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_on": "demonstrations scripted by recollect.zoo.control.task",
        "recipe": recipe,
        "minutes": round(minutes, 1),
        "measured": {
            "success": success(model.float(), episodes, seed=10_000),
            "episodes": episodes,
            "steps": STEPS,
        },
    }
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def _learn(
    steps: int, seed: int, progress: bool, start: str | Path | None = None
) -> PolicyTransformer:
    """Learn to tell the plan behind the noise. Returns the averaged weights."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    seen, plans = lessons(EPISODES, generator)
    levels = scheduler().alphas_cumprod
    model = PolicyTransformer() if start is None else load_folder(start).train()
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(
        [{"params": model.parameters(), "peak": 2e-3}], weight_decay=1e-3, fused=True
    )
    for step in track(range(steps), "training", disable=not progress, transient=True):
        rows = torch.randint(0, len(seen), (BATCH,), generator=generator)
        times = torch.randint(0, STEPS, (BATCH,), generator=generator)
        noise = torch.randn(plans[rows].shape, generator=generator)
        level = levels[times].view(-1, 1, 1)
        mixed = level.sqrt() * plans[rows] + (1 - level).sqrt() * noise
        guess = model(mixed, times, seen[rows], return_dict=False)[0]
        torch.nn.functional.mse_loss(guess, plans[rows]).backward()
        rate = min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / steps))
        descend(model.parameters(), [optimizer], rate)
        follow(average, model, step, most=0.999)
    return average
