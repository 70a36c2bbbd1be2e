"""Question: how near to the uncached result does each recipe stay, for how much computation?

    python benchmarks/diffusion_frontier.py
    python benchmarks/diffusion_frontier.py --model tiny-dit --steps 30 --solver euler --report runs

Trained models of the zoo draw shapes, clips, edits and ways to a goal from the same noise, uncached
and with every recipe that is meant for them; what a recipe must learn or profile is made from other
noise (routers: briefly, unless --artefacts has better ones). Beside PSNR and SSIM to the uncached
result: what a classifier of the shapes still recognizes (or how many episodes end at the goal), its
perceptual distance, and the Frechet distance to real pictures. "Fewer steps" is the baseline that
costs nothing to build: each recipe must beat it at equal computation.

Rows of other models, steps, solvers and recipes stay in the file. With --report also the page of
every model that `recollect eval-diffusion` writes.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import diffusers
import torch
from rich.console import Console

from recollect.cli.diffusion import show
from recollect.evaluate.diffusion.frontier import run, save
from recollect.evaluate.diffusion.page import write_page
from recollect.evaluate.diffusion.painters import painter, zoo_names

# Model -> numbers of steps, solvers and samples, where they are not given.
DEFAULTS: dict[str, tuple[list[int], list[str], int]] = {
    "tiny-dit": ([20, 30, 50], ["euler", "dpm"], 64),
    "tiny-unet": ([20, 30, 50], ["euler", "dpm"], 64),
    "tiny-video-dit": ([20, 30], ["euler", "dpm"], 32),
    "tiny-flux-edit": ([12, 20, 28], ["euler"], 64),
    "tiny-flux-edit-outlines": ([28], ["euler"], 64),
    "tiny-policy": ([100], ["ddpm"], 64),
}


def merged(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """These rows, and those in the file of other models, steps, solvers and recipes."""

    def place(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["model"], row["steps"], row["solver"], row["recipe"]

    new = {place(row) for row in rows}
    try:
        before = json.loads(path.read_text())["rows"]
    except FileNotFoundError:
        before = []
    return [*(row for row in before if place(row) not in new), *rows]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    there = [name for name in DEFAULTS if name in zoo_names()]
    parser.add_argument("--model", nargs="+", default=there, choices=there)
    parser.add_argument("--pictures", type=int, help="samples per setting  [32 clips, else 64]")
    parser.add_argument("--steps", type=int, nargs="+", help="  [20 30 50 for images]")
    parser.add_argument("--solver", nargs="+", help="  [all of a model]")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--recipe", nargs="+", default=[], help="only these")
    parser.add_argument("--artefacts", type=Path, help="folder to keep what is calibrated")
    parser.add_argument("--report", type=Path, help="folder for pages with pictures")
    default = Path(__file__).resolve().parent / "results" / "diffusion_frontier.json"
    parser.add_argument("--json", type=Path, default=default)
    args = parser.parse_args()
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    command = "python benchmarks/diffusion_frontier.py"
    for model in args.model:
        steps, solvers, pictures = DEFAULTS[model]
        pictures = args.pictures or pictures
        with Console(stderr=True).status("drawing …") as status:
            rows = list(
                run(
                    painter(model), args.steps or steps, args.solver or solvers, pictures,
                    args.seed, tuple(args.recipe), artefacts=args.artefacts,
                    progress=lambda what: status.update(f"{what} …"),
                )
            )  # fmt: skip
        show(rows)
        if args.report is not None:
            about = {"model": model, "pictures": pictures, "seed": args.seed,
                     "command": f"{command} --model {model}", "versions": versions}  # fmt: skip
            save(args.report / model, about, rows)
            print(f"report at {write_page(args.report / model)}")
        slim = [
            {**{k: v for k, v in vars(row).items() if k != "samples"}, "pictures": pictures}
            for row in rows
        ]
        report = {"seed": args.seed, "command": command, "versions": versions,
                  "machine": platform.machine(), "rows": merged(args.json, slim)}  # fmt: skip
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")
        print(f"written to {args.json.name}")


if __name__ == "__main__":
    main()
