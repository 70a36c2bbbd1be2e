"""What the trainers of image, video and control models share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from recollect.errors import RecipeError, StoreError


def begin(kind: str, name: str, known: Iterable[str], steps: int, out: str | Path) -> Path:
    """Check what was asked for, and make the folder that the model goes to.

    Raises:
        RecipeError: an unknown name, or no steps.
        StoreError: the folder cannot be made.
    """
    if name not in known:
        raise RecipeError(f"unknown {kind} model '{name}' (there are: {', '.join(known)})")
    if steps < 1:
        raise RecipeError(f"steps is 1 or more, not {steps}")
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write to {folder}: {error}") from error
    return folder


def device_or_default(device: str | None) -> str:
    """The device asked for; else CUDA where there is one."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def descend(weights: Iterable[torch.Tensor], optimizers: Iterable[Any], rate: float) -> None:
    """One update with gradients clipped to 1 and learning rates of `rate` times their peak.

    Every parameter group carries its peak: ``{"params": …, "peak": 2e-3}``.
    """
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def follow(average: torch.nn.Module, model: torch.nn.Module, step: int, most: float = 0.99) -> None:
    """Move averaged weights towards the model's: quickly at first, at last by ``1 - most``."""
    decay = min(most, (step + 1) / (step + 10))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def teach(
    judge: Any,
    loss: Callable[[], torch.Tensor],
    steps: int,
    rate: float = 2e-3,
    progress: bool = True,
) -> Any:
    """Train a classifier, and return it ready for inference.

    Args:
        judge: the classifier.
        loss: draws a batch and gives its loss.
        steps: updates.
        rate: of the first one; it falls to 0.
        progress: show a progress bar.
    """
    optimizer = torch.optim.AdamW(judge.parameters(), lr=rate)
    for step in track(range(steps), "classifier", disable=not progress, transient=True):
        loss().backward()
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return judge.eval()
