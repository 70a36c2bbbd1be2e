"""Question: how near to the uncached picture does each recipe stay, for how much computation?

    python benchmarks/diffusion_frontier.py
    python benchmarks/diffusion_frontier.py --steps 30 --solver euler --report runs/few

A trained class-conditional model of the zoo draws shapes with guidance (two calls a step) from the
same noise, uncached and with every recipe. Beside PSNR and SSIM to the uncached pictures: what a
classifier of the shapes still recognizes, its perceptual distance, and the Frechet distance to
real pictures. "Fewer steps" is the baseline that costs nothing to build: each recipe must beat it
at equal computation. With --report also the page that `recollect eval-diffusion` writes.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import diffusers
import torch
from rich.console import Console

from recollect.cli.diffusion import show
from recollect.evaluate.diffusion.frontier import run, save
from recollect.evaluate.diffusion.page import write_page
from recollect.evaluate.diffusion.painters import painter


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny-dit", help="an image model of the zoo")
    parser.add_argument("--pictures", type=int, default=64, help="pictures per setting")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 30, 50])
    parser.add_argument("--solver", nargs="+", default=["euler", "dpm"])
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--recipe", nargs="+", default=[], help="only these")
    parser.add_argument("--report", type=Path, help="folder for the page with pictures")
    default = Path(__file__).resolve().parent / "results" / "diffusion_frontier.json"
    parser.add_argument("--json", type=Path, default=default)
    args = parser.parse_args()
    with Console(stderr=True).status("drawing …") as status:
        rows = list(
            run(
                painter(args.model), args.steps, args.solver, args.pictures, args.seed,
                tuple(args.recipe), progress=lambda what: status.update(f"{what} …"),
            )
        )  # fmt: skip
    show(rows)
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    given = {"model": args.model, "pictures": args.pictures, "seed": args.seed}
    about = {**given, "command": "python benchmarks/diffusion_frontier.py", "versions": versions}
    if args.report is not None:
        save(args.report, about, rows)
        print(f"report at {write_page(args.report)}")
    slim = [{k: v for k, v in vars(row).items() if k != "samples"} for row in rows]
    report = {**about, "machine": platform.machine(), "rows": slim}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {args.json.name}")


if __name__ == "__main__":
    main()
