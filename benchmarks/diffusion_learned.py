"""Question: what do learned and profiled schedules add to uniform ones at equal computation?

    python benchmarks/diffusion_learned.py
    python benchmarks/diffusion_learned.py --part images --pictures 8 --json elsewhere

ERTACache's stages, calibrated MagCache and TeaCache, and a router of HarmoniCa (`--router`, made
by `recollect calibrate-diffusion harmonica --model tiny-dit --steps 20`): decibels to the uncached
picture of the same noise, against uniform and random schedules. BAC on tiny-policy: how many
episodes still end at the goal, how far plans are from the uncached ones of the same noise, and how
many take another way, with the share of the modules that run.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from rich.console import Console
from rich.table import Table

from recollect.diffusion import DiffusionPolicy, accelerated, ertacache
from recollect.diffusion.learned import bac, gate_fits
from recollect.diffusion.learned.subjects import load
from recollect.diffusion.masks import load_mask
from recollect.diffusion.policy import policy
from recollect.diffusion.predictors import Reuse
from recollect.diffusion.profiles import record_each
from recollect.diffusion.schedules import ModuleMask
from recollect.diffusion.sites import Modules, Span, Transform
from recollect.evaluate.pictures import psnr
from recollect.zoo import control

STEPS = 20
_OTHER = 0.1  # root mean square distance of plans that take different ways
Row = dict[str, Any]


def image_rows(args: argparse.Namespace, folder: Path) -> list[Row]:
    """Every method on tiny-dit."""
    subject = load("tiny-dit", STEPS)
    plain = {seed: subject.draw(args.pictures, seed) for seed in args.seeds}
    rows: list[Row] = []

    def judge(name: str, chosen: DiffusionPolicy | str, sigmas: Any = None) -> None:
        for seed, pictures in plain.items():
            started = time.process_time()
            with accelerated(subject.model, chosen) as acceleration:
                drawn = subject.draw(args.pictures, seed, sigmas)
                report = acceleration.report()
            rows.append(
                {
                    "model": "tiny-dit",
                    "setting": name,
                    "seed": seed,
                    "computed": _computed(acceleration.policy, report),
                    "score": float(psnr(drawn, pictures).mean()),
                    "processor seconds": time.process_time() - started,
                }
            )

    def calibration(sigmas: Any = None) -> torch.Tensor:
        return subject.draw(16, 7_000, sigmas)

    for every in (2, 3):
        judge(f"fora every {every}", policy("fora", every=every, warmup=1))
        for name, site in (("spans", Span()), ("transform", Transform())):
            judge(f"uniform {every}, {name}",
                  policy("taylorseer", order=0, every=every, warmup=1, site=site))  # fmt: skip
    judge("random modules", random_mask(torch.ones(STEPS, 12, dtype=torch.bool), 0.5))
    if args.router is not None:
        judge("harmonica", policy("harmonica", artefact=str(args.router)))
    timeline = subject.trajectory.scheduler()
    for threshold in (0.1, 0.2):
        for name, adjust, rectify in (
            ("policy", None, False),
            ("policy + steps", timeline, False),
            ("policy + rectification", None, True),
            ("policy + steps + rectification", timeline, True),
        ):
            made = ertacache.calibrate(folder / "erta.safetensors", subject.model, calibration,
                                       threshold, adjust, rectify)  # fmt: skip
            judge(f"ertacache {threshold} {name}", made.policy, made.sigmas)
    magnitudes = gate_fits.magcache(subject.model, calibration)
    changes = gate_fits.teacache(subject.model, calibration)
    for made, name in ((magnitudes, "magcache"), (changes, "teacache, fitted")):
        for threshold in (0.1, 0.2):
            gate = replace(made.gate, threshold=threshold)
            judge(f"{name} {threshold}", replace(made, gate=gate))
    for threshold in (0.2, 0.3):
        judge(f"teacache, not fitted {threshold}", policy("teacache", threshold=threshold))
    return rows


def random_mask(like: torch.Tensor, share: float, seed: int = 0) -> DiffusionPolicy:
    """A share of all modules of a mask (T, M), anywhere after the first step."""
    later = like[1:]
    count = round(share * like.numel()) - like.shape[1]
    chosen = torch.randperm(later.numel(), generator=torch.Generator().manual_seed(seed))
    flat = torch.zeros(later.numel(), dtype=torch.bool)
    flat[chosen[:count]] = True
    rows = [[True] * like.shape[1], *flat.view(later.shape).tolist()]
    steps = tuple("".join("1" if bit else "0" for bit in row) for row in rows)
    return DiffusionPolicy(Modules(), ModuleMask(steps=steps), Reuse())


def policy_rows(args: argparse.Namespace, folder: Path) -> list[Row]:
    """BAC on tiny-policy, in the closed loop."""
    from recollect.zoo.control import rollouts, task

    subject = load("tiny-policy")
    model, steps = subject.model, subject.steps
    profiles = record_each(model, lambda: subject.draw(16, 7_000), Modules())
    rows: list[Row] = []

    watched = task.observations(args.plans, torch.Generator().manual_seed(77))
    plain = {seed: rollouts.plan(model, watched, seed) for seed in args.seeds}

    def judge(name: str, schedules: dict[str, tuple[int, ...]] | None) -> None:
        path = folder / "bac.safetensors"
        made: DiffusionPolicy | str = "bac"
        given: dict[str, Any] = {"steps": ("1" * len(profiles),) * steps}
        if schedules is not None:
            made, given = bac.save_schedules(
                path, model, schedules, subject.trajectory.conditions
            ), {}  # fmt: skip
        for seed in args.seeds:
            started = time.process_time()
            with accelerated(model, made, **given, repeated=("observation_encoder",)):
                reached = rollouts.success(model, args.episodes, seed)
                apart = (rollouts.plan(model, watched, seed) - plain[seed]).square()
            updates = steps * len(profiles)
            if schedules is not None:
                updates = sum(map(len, schedules.values()))
            rows.append(
                {
                    "model": "tiny-policy",
                    "setting": name,
                    "seed": seed,
                    "computed": updates / (steps * len(profiles)),
                    "score": reached,
                    "median distance of plans": float(apart.mean((1, 2)).sqrt().median()),
                    "plans through the other gap": float(
                        (apart.mean((1, 2)) > _OTHER**2).float().mean()
                    ),
                    "processor seconds": time.process_time() - started,
                }
            )

    judge("uncached, keys and values kept", None)
    for updates in args.updates:
        one = tuple(round(i * steps / updates) for i in range(updates))
        judge(f"uniform {updates}", dict.fromkeys(profiles, one))
        one = tuple(round(i * (steps - 1) / (updates - 1)) for i in range(updates))
        judge(f"uniform {updates}, last step", dict.fromkeys(profiles, one))
        for name, changed in (
            ("as printed", {"last": False}),
            ("no union", {"union": 0}),
            ("bac", {}),
            ("one for all modules", {"per": "model"}),
        ):
            made = bac.module_schedules(model, profiles, updates, **{"union": 3, **changed})
            judge(f"bac {updates}" + (f", {name}" if changed else ""), made)
    return rows


def _computed(chosen: DiffusionPolicy, report: Any) -> float:
    """Share of the modules that ran."""
    if isinstance(chosen.gate, ModuleMask):
        if chosen.gate.artefact:
            return float(load_mask(chosen.gate.artefact).artefact.tensors["mask"].float().mean())
        digits = "".join(chosen.gate.steps)
        return digits.count("1") / len(digits)
    return float(report.computed / report.evaluations)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=["images", "policy", "all"], default="all")
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--plans", type=int, default=64, help="compared with uncached ones")
    parser.add_argument("--updates", type=int, nargs="+", default=[10])
    parser.add_argument("--seeds", type=int, nargs="+", default=[2000, 3000])
    parser.add_argument("--router", type=Path, help="a mask of tiny-dit for 20 Euler steps")
    parser.add_argument("--busy", action="store_true", help="note that the machine was busy")
    default = Path(__file__).resolve().parent / "results"
    parser.add_argument("--json", type=Path, default=default, help="folder for diffusion_learned_*")
    args = parser.parse_args()
    parts: dict[str, Callable[[argparse.Namespace, Path], list[Row]]] = {
        "images": image_rows,
        "policy": policy_rows,
    }
    for name, measure in parts.items():
        if args.part in (name, "all") and (name == "images" or control.names()):
            with tempfile.TemporaryDirectory() as folder:
                report(name, measure(args, Path(folder)), args)


def report(part: str, rows: list[Row], args: argparse.Namespace) -> None:
    """Print a part's rows, and write them."""
    table = Table(title=f"{part}; seeds {', '.join(map(str, args.seeds))}")
    for column in ("setting", "computed", "dB, or success", "processor s"):
        table.add_column(column, justify="left" if column == "setting" else "right")
    for setting in dict.fromkeys(row["setting"] for row in rows):
        mine = [row for row in rows if row["setting"] == setting]
        scores = " / ".join(f"{row['score']:.2f}" for row in mine)
        shares = sum(row["computed"] for row in mine) / len(mine)
        seconds = sum(row["processor seconds"] for row in mine)
        table.add_row(setting, f"{shares:.0%}", scores, f"{seconds:.1f}")
    Console().print(table)
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    used = {"images": ("pictures",), "policy": ("episodes", "plans", "updates")}[part]
    given = {name: vars(args)[name] for name in ("seeds", "busy", *used)}
    found = {**given, "machine": platform.machine(), "versions": versions, "rows": rows}
    path = args.json / f"diffusion_learned_{part}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
