"""Question: at equal computed FLOPs, how near do we and the peers stay to the uncached picture?

    make peers                                    # once: cache-dit's environment
    python benchmarks/diffusion_peers.py
    python benchmarks/diffusion_peers.py --pictures 16 --steps 20 --solver euler --no-cache-dit

One trained model (tiny-dit of the zoo), the same noise and solver for all: diffusers' own
FirstBlockCache, TaylorSeer, MagCache, PAB and FasterCache, and cache-dit's DBCache with and without
its TaylorSeer and its step masks, each over the range of its parameters. Floating-point operations
are counted as they run. Every peer setting is compared with the best of ours that computes no more.
The first table interleaves two requests and abandons one: are the pictures those of solo runs?
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks" / "peers"))

from diffusers_caches import Setting, context_of, settings  # noqa: E402
from drawing import Loop, draw, interference  # noqa: E402
from make_env import python_of  # noqa: E402

from recollect.diffusion import DiffusionPolicy, accelerate, accelerated  # noqa: E402
from recollect.diffusion.learned.gate_fits import magnitude_ratios  # noqa: E402
from recollect.diffusion.planner import plans, record  # noqa: E402
from recollect.diffusion.policy import policy  # noqa: E402
from recollect.diffusion.predictors import Taylor  # noqa: E402
from recollect.diffusion.profiles import record_each  # noqa: E402
from recollect.diffusion.sites import Hidden, Span, Velocity  # noqa: E402
from recollect.evaluate.pictures import psnr, ssim  # noqa: E402
from recollect.zoo import images  # noqa: E402
from recollect.zoo.images import classifier  # noqa: E402

CALIBRATION = 5_000  # seed of the pictures that schedules and ratios are made from


def ours(model: Any, steps: int, solver: str) -> Iterator[tuple[str, DiffusionPolicy]]:
    """Our settings: planned forecasts at two sites, and an adaptive gate with a forecast."""

    def run() -> None:
        Loop(model, 16, steps, CALIBRATION, solver).run()

    for site in (Velocity(), Hidden()):
        profile = record(model, run, site)
        for predictor in (Taylor(1), Taylor(1, "logit_sigma"), Taylor(2, "logit_sigma")):
            budgets = range(max(4, steps // 8), steps, max(1, steps // 30))
            name = f"planned {type(site).__name__}, order {predictor.order}, {predictor.clock}"
            for budget, made in plans(profile, predictor, budgets).items():
                yield f"{name}, {budget} steps", made.policy
    for threshold in (0.03, 0.05, 0.1, 0.15, 0.2):
        easy = policy("easycache + taylorseer", threshold=threshold, warmup=3, longest=4)
        yield f"easycache + taylorseer {threshold}", easy


def calibrated(model: Any, steps: int, solver: str) -> list[float]:
    """MagCache's ratios for this model."""
    run = Loop(model, 16, steps, CALIBRATION, solver).run
    return list(magnitude_ratios(record_each(model, run, Span())))


class Judge:
    """Distances of pictures to the uncached ones, and to what was asked for."""

    def __init__(self, plain: torch.Tensor, flops: int) -> None:
        self.plain, self.flops = plain, flops
        self.labels = torch.arange(len(plain)) % len(images.CLASSES)
        self.net = classifier.load(images.path("tiny-dit"))
        self.real = images.draw(self.labels, torch.Generator().manual_seed(99))

    def row(self, system: str, name: str, pictures: torch.Tensor, flops: int) -> dict[str, Any]:
        return {
            "system": system,
            "setting": name,
            "computed": flops / self.flops,
            "psnr": float(psnr(pictures, self.plain).clamp_max(100).mean()),
            "ssim": float(ssim(pictures, self.plain).mean()),
            "perceptual": float(classifier.perceptual(self.net, pictures, self.plain).mean()),
            "recognized": float((self.net(pictures).argmax(1) == self.labels).float().mean()),
            "frechet": classifier.frechet(self.net, pictures, self.real),
        }


