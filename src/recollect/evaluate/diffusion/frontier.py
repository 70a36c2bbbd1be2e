"""Runs every setting, measures what it draws, and keeps a few pictures to look at."""

from __future__ import annotations

import base64
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from recollect.diffusion import accelerated
from recollect.errors import HostError, RecipeError, StoreError
from recollect.evaluate.diffusion.operations import Operations
from recollect.evaluate.diffusion.painters import Painter
from recollect.evaluate.diffusion.settings import SHARES, recipes_for, settings
from recollect.evaluate.diffusion.workbench import Setting, Workbench

FEWER = "fewer steps"
UNCACHED = "uncached"
_MORE = (0.75, 0.6)  # shares of fewer steps, beside those that are planned for


@dataclass(frozen=True)
class Row:
    """One setting, drawn and measured.

    Attributes:
        model, steps, solver: how the pictures were drawn.
        recipe, setting: what was cached; `fewer steps` and `uncached` are the baselines.
        flops: share of the uncached floating-point operations.
        seconds: processor time of the drawing, in all threads.
        bytes: state held at the end.
        measures: by name: what the painter's judge says.
        refused: why the model could not be drawn with; then nothing else is known.
        samples: some of them as PNG, in base64.
    """

    model: str
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
    artefacts: Path | None = None,
) -> Iterator[Row]:
    """Every setting for every number of steps and solver, one row at a time.

    Args:
        painter: draws.
        steps: numbers of denoising steps.
        solvers: of the painter's.
        pictures: per setting.
        seed: of the first picture; the others follow.
        recipes: only these; by default all that are meant for such a model.
        shown: pictures kept in a row.
        progress: told what is drawn next.
        artefacts: where to keep what is calibrated; routers that lie there already, as
            ``MODEL-STEPS-SOLVER/harmonica-SHARE.safetensors``, are used.

    Raises:
        RecipeError: a recipe that no range of settings is known of.
    """
    wanted = recipes_for(painter, recipes)
    for count in steps:
        for solver in solvers:
            with TemporaryDirectory() as temporary:
                bench = Workbench(
                    painter, count, solver, min(16, pictures), artefacts or Path(temporary)
                )
                yield from _Frontier(bench, pictures, seed, shown, progress).rows(wanted)


class _Frontier:
    """One number of steps and one solver, beside its uncached pictures."""

    def __init__(
        self,
        bench: Workbench,
        pictures: int,
        seed: int,
        shown: int,
        progress: Callable[[str], None],
    ) -> None:
        self.bench, self.painter = bench, bench.painter
        self.pictures, self.seed, self.shown, self.progress = pictures, seed, shown, progress
        self.plain: torch.Tensor | None = None
        self.whole = 0  # operations of the uncached drawing

    def rows(self, recipes: Sequence[str]) -> Iterator[Row]:
        """The uncached pictures, fewer steps, and every setting of the recipes."""
        steps = self.bench.steps
        base = self.painter.base
        with nullcontext() if base is None else accelerated(self.painter.target, base):
            yield self._measured(UNCACHED, f"{steps} steps", steps)
            counts = {max(1, round(share * steps)) for share in (*_MORE, *SHARES)}
            for count in sorted(counts, reverse=True):
                yield self._measured(FEWER, f"{count} steps", count)
        for recipe in recipes:
            self._tell(recipe)
            try:
                for setting in settings(self.bench, recipe):
                    yield self._cached(setting)
            except (HostError, RecipeError) as error:  # nothing fits, or calibration found nothing
                yield self._row(recipe, recipe, refused=str(error))

    def _cached(self, setting: Setting) -> Row:
        try:
            with accelerated(self.painter.target, setting.policy) as acceleration:
                row = self._measured(setting.recipe, setting.name, self.bench.steps, setting.sigmas)
                return replace(row, bytes=acceleration.report().nbytes)
        except HostError as error:
            return self._row(setting.recipe, setting.name, refused=str(error))

    def _measured(
        self, recipe: str, name: str, steps: int, sigmas: Sequence[float] | None = None
    ) -> Row:
        self._tell(name)
        started = time.process_time()
        with Operations() as operations:
            drawn = self.painter.draw(steps, self.bench.solver, self.seed, self.pictures, sigmas)
        seconds = time.process_time() - started
        if self.plain is None:
            self.plain, self.whole = drawn, operations.total
        return self._row(
            recipe,
            name,
            flops=operations.total / self.whole,
            seconds=seconds,
            measures=self.painter.judge(drawn, self.plain, self.seed),
            samples=tuple(map(png, self.painter.shown(drawn, self.seed)[: self.shown])),
        )

    def _row(self, recipe: str, name: str, **found: Any) -> Row:
        bench = self.bench
        return Row(bench.painter.name, bench.steps, bench.solver, recipe, name, **found)

    def _tell(self, what: str) -> None:
        self.progress(f"{self.bench.steps} steps, {self.bench.solver}: {what}")


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
