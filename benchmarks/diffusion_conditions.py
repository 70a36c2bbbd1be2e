"""Question: does a drawn outline steer an edit, and what does running its tokens once save?

    python benchmarks/diffusion_conditions.py
    python benchmarks/diffusion_conditions.py --edits 128 --seeds 1000

The editing model of the zoo replaces shapes; an outline, drawn at random, says where the new one
shall be and how large (EasyControl). With the adapter, without it, and without a condition:
"overlap" is the intersection over union of the drawn shape with the outlined one, "followed" the
share of at least 0.8, "recognized" the share of edits in which the judge finds what was asked for.
"FLOPs" are to those of the same edit without a condition; "difference" is the largest of any pixel
between keys and values that are kept and those that are made anew on every step.
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
from rich.table import Table

from diffusion_editing import counting
from recollect.diffusion.banks import outlines
from recollect.zoo import edits as zoo
from recollect.zoo.edits import classifier

STEPS = 28


def measure(model: Any, words: Any, judge: Any, count: int, seed: int) -> list[dict[str, Any]]:
    """All rows of one set of edits."""
    drawn = zoo.draw_edits(count, torch.Generator().manual_seed(seed), far=True)
    lora = zoo.adapter(outlines.BASE, "outlines")
    settings: dict[str, tuple[Any, dict[str, Any]]] = {
        "no condition": (None, {}),
        "outline, no adapter": ((), {}),
        "outline, made anew on every step": (lora, {"reuse": False}),
        "outline, kept": (lora, {}),
    }
    rows, pictures = [], {}
    for label, (adapter, arguments) in settings.items():
        with counting() as total:
            found = outlines.follow(model, words, drawn, adapter, STEPS, seed, **arguments)
        pictures[label] = found
        filled = zoo.overlap(found, drawn)
        rows.append(
            {
                "setting": label,
                "seed": seed,
                "overlap": float(filled.mean()),
                "followed": float((filled >= outlines.FOLLOWED).float().mean()),
                "recognized": float(classifier.recognized(judge, found, drawn).float().mean()),
                "flops": total() / rows[0]["operations"] if rows else 1.0,
                "operations": total(),
            }
        )
    kept, anew = pictures["outline, kept"], pictures["outline, made anew on every step"]
    rows[-1]["difference"] = float((kept - anew).abs().max())
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """The table, one line per setting and seed."""
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("setting", "seed", "overlap", "followed", "recognized", "FLOPs", "difference"):
        table.add_column(name, justify="left" if name == "setting" else "right")
    for row in sorted(rows, key=lambda row: row["setting"]):
        table.add_row(
            row["setting"], str(row["seed"]), f"{row['overlap']:.2f}", f"{row['followed']:.0%}",
            f"{row['recognized']:.0%}", f"{row['flops']:.0%}",
            f"{row['difference']:.1e}" if "difference" in row else "",
        )  # fmt: skip
    Console().print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edits", type=int, default=64, help="edits per seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1000, 2000])
    results = Path(__file__).resolve().parent / "results"
    parser.add_argument("--json", type=Path, default=results / "diffusion_conditions.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, words = zoo.load(outlines.BASE)
    judge = classifier.load(zoo.path(outlines.BASE))
    rows = [row for s in args.seeds for row in measure(model, words, judge, args.edits, s)]
    show(rows)
    report = {
        "command": "python benchmarks/diffusion_conditions.py",
        "model": outlines.BASE,
        "steps": STEPS,
        "edits": args.edits,
        "seeds": args.seeds,
        "machine": platform.machine(),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "rows": rows,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {args.json.name}")


if __name__ == "__main__":
    main()
