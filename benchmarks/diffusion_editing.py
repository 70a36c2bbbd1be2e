"""Question: what does iterating on the edited region alone cost, and what does it save?

    python benchmarks/diffusion_editing.py
    python benchmarks/diffusion_editing.py --edits 64 --seeds 1000

The editing model of the zoo edits drawn pictures from the same noise: uncached, with RegionE and
with each of its parts left out or changed, with frozen reference tokens, and with fewer steps. PSNR
is to the uncached edit, in the region that the instruction is about and outside.
"FLOPs" counts matrix products and attention; "fewer" is what fewer steps give at the same FLOPs,
read off their own curve. The decay of velocities is calibrated on other edits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from recollect.diffusion.editing import calibrate_decay, edit
from recollect.diffusion.editing.loop import euler
from recollect.zoo import edits as zoo
from recollect.zoo.edits import classifier, sampling
from recollect.zoo.edits.pairs import Edits, draw_edits

NAME = "tiny-flux-edit"
STEPS = 28
FEWER = (6, 8, 10, 12, 14, 16, 20)
# A grid of 8 x 8 tokens is small: the paper's morphology would fill half of it, and what is kept
# of this model grows stale sooner than in the paper's ten steps.
BASE: dict[str, Any] = {"similarity": 0.93, "erode": 1, "dilate": 1, "refresh": 4}


def sigmas(steps: int) -> list[float]:
    """Noise levels as FLUX.1 Kontext's pipeline spaces them, without shift."""
    return [1 - n / steps for n in range(steps)]


def settings(decay: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """What is measured: label -> recipe and arguments."""
    whole = {**BASE, "decay": decay, "delta": 0.04}
    return {
        "regione": ("regione", whole),
        "no decay (AVDC)": ("regione", BASE),
        "no bank": ("regione", {**BASE, "bank": False}),
        "no whole first steps (STS)": ("regione", {**BASE, "warmup": 1}),
        "no refresh": ("regione", {**BASE, "refresh": 99}),
        "refresh after 2 steps": ("regione", {**BASE, "refresh": 2}),
        "refresh after 10, as published": ("regione", {**BASE, "refresh": 10}),
        "morphology as published": ("regione", {**BASE, "erode": 3, "dilate": 5}),
        "reference renewed every 2": ("reference-bank", {"renew": 2}),
        "reference renewed every 4": ("reference-bank", {"renew": 4}),
    }


@contextmanager
def counting() -> Iterator[Callable[[], int]]:
    """Count the floating-point operations of matrix products and attention."""

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={fused: attention}) as counter:
        yield counter.get_total_flops