def run(args: argparse.Namespace, steps: int, solver: str) -> list[dict[str, Any]]:
    """All systems for one number of steps and one solver."""
    model = images.load("tiny-dit")

    def loop(of: Any = model, count: int = steps, **how: Any) -> Loop:
        return Loop(of, args.pictures, count, args.seed, solver, **how)

    plain = draw(loop())
    judge = Judge(plain.pictures, plain.flops)
    rows = []
    for count in range(max(3, steps // 8), steps):
        drawn = draw(loop(count=count))
        rows.append(judge.row("fewer steps", f"{count}", drawn.pictures, drawn.flops))
    title = f"{steps} steps, {solver}: "
    mine = list(ours(model, steps, solver))[: 2 if args.few else None]
    for name, chosen in track(mine, title + "ours", transient=True):
        with accelerated(model, chosen):
            drawn = draw(loop())
        rows.append(judge.row("recollect", name, drawn.pictures, drawn.flops))
    ratios = calibrated(model, steps, solver)
    theirs = settings(steps, ratios)
    if args.few:
        theirs = [s for _, group in itertools.groupby(theirs, lambda s: s.system)
                  for s in list(group)[-2:]]  # fmt: skip
    for setting in track(theirs, title + "diffusers", transient=True):
        fresh = images.load("tiny-dit")
        setting.put_on(fresh, lambda: Loop.running.time)
        drawn = draw(loop(of=fresh, batched=setting.batched, context=context_of(fresh)))
        rows.append(judge.row(setting.system, setting.name, drawn.pictures, drawn.flops))
    if args.cache_dit:
        rows += cache_dit(args, steps, solver, judge)
    return [{"steps": steps, "solver": solver, **row} for row in rows]


def cache_dit(
    args: argparse.Namespace, steps: int, solver: str, judge: Judge
) -> list[dict[str, Any]]:
    """Rows of cache-dit, drawn in its own environment."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pictures.safetensors"
        _worker("--out", out, "--steps", steps, "--solver", solver, "--pictures", args.pictures,
                "--seed", args.seed, *(["--few"] if args.few else []))  # fmt: skip
        with safe_open(out, framework="pt") as file:
            rows = json.loads(file.metadata()["rows"])
            return [
                judge.row(row["system"], row["name"], file.get_tensor(str(n)), row["flops"])
                for n, row in enumerate(rows)
            ]


def frontier(rows: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """(share of FLOPs, PSNR) of the settings that nothing cheaper beats, by rising share."""
    best: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda r: (r["computed"], -r["psnr"])):
        if not best or row["psnr"] > best[-1][1]:
            best.append((row["computed"], row["psnr"]))
    return best


def compare(rows: list[dict[str, Any]], slack: float = 0.005) -> list[dict[str, Any]]:
    """For each peer's frontier: our best at no more FLOPs, and our FLOPs for no less PSNR.

    Args:
        rows: of one number of steps and one solver.
        slack: shares of FLOPs closer than this count as equal.
    """
    mine = frontier([r for r in rows if r["system"] == "recollect"])
    found = []
    for system in dict.fromkeys(r["system"] for r in rows if r["system"] != "recollect"):
        theirs = frontier([r for r in rows if r["system"] == system])
        for computed, quality in theirs:
            cheaper = [q for share, q in mine if share <= computed + slack]
            as_good = [share for share, q in mine if q >= quality]
            if not cheaper or computed > 0.95:
                continue
            found.append(
                {
                    "system": system,
                    "computed": computed,
                    "psnr": quality,
                    "ours": max(cheaper),
                    "gain_db": max(cheaper) - quality,
                    "fewer_flops": computed / min(as_good) if as_good else None,
                }
            )
    return found


def disturbances(args: argparse.Namespace, steps: int = 12) -> list[dict[str, Any]]:
    """What requests do to one another on one model, by system."""
    ratios = calibrated(images.load("tiny-dit"), steps, "euler")
    chosen = {s.system: s for s in settings(steps, ratios)}

    def us() -> Callable[[int], Loop]:
        model = images.load("tiny-dit")
        acceleration = accelerate(model, "easycache + taylorseer", threshold=0.1, warmup=2)
        return lambda seed: Loop(
            model, 2, steps, seed, "euler", context=lambda _: acceleration.request(f"{seed}")
        )

    def them(setting: Setting) -> Callable[[int], Loop]:
        model = images.load("tiny-dit")
        setting.put_on(model, lambda: Loop.running.time)
        how = {"batched": setting.batched, "context": context_of(model)}
        return lambda seed: Loop(model, 2, steps, seed, "euler", **how)

    found = [{"system": "recollect", **interference(us, steps)}]
    for system, setting in chosen.items():
        found.append({"system": system, **interference(partial(them, setting), steps)})
    if args.cache_dit:
        found.append(
            {"system": "cache-dit", **json.loads(_worker("--interference", "--steps", steps))}
        )
    return found


def _worker(*given: Any) -> str:
    """What cache-dit's worker prints, run in its own environment."""
    python = python_of("cache-dit")
    if not python.exists():
        raise SystemExit("cache-dit's environment is missing: run `make peers`, or --no-cache-dit")
    worker = ROOT / "benchmarks" / "peers" / "cache_dit_worker.py"
    done = subprocess.run(
        [str(python), str(worker), *map(str, given)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"cache-dit's worker failed:\n{done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def show(console: Console, rows: list[dict[str, Any]], comparison: list[dict[str, Any]]) -> None:
    """Frontiers of one number of steps and solver, and how ours compares."""
    title = f"{rows[0]['steps']} steps, {rows[0]['solver']}"
    table = Table(title=f"{title}: settings that nothing cheaper of the same system beats")
    for column in ("system", "setting", "FLOPs", "PSNR", "SSIM", "perceptual", "recognized"):
        table.add_column(column, justify="left" if column in ("system", "setting") else "right")
    for system in dict.fromkeys(r["system"] for r in rows):
        mine = [r for r in rows if r["system"] == system]
        kept = set(frontier(mine))
        for row in sorted(mine, key=lambda r: -r["computed"]):
            if (row["computed"], row["psnr"]) in kept:
                table.add_row(
                    system, row["setting"], f"{row['computed']:.0%}", f"{row['psnr']:.1f}",
                    f"{row['ssim']:.3f}", f"{row['perceptual']:.4f}", f"{row['recognized']:.0%}",
                )  # fmt: skip
    console.print(table)
    table = Table(title=f"{title}: ours against each peer's frontier")
    for column in ("peer", "points", "gain at equal FLOPs, dB: least / median / most",
                   "fewer FLOPs at equal PSNR: least / median / most"):  # fmt: skip
        table.add_column(column, justify="left" if column == "peer" else "right")
    for system in dict.fromkeys(c["system"] for c in comparison):
        mine = [c for c in comparison if c["system"] == system]
        gains = torch.tensor([c["gain_db"] for c in mine])
        less = torch.tensor([c["fewer_flops"] for c in mine if c["fewer_flops"]] or [float("nan")])
        table.add_row(
            system, str(len(mine)),
            f"{gains.min():.1f} / {gains.median():.1f} / {gains.max():.1f}",
            f"{less.min():.2f}x / {less.median():.2f}x / {less.max():.2f}x",
        )  # fmt: skip
    console.print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=64, help="pictures per setting")
    parser.add_argument("--steps", type=int, nargs="+", default=[30])
    parser.add_argument("--solver", nargs="+", default=["euler", "dpm"])
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--few", action="store_true", help="two settings of each system")
    parser.add_argument("--cache-dit", action=argparse.BooleanOptionalAction, default=True)
    default = ROOT / "benchmarks" / "results" / "diffusion_peers.json"
    parser.add_argument("--json", type=Path, default=default)
    args = parser.parse_args()
    console = Console(width=140)
    report: dict[str, Any] = {
        **{k: v for k, v in vars(args).items() if k != "json"},
        "machine": platform.machine(),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "rows": [],
        "comparisons": [],
    }
    report["requests"] = disturbed = disturbances(args)
    table = Table(title="Largest change of a picture by other requests on the same model")
    for column in ("system", "two in turn", "after an abandoned one"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for row in disturbed:
        table.add_row(row["system"], f"{row['interleaved']:.3g}", f"{row['abandoned']:.3g}")
    console.print(table)
    for steps in args.steps:
        for solver in args.solver:
            found = run(args, steps, solver)
            compared = compare(found)
            show(console, found, compared)
            report["rows"] += found
            report["comparisons"] += [{"steps": steps, "solver": solver, **c} for c in compared]
            write(args.json, report)  # a run takes long: what is there is kept


def write(path: Path, report: dict[str, Any]) -> None:
    """The report so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {path.name}", flush=True)


if __name__ == "__main__":
    main()
