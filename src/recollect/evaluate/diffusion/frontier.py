"""Runs every setting, measures what it draws, and keeps a few pictures to look at."""

from __future__ import annotations

import base64
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from recollect.diffusion import accelerated
from recollect.errors import HostError, StoreError
from recollect.evaluate.diffusion.painters import Painter
from recollect.evaluate.diffusion.settings import SHARES, settings
from recollect.evaluate.pictures import psnr, ssim

FEWER = "fewer steps"
UNCACHED = "uncached"
_CALIBRATION = 5_000  # seed of the pictures that schedules are planned on
_CEILING = 100.0  # decibels of equal pictures


@dataclass(frozen=True)
class Row:
    """One setting, drawn and measured.

    Attributes:
        steps, solver: how the pictures were drawn.
        recipe, setting: what was cached; `fewer steps` and `uncached` are the baselines.
        flops: share of the uncached floating-point operations.
        seconds: processor time of the drawing, in all threads.
        bytes: state held at the end.
        measures: by name: psnr, ssim, and what the painter's judge adds.
        refused: why the model could not be drawn with; then nothing else is known.
        samples: some pictures as PNG, in base64.
    """

    steps: int
    solver: str
    recipe: str
    setting: str
    flops: float = math.nan
    seconds: float = math.nan
    bytes: int = 0
    measures: dict[str, float] = field(default_factory=dict)
    refused: str = ""
    samples: tuple[str, ...] = ()


def run(
    painter: Painter,
    steps: Sequence[int],
    solvers: Sequence[str],
    pictures: int,
    seed: int = 1_000,
    recipes: tuple[str, ...] = (),
    shown: int = 6,
    progress: Callable[[str], None] = lambda name: None,
) -> Iterator[Row]:
    """Every setting for every number of steps and solver, one row at a time.

    Args:
        painter: draws.
        steps: numbers of denoising steps.
        solvers: of the painter's.
        pictures: per setting.
        seed: of the first picture; the others follow.
        recipes: only these; all by default.
        shown: pictures kept in a row.
        progress: told what is drawn next.
    """
    for count in steps:
        for solver in solvers:
            yield from _run(painter, count, solver, pictures, seed, recipes, shown, progress)


def _run(
    painter: Painter,
    steps: int,
    solver: str,
    pictures: int,
    seed: int,
    recipes: tuple[str, ...],
    shown: int,
    progress: Callable[[str], None],
) -> Iterator[Row]:
    def measured(recipe: str, setting: str, count: int = steps) -> tuple[Row, torch.Tensor, int]:
        with FlopCounterMode(display=False) as counter:
            started = time.process_time()
            drawn = painter.draw(count, solver, seed, pictures)
            seconds = time.process_time() - started
        flops = counter.get_total_flops()
        kept = drawn if plain is None else plain
        measures = {
            "psnr": float(psnr(drawn, kept).clamp_max(_CEILING).mean()),
            "ssim": float(ssim(drawn, kept).mean()),
            **painter.judge(drawn, kept),
        }
        share = flops / (whole or flops)
        samples = tuple(map(png, drawn[:shown]))
        row = Row(
            steps, solver, recipe, setting, share, seconds, measures=measures, samples=samples
        )
        return row, drawn, flops

    plain: torch.Tensor | None = None
    whole = 0
    progress(f"{steps} steps, {solver}: {UNCACHED}")
    first, plain, whole = measured(UNCACHED, f"{steps} steps")
    yield first
    for share in SHARES:
        count = max(1, round(share * steps))
        progress(f"{steps} steps, {solver}: {count} steps")
        yield measured(FEWER, f"{count} steps", count)[0]

    def calibrate() -> None:
        painter.draw(steps, solver, _CALIBRATION, min(16, pictures))

    for setting in settings(painter.target, calibrate, steps, recipes):
        progress(f"{steps} steps, {solver}: {setting.name}")
        try:
            with accelerated(painter.target, setting.policy) as acceleration:
                row, _, _ = measured(setting.recipe, setting.name)
                held = acceleration.report().nbytes
        except HostError as error:
            yield Row(steps, solver, setting.recipe, setting.name, refused=str(error))
            continue
        yield replace(row, bytes=held)


def png(picture: torch.Tensor, edge: int = 96) -> str:
    """A picture (C, H, W) in [-1, 1] as PNG in base64; small ones are enlarged without blur."""
    from PIL import Image

    pixels = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(pixels)
    if image.width < edge:
        times = edge // image.width
        image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def save(folder: Path, about: dict[str, Any], rows: Sequence[Row]) -> Path:
    """Write ``frontier.json``. Raises StoreError."""
    path = folder / "frontier.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"about": about, "rows": [asdict(row) for row in rows]})
        path.write_text(text + "\n")
    except OSError as error:
        raise StoreError(f"cannot write to {folder}: {error}") from error
    return path


def load(folder: Path) -> tuple[dict[str, Any], list[Row]]:
    """Read what `save` wrote. Raises StoreError."""
    try:
        found = json.loads((folder / "frontier.json").read_text())
        rows = [Row(**{**row, "samples": tuple(row["samples"])}) for row in found["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{folder} holds no frontier ({error}); run recollect eval-diffusion first"
        ) from error
    return found["about"], rows
