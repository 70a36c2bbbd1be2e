"""Question: how near to the uncached picture does each recipe stay, for how many evaluations?

    python benchmarks/diffusion_frontier.py
    python benchmarks/diffusion_frontier.py --few --pictures 16 --json /tmp/few.json

A trained class-conditional DiT of the zoo draws shapes with guidance (two calls a step) from the
same noise, uncached and with every recipe. Beside PSNR and SSIM to the uncached pictures: what a
classifier of the shapes still recognizes, its perceptual distance, and the Frechet distance to
real pictures. "Fewer steps" is the baseline that costs nothing to build: each recipe must beat it
at equal evaluations.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import diffusers
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from recollect.diffusion import DiffusionPolicy, accelerated
from recollect.diffusion.planner import plan, record
from recollect.diffusion.policy import policy
from recollect.diffusion.predictors import Reuse, Taylor
from recollect.evaluate.pictures import psnr, ssim
from recollect.zoo import images
from recollect.zoo.images import classifier

SHARES = (0.5, 0.4, 0.33, 0.27)


def candidates(model: Any, args: argparse.Namespace, steps: int, solver: str) -> list[tuple]:
    """(name, policy) of every setting; schedules are planned on other noise than is judged."""
    labels = torch.arange(16) % len(images.CLASSES)
    profile = record(model, lambda: images.sample(model, labels, steps, seed=5_000, solver=solver))
    found: list[tuple[str, DiffusionPolicy]] = []
    for every in (2, 3, 4, 6):
        found.append((f"reuse every {every}", policy("taylorseer", order=0, every=every, warmup=1)))
        found.append((f"taylorseer every {every}", policy("taylorseer", every=every, warmup=2)))
    for share in SHARES:
        budget = max(3, round(share * steps))
        found.append((f"planned reuse {budget}", plan(profile, Reuse(), budget).policy))
        found.append((f"planned taylor {budget}", plan(profile, Taylor(1), budget).policy))
    for threshold in (0.05, 0.1, 0.2):
        easy = {"threshold": threshold, "warmup": 3}
        found.append((f"easycache {threshold}", policy("easycache", **easy)))
        name, more = "easycache + taylorseer", {**easy, "longest": 4}
        found.append((f"{name} {threshold}", policy(name, **more)))
    for threshold in (0.1, 0.2, 0.3):
        found.append((f"fbcache {threshold}", policy("fbcache", threshold=threshold)))
        found.append((f"teacache {threshold}", policy("teacache", threshold=threshold)))
    for threshold in (0.02, 0.05, 0.1):
        found.append((f"cg-taylor {threshold}", policy("cg-taylor", threshold=threshold)))
    found += [(f"fora every {n}", policy("fora", every=n)) for n in (2, 3)]
    found.append(("delta-dit", policy("delta-dit")))
    found.append(("foca every 3", policy("foca", every=3, warmup=2)))
    found.append(("dmd every 3", policy("dmd", every=3)))
    if args.few:
        return [one for one in found if one[0].startswith(("reuse", "taylors", "planned"))]
    return found


def judge(pictures: torch.Tensor, plain: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """All distances of a set of pictures."""
    net = classifier.load(images.path("tiny-dit"))
    real = images.draw(labels, torch.Generator().manual_seed(99))
    return {
        "psnr": float(psnr(pictures, plain).clamp_max(100).mean()),
        "ssim": float(ssim(pictures, plain).mean()),
        "perceptual": float(classifier.perceptual(net, pictures, plain).mean()),
        "recognized": float((net(pictures).argmax(1) == labels).float().mean()),
        "frechet": classifier.frechet(net, pictures, real),
    }


def run(model: Any, args: argparse.Namespace, steps: int, solver: str) -> list[dict[str, Any]]:
    """All settings for one number of steps and one solver."""
    labels = torch.arange(args.pictures) % len(images.CLASSES)

    def draw(count: int = steps) -> torch.Tensor:
        return images.sample(model, labels, count, seed=args.seed, solver=solver)

    plain = draw()
    rows = []
    for share in SHARES:
        count = round(share * steps)
        pictures = draw(count)
        rows.append({"recipe": f"fewer steps {count}", "computed": count / steps, "bytes": 0,
                     **judge(pictures, plain, labels)})  # fmt: skip
    for name, chosen in track(
        candidates(model, args, steps, solver), f"{steps} steps, {solver}", transient=True
    ):
        started = time.perf_counter()
        with accelerated(model, chosen) as acceleration:
            pictures = draw()
            report = acceleration.report()
        rows.append(
            {
                "recipe": name,
                "computed": report.computed / report.evaluations,
                "seconds": time.perf_counter() - started,
                "bytes": report.nbytes,
                **judge(pictures, plain, labels),
            }
        )
    return [{"steps": steps, "solver": solver, **row} for row in rows]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=64, help="pictures per setting")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 30, 50])
    parser.add_argument("--solver", nargs="+", default=["euler", "dpm"])
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--few", action="store_true", help="schedules and forecasts only")
    default = Path(__file__).resolve().parent / "results" / "diffusion_frontier.json"
    parser.add_argument("--json", type=Path, default=default)
    args = parser.parse_args()
    model = images.load("tiny-dit")
    rows = []
    for steps in args.steps:
        for solver in args.solver:
            rows += run(model, args, steps, solver)
    for steps in args.steps:
        for solver in args.solver:
            table = Table(title=f"{steps} steps, {solver}, {args.pictures} pictures")
            for column in ("recipe", "computed", "PSNR", "SSIM", "perceptual", "recognized",
                           "Frechet", "state KiB"):  # fmt: skip
                table.add_column(column, justify="left" if column == "recipe" else "right")
            mine = [r for r in rows if (r["steps"], r["solver"]) == (steps, solver)]
            for row in sorted(mine, key=lambda r: (-r["computed"], -r["psnr"])):
                table.add_row(
                    row["recipe"], f"{row['computed']:.0%}", f"{row['psnr']:.1f}",
                    f"{row['ssim']:.3f}", f"{row['perceptual']:.4f}", f"{row['recognized']:.0%}",
                    f"{row['frechet']:.3f}", f"{row['bytes'] / 1024:.0f}",
                )  # fmt: skip
            Console().print(table)
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    given = {k: v for k, v in vars(args).items() if k != "json"}
    report = {**given, "machine": platform.machine(), "versions": versions, "rows": rows}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {args.json}")


if __name__ == "__main__":
    main()