def region_psnr(one: torch.Tensor, other: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """PSNR (B,) over marked pixels (B, 1, H, W) of pictures in [-1, 1]."""
    error = (one.clamp(-1, 1) - other.clamp(-1, 1)).square() * where
    mean = error.sum((1, 2, 3)) / (3 * where.sum((1, 2, 3)))
    return 10 * torch.log10(4 / mean.clamp_min(1e-10))


class Bench:
    """The model, its judge, and one set of edits."""

    def __init__(self, model: Any, words: Any, judge: Any, count: int, seed: int) -> None:
        self.model, self.judge, self.seed = model, judge, seed
        self.edits: Edits = draw_edits(count, torch.Generator().manual_seed(seed))
        prompt = words(self.edits.instructions)
        self.given = {
            "noise": sampling.noise(count, seed),
            "picture": sampling.pack(self.edits.before),
            "ids": sampling.positions(),
            "text": prompt.words,
            "pooled": prompt.pooled,
        }
        self.plain, self.cost, _ = self.draw(STEPS, None, {})

    def draw(
        self, steps: int, recipe: str | None, arguments: dict[str, Any]
    ) -> tuple[torch.Tensor, int, float]:
        """Edited pictures, operations and processor seconds."""
        with counting() as total:
            started = time.process_time()
            tokens = edit(self.model, sigmas=sigmas(steps), spec=recipe, **self.given, **arguments)
            return sampling.unpack(tokens), total(), time.process_time() - started

    def row(self, label: str, steps: int, recipe: str | None, arguments: Any) -> dict[str, Any]:
        """One line of the table."""
        pictures, cost, seconds = self.draw(steps, recipe, arguments)
        region, everywhere = self.edits.region, torch.ones_like(self.edits.region)
        right = classifier.recognized(self.judge, pictures, self.edits)
        return {
            "setting": label,
            "seed": self.seed,
            "flops": cost / self.cost,
            "region": float(region_psnr(pictures, self.plain, region).mean()),
            "outside": float(region_psnr(pictures, self.plain, ~region).mean()),
            "whole": float(region_psnr(pictures, self.plain, everywhere).mean()),
            "recognized": float(right.float().mean()),
            "cpu_seconds": seconds,
            "pictures": pictures,
        }


def calibrated(model: Any, words: Any, folder: str) -> str:
    """The file of a decay fitted on 32 edits that are not measured."""
    edits, scheduler = draw_edits(32, torch.Generator().manual_seed(5)), euler(sigmas(STEPS))
    prompt = words(edits.instructions)

    class Loop:
        transformer = model

    Loop.scheduler = scheduler  # type: ignore[attr-defined]

    def run() -> None:
        latent, picture = sampling.noise(32, 777), sampling.pack(edits.before)
        with torch.no_grad():
            for moment in scheduler.timesteps:
                level = (moment / 1000).expand(32)
                guess = sampling.velocity(model, latent, picture, level, prompt)
                latent = scheduler.step(guess, moment, latent, return_dict=False)[0]

    regions = {name: BASE[name] for name in ("similarity", "erode", "dilate")}
    path = Path(folder) / "decay.safetensors"
    calibrate_decay(Loop(), run, **regions).save(path)
    return str(path)


def fewer_at(rows: list[dict[str, Any]], flops: float, key: str) -> float:
    """What fewer steps give at these FLOPs: their curve, straight between its points."""
    points = sorted((row["flops"], row[key]) for row in rows)
    for (a, low), (b, high) in itertools.pairwise(points):
        if a <= flops <= b:
            return low + (high - low) * (flops - a) / (b - a)
    return math.nan


def measure(model: Any, words: Any, judge: Any, count: int, seed: int, decay: str) -> Any:
    """All rows of one seed, and the bench they were drawn on."""
    bench = Bench(model, words, judge, count, seed)
    fewer = [bench.row(f"{n} steps", n, None, {}) for n in FEWER]
    rows = []
    for label, (recipe, arguments) in track(
        settings(decay).items(), f"seed {seed}", transient=True
    ):
        row = bench.row(label, STEPS, recipe, arguments)
        row |= {f"fewer_{key}": fewer_at(fewer, row["flops"], key) for key in ("region", "whole")}
        rows.append(row)
    plain = bench.row("uncached", STEPS, None, {})
    return bench, [plain, *rows, *fewer]


def grid(bench: Bench, rows: list[dict[str, Any]], path: Path, count: int = 12) -> None:
    """Pictures before, edited uncached, and with RegionE, one below the other."""
    from PIL import Image

    shown = [bench.edits.before, bench.plain]
    shown += [r["pictures"] for r in rows if r["setting"] in ("regione", "no bank", "8 steps")]
    lines = [torch.cat(list(each[:count]), 2) for each in shown]
    pixels = ((torch.cat(lines, 1).clamp(-1, 1) + 1) * 127.5).byte().permute(1, 2, 0).numpy()
    height, width = pixels.shape[:2]
    Image.fromarray(pixels).resize((width * 5, height * 5), Image.Resampling.NEAREST).save(path)


def mean(rows: list[dict[str, Any]], key: str) -> float:
    """Average of a column over seeds."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return sum(values) / len(values) if values else math.nan


def show(rows: list[dict[str, Any]]) -> None:
    """The table, averaged over seeds."""
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("setting", "FLOPs", "region", "fewer", "outside", "whole", "recognized"):
        table.add_column(name, justify="left" if name == "setting" else "right")
    for label in dict.fromkeys(row["setting"] for row in rows):
        its = [row for row in rows if row["setting"] == label]
        cells = [mean(its, key) for key in ("region", "fewer_region", "outside", "whole")]
        table.add_row(
            label,
            f"{mean(its, 'flops'):.0%}",
            *("" if math.isnan(cell) else f"{cell:.1f}" for cell in cells),
            f"{mean(its, 'recognized'):.1%}",
        )
    Console().print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edits", type=int, default=16, help="edits per seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1000, 2000])
    parser.add_argument("--busy", action="store_true", help="mark times as of a busy machine")
    results = Path(__file__).resolve().parent / "results"
    parser.add_argument("--json", type=Path, default=results / "diffusion_editing.json")
    parser.add_argument("--picture", type=Path, default=results / "diffusion_editing.png")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, words = zoo.load(NAME)
    judge = classifier.load(zoo.path(NAME))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        decay = calibrated(model, words, folder)
        for seed in args.seeds:
            bench, found = measure(model, words, judge, args.edits, seed, decay)
            rows += found
    args.json.parent.mkdir(parents=True, exist_ok=True)
    grid(bench, found, args.picture)
    for row in rows:
        del row["pictures"]
    show(rows)
    report = {
        "command": "python benchmarks/diffusion_editing.py",
        "model": NAME,
        "steps": STEPS,
        "edits": args.edits,
        "seeds": args.seeds,
        "busy": args.busy,
        "machine": platform.machine(),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "rows": rows,
    }
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {args.json.name} and {args.picture.name}")


if __name__ == "__main__":
    main()
