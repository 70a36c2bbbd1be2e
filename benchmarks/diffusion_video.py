"""Question: what do caches cost a video, in what is seen and in how it moves?

    python benchmarks/diffusion_video.py
    python benchmarks/diffusion_video.py --clips 32 --steps 20 --seeds 1000 2000

The zoo's tiny-video-dit (a Wan transformer that learned moving shapes) draws clips with guidance,
two calls a step, from the same noise: uncached, in fewer steps, and under every policy. PSNR is to
the uncached clip, of its frames and of the differences between them (which flicker shows in);
"recognized" is the share of clips whose shape and motion a classifier tells right; FLOPs are
counted, as a share of the uncached run's. ProfilingDiT stands beside the reuse of the whole stack
and of as many blocks drawn at random.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from recollect.diffusion import DiffusionPolicy, accelerated
from recollect.diffusion.attention.profiling import profile_blocks
from recollect.diffusion.learned.gate_fits import magcache
from recollect.diffusion.planner import plan, record
from recollect.diffusion.policy import policy
from recollect.diffusion.predictors import Reuse, Taylor
from recollect.diffusion.schedules import Interval
from recollect.diffusion.sites import Blocks, Span
from recollect.evaluate import clips as distances
from recollect.zoo import videos
from recollect.zoo.videos import classifier

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Setting:
    """What is drawn with: a policy, or fewer steps."""

    name: str
    policy: DiffusionPolicy | None
    steps: int
    random: bool = False


@dataclass
class Row:
    """One setting, measured on one set of seeds."""

    name: str
    seed: int
    flops: float
    psnr: float
    flicker: float
    recognized: float


class Studio:
    """The model, its judge, and the clips that are asked for."""

    def __init__(self, count: int, solver: str) -> None:
        self.model, self.captions = videos.load("tiny-video-dit")
        self.judge = classifier.load(videos.path("tiny-video-dit"))
        pairs = torch.cartesian_prod(torch.arange(4), torch.arange(2))
        self.shapes, self.motions = pairs.repeat(-(-count // 8), 1)[:count].T
        self.solver = solver

    def draw(self, steps: int, seed: int, count: int | None = None) -> torch.Tensor:
        """Clips (B, 3, 8, 16, 16)."""
        return videos.sample(
            self.model,
            self.captions,
            self.shapes[:count],
            self.motions[:count],
            steps,
            seed,
            solver=self.solver,
        )

    def under(self, setting: Setting, seed: int) -> torch.Tensor:
        """Clips drawn under a setting."""
        if setting.policy is None:
            return self.draw(setting.steps, seed)
        with accelerated(self.model, setting.policy):
            return self.draw(setting.steps, seed)


def settings(studio: Studio, steps: int) -> Iterator[Setting]:
    """Everything that is compared; calibration draws other seeds than the comparison."""

    def few(number: int = 0) -> Any:
        return studio.draw(steps, 50_000 + 100 * number, 16)

    profile = record(studio.model, few)
    for share in (0.5, 0.4, 0.33, 0.27):
        budget = max(2, round(share * steps))
        yield Setting(
            f"planned taylor, {budget} steps", plan(profile, Taylor(1), budget).policy, steps
        )
        yield Setting(f"fewer steps, {budget}", None, budget)
    for every in (2, 3, 4):
        yield Setting(
            f"taylorseer, every {every}", policy("taylorseer", every=every, warmup=2), steps
        )
    for threshold in (0.1, 0.2):
        yield Setting(f"easycache {threshold}", policy("easycache", threshold=threshold), steps)
        both = policy("easycache + taylorseer", threshold=threshold, longest=4)
        yield Setting(f"easycache + taylorseer {threshold}", both, steps)
    calibrated = magcache(studio.model, few)
    for threshold in (0.12, 0.24):
        gate = replace(calibrated.gate, threshold=threshold)
        yield Setting(f"magcache {threshold}", replace(calibrated, gate=gate), steps)
    yield from profiled(studio, steps, few)


def profiled(studio: Studio, steps: int, few: Any) -> Iterator[Setting]:
    """ProfilingDiT, the whole stack, and every other list of as many blocks (some of them)."""
    preferences = profile_blocks(studio.model, few, batches=2)
    print("attention to the foreground by block:", [round(s, 3) for s in preferences.scores])
    count = len(preferences.scores)
    for every in (3, 6):
        gate = Interval(every=every, warmup=7 if every == 6 else 4)
        whole = DiffusionPolicy(Span(), gate, Reuse())
        yield Setting(f"whole stack, every {every}", whole, steps)
        for chosen in sorted({preferences.background(count=n) for n in (count // 2, count - 2)}):
            name = f"profilingdit {list(chosen)}, every {every}"
            yield Setting(name, DiffusionPolicy(Blocks(chosen), gate, Reuse()), steps)
            for lot in _lots(count, chosen):
                other = DiffusionPolicy(Blocks(lot), gate, Reuse())
                name = f"random {list(lot)}, every {every}"
                yield Setting(name, other, steps, random=True)


def _lots(blocks: int, chosen: tuple[int, ...], most: int = 3) -> list[tuple[int, ...]]:
    """Other lists of as many blocks."""
    draw = random.Random(f"{chosen}")
    lots: set[tuple[int, ...]] = set()
    while len(lots) < most:
        lot = tuple(sorted(draw.sample(range(blocks), len(chosen))))
        if lot != chosen:
            lots.add(lot)
    return sorted(lots)


def measure(
    studio: Studio, given: list[Setting], seeds: list[int]
) -> tuple[list[Row], dict[str, torch.Tensor]]:
    """Every setting on every set of seeds, beside the first one's clips of the same noise.

    Returns:
        The rows, and clips of every setting to look at.
    """
    rows, seen, shares = [], {}, {}
    for seed in seeds:
        reference = None
        for setting in given:
            counter: Any = (
                nullcontext() if setting.name in shares else FlopCounterMode(display=False)
            )
            with counter:
                drawn = studio.under(setting, seed)
            if setting.name not in shares:
                shares[setting.name] = counter.get_total_flops()
                seen[setting.name] = drawn[:12:4]
            reference = drawn if reference is None else reference
            right = studio.judge.recognizes(drawn, studio.shapes, studio.motions)
            rows.append(
                Row(
                    setting.name,
                    seed,
                    shares[setting.name] / shares[given[0].name],
                    float(distances.psnr(drawn, reference).mean()),
                    float(distances.flicker(drawn, reference).mean()),
                    float(right.all(1).float().mean()),
                )
            )
    return rows, seen


def contact_sheet(seen: dict[str, torch.Tensor], path: Path) -> list[str]:
    """Write a picture: a line for each setting, its clips with frame beside frame."""
    lines = []
    for clips in seen.values():
        frames = clips.clamp(-1, 1).permute(0, 2, 3, 4, 1)  # (N, F, H, W, 3)
        frames = torch.nn.functional.pad(frames, (0, 0, 1, 1, 1, 1), value=1.0)
        lines.append(torch.cat([torch.cat(list(clip), 1) for clip in frames], 1))
    sheet = ((torch.cat(lines) + 1) * 127.5).round().byte().numpy()
    image = Image.fromarray(sheet)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST).save(path)
    return list(seen)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=16, help="clips per setting and seed")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--solver", default="euler", choices=["euler", "dpm"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1000, 2000])
    parser.add_argument("--json", type=Path, default=RESULTS / "diffusion_video.json")
    parser.add_argument("--sheet", type=Path, default=RESULTS / "diffusion_video.png")
    parser.add_argument("--busy", action="store_true", help="note that the machine was not idle")
    args = parser.parse_args()
    studio = Studio(args.clips, args.solver)
    given = [Setting("uncached", None, args.steps), *settings(studio, args.steps)]
    rows, seen = measure(studio, given, args.seeds)
    show(rows)
    shown = {setting.name: seen[setting.name] for setting in given if not setting.random}
    sheet = contact_sheet(shown, args.sheet)
    report = {
        "command": "python benchmarks/diffusion_video.py",
        "clips": args.clips,
        "steps": args.steps,
        "solver": args.solver,
        "busy": args.busy,
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "sheet": {"file": args.sheet.name, "rows": sheet},
        "rows": [asdict(row) for row in rows],
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1).replace("Infinity", "null") + "\n")
    print(f"written to {args.json.name} and {args.sheet.name}")


def show(rows: list[Row]) -> None:
    """One line a setting, by what it computes; a figure per set of seeds."""
    table = Table(header_style="bold", box=None)
    for column in ("FLOPs", "recipe", "PSNR", "of differences", "recognized"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    names = dict.fromkeys(row.name for row in rows)
    for name in sorted(names, key=lambda n: -next(r.flops for r in rows if r.name == n)):
        own = [row for row in rows if row.name == name]
        table.add_row(
            f"{own[0].flops:.0%}",
            name,
            " / ".join(f"{row.psnr:.1f}" for row in own),
            " / ".join(f"{row.flicker:.1f}" for row in own),
            " / ".join(f"{row.recognized:.0%}" for row in own),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
