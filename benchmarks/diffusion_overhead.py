"""Question: what does a skipped denoising step cost, beside a computed one?

    python benchmarks/diffusion_overhead.py
    python benchmarks/diffusion_overhead.py --width 512 --tokens 64 --steps 20

Random denoisers of one width (a DiT and a FLUX of diffusers) are called on the CPU, plainly and
under a policy, at every kind of site. Processor time of this process, median over the steps. At
sites of the whole model nothing of the model runs on a skipped step; at the others its embeddings,
norms and output head do, so their share is mostly the model's own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from rich.console import Console
from rich.table import Table

from recollect.diffusion import DiffusionPolicy, accelerated
from recollect.diffusion.drifts import FirstBlock, LatentChange
from recollect.diffusion.predictors import Reuse, Taylor
from recollect.diffusion.schedules import Interval
from recollect.diffusion.sites import Hidden, Modules, Span, Transform, Velocity

GOAL = 0.02
"""Share of a computed step that a skipped one may cost where the site is the whole model."""
MANY = 10**9

POLICIES = {
    "velocity, reuse": DiffusionPolicy(Velocity(), Interval(every=MANY), Reuse()),
    "velocity, order 1": DiffusionPolicy(Velocity(), Interval(every=MANY, warmup=2), Taylor(1)),
    "transform, easycache": DiffusionPolicy(
        Transform(), LatentChange(threshold=float(MANY), warmup=2), Reuse()
    ),
    "hidden, order 1": DiffusionPolicy(Hidden(), Interval(every=MANY, warmup=2), Taylor(1)),
    "span, reuse": DiffusionPolicy(Span(), Interval(every=MANY), Reuse()),
    "span, first block": DiffusionPolicy(Span(), FirstBlock(threshold=float(MANY)), Reuse()),
    "modules, reuse": DiffusionPolicy(Modules(), Interval(every=MANY), Reuse()),
    "modules, order 1": DiffusionPolicy(Modules(), Interval(every=MANY, warmup=2), Taylor(1)),
}
WHOLE = ("velocity", "transform")


def dit(width: int, tokens: int, layers: int) -> tuple[Any, Callable[..., Any], torch.Tensor]:
    """A class-conditional DiT: the model, how it is called, and a latent."""
    side = 2 * round(tokens**0.5)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=width // 64, attention_head_dim=64, in_channels=4, out_channels=4,
        num_layers=layers, sample_size=side, patch_size=2,
    )  # fmt: skip
    labels = torch.zeros(1, dtype=torch.long)

    def call(latent: torch.Tensor, sigma: float) -> torch.Tensor:
        time = torch.full((1,), 1000 * sigma)
        return model(latent, time, class_labels=labels, return_dict=False)[0]

    return model.eval(), call, torch.randn(1, 4, side, side)


def flux(width: int, tokens: int, layers: int) -> tuple[Any, Callable[..., Any], torch.Tensor]:
    """A FLUX: a third of the blocks with two streams."""
    model = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=layers // 3,
        num_single_layers=layers - layers // 3, attention_head_dim=64,
        num_attention_heads=width // 64, joint_attention_dim=width,
        pooled_projection_dim=width, axes_dims_rope=(8, 28, 28),
    )  # fmt: skip
    given = {
        "encoder_hidden_states": torch.randn(1, tokens // 4, width),
        "pooled_projections": torch.randn(1, width),
        "img_ids": torch.randn(tokens, 3),
        "txt_ids": torch.zeros(tokens // 4, 3),
        "return_dict": False,
    }

    def call(latent: torch.Tensor, sigma: float) -> torch.Tensor:
        return model(latent, timestep=torch.full((1,), sigma), **given)[0]

    return model.eval(), call, torch.randn(1, tokens, 64)


MODELS = {"DiT": dit, "FLUX": flux}


@torch.no_grad()
def seconds(
    call: Callable[..., Any], latent: torch.Tensor, steps: int, skip: int = 0
) -> tuple[float, float]:
    """Median processor and wall time of a call, after `skip` first ones."""
    processor, wall = [], []
    for step in range(skip + steps):
        before = time.process_time(), time.perf_counter()
        output = call(latent, 1 - step / (skip + steps))
        processor.append(time.process_time() - before[0])
        wall.append(time.perf_counter() - before[1])
        latent = latent - 0.01 * output
    return statistics.median(processor[skip:]), statistics.median(wall[skip:])


def measure(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """All policies on one model."""
    torch.manual_seed(0)
    model, call, latent = MODELS[name](args.width, args.tokens, args.layers)
    seconds(call, latent, 1)
    plain, plain_wall = seconds(call, latent, args.steps // 4)
    rows = []
    for policy_name, policy in POLICIES.items():
        with accelerated(model, policy) as acceleration:
            skipped, skipped_wall = seconds(call, latent, args.steps, skip=2)
            marks = [record.computed for _, record in acceleration.report().steps]
        assert not any(marks[2:]), f"{policy_name} computed a step that is to be skipped"
        share = skipped / plain
        rows.append(
            {
                "model": name,
                "policy": policy_name,
                "computed_ms": 1e3 * plain,
                "skipped_ms": 1e3 * skipped,
                "share": share,
                "wall_share": skipped_wall / plain_wall,
                "goal": GOAL if policy_name.startswith(WHOLE) else None,
            }
        )
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=512, help="channels of a token")
    parser.add_argument("--tokens", type=int, default=256, help="image tokens")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--steps", type=int, default=40, help="skipped steps measured")
    parser.add_argument("--busy", action="store_true", help="note that the machine was busy")
    default = Path(__file__).resolve().parent / "results" / "diffusion_overhead.json"
    parser.add_argument("--json", type=Path, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in MODELS for row in measure(name, args)]
    table = Table(title=f"width {args.width}, {args.tokens} tokens, {args.layers} blocks")
    columns = ("model", "policy", "full ms", "skipped ms", "share", "wall", "goal")
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:2] else "right")
    for row in rows:
        goal = "" if row["goal"] is None else "met" if row["share"] <= row["goal"] else "missed"
        table.add_row(
            row["model"], row["policy"], f"{row['computed_ms']:.0f}", f"{row['skipped_ms']:.2f}",
            f"{row['share']:.2%}", f"{row['wall_share']:.2%}", goal,
        )  # fmt: skip
    Console().print(table)
    report = {
        **{k: v for k, v in vars(args).items() if k != "json"},
        "threads": 1,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "rows": rows,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {args.json}")


if __name__ == "__main__":
    main()
