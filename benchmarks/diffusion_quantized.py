"""Question: what do quantization and caching cost together, and what do joint corrections win back?

    python benchmarks/diffusion_quantized.py
    python benchmarks/diffusion_quantized.py --model tiny-dit --bits 4 --seeds 1000 --pictures 16

Trained models of the zoo draw shapes from the same noise: in float, on integers (W8A8, W4A8), with
some steps reused, and both. The ablation of Q&C adds a clustered calibration set (TAP) and the
variance correction (VC) to naive quantization with a cache, over several selections; that of
CacheQuant adds its schedule and its two corrections, beside the same three made separately on the
float model. PSNR is to the uncached float pictures; drift is the Frechet distance to them, Frechet
that to real pictures, both on features of the zoo's classifier, which also says how many shapes it
recognizes. Calibration draws its own noise.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from rich.console import Console
from rich.table import Table

from recollect.diffusion import DiffusionPolicy, accelerated
from recollect.diffusion.calibration import affine_correction, forecasts
from recollect.diffusion.engine.values import nbytes
from recollect.diffusion.planner import groups
from recollect.diffusion.predictors import Reuse
from recollect.diffusion.profiles import Profile, record_each
from recollect.diffusion.quantized import cachequant
from recollect.diffusion.quantized.calibrate import calibrate
from recollect.diffusion.quantized.denoiser import Quantized, quantized
from recollect.diffusion.quantized.pool import Pool, record_calls
from recollect.diffusion.quantized.qc import select, variance_correction
from recollect.diffusion.quantized.temporal import calibrate_features
from recollect.diffusion.schedules import Interval, Mask
from recollect.diffusion.sites import Branch, Hidden, Modules, Site
from recollect.evaluate.pictures import psnr
from recollect.zoo import images
from recollect.zoo.images import classifier

Named = tuple[str, DiffusionPolicy]


class Workshop:
    """A model with what was recorded of it; makes the policies that are compared."""

    def __init__(self, model: Any, args: argparse.Namespace, folder: Path) -> None:
        self.model, self.args, self.folder = model, args, folder
        self.labels = torch.arange(args.calibration) % len(images.CLASSES)
        self.pool = record_calls(model, self.run)
        self.held_out: dict[str, float] = {}

    @cached_property
    def truths(self) -> dict[str, Profile]:
        """What the modules of the float model give."""
        return record_each(self.model, self.run, Modules())

    def run(self, seed: int = 5_000) -> None:
        """Draw the calibration samples."""
        images.sample(self.model, self.labels, self.args.steps, seed=seed)

    def quantizer(self, bits: int, name: str, pool: Pool, per_step: bool = True) -> Quantized:
        """Integers calibrated on a pool."""
        path = str(self.folder / f"{name}-{bits}")
        return calibrate(path, self.model, pool, bits, per_step=per_step)

    def inside(self, quantizer: Quantized, make: Callable[[], Any]) -> Any:
        """What `make` gives while the model is quantized: its corrections are for that model."""
        with accelerated(
            self.model, DiffusionPolicy(gate=Interval(every=1), companions=(quantizer,))
        ):
            return make()

    def qc(self, bits: int, chosen: int) -> Iterator[Named]:
        """Q&C and its parts, over modules reused at a fixed interval.

        A few samples do not tell ranges for every timestep: there is one for all, as in the paper.
        """
        latents, times = self.pool.samples()
        few, every = self.args.selected, self.args.qc_every
        sets = {
            "random": select(latents, times, few, clusters=1, subsamples=1, seed=chosen),
            "TAP": select(latents, times, few, seed=chosen),
        }
        computed, truths = tuple(range(0, self.args.steps, every)), self.truths
        for name, rows in sets.items():
            integers = self.quantizer(bits, f"{name}-{chosen}", self.pool.only(rows), False)
            alone = DiffusionPolicy(gate=Interval(every=1), companions=(integers,))
            yield f"{name}, no cache", alone
            base = DiffusionPolicy(Modules(), Interval(every=every), companions=(integers,))
            yield f"{name}, naive", base
            guesses = record_each(self.model, self.run, Modules(), (integers,))
            for kind in ("plain", "deviation"):
                path = str(self.folder / f"variance-{name}-{chosen}-{kind}-{bits}")
                corrector = self.inside(
                    integers,
                    lambda path=path, guesses=guesses, kind=kind: variance_correction(
                        path, self.model, guesses, truths, Reuse(), computed, kind=kind
                    ),
                )
                yield f"{name}, VC {kind}", replace(base, corrector=corrector)

    def quantized(self, bits: int) -> Iterator[Named]:
        """Integers alone, and with temporal features rebuilt or kept."""
        integers = self.quantizer(bits, "all", self.pool)
        alone = DiffusionPolicy(gate=Interval(every=1), companions=(integers,))
        yield "quantized", alone
        path = str(self.folder / f"features-{bits}")
        table = calibrate_features(path, self.model, self.pool, integers)
        yield "quantized, temporal features", replace(alone, companions=(integers, table))

    def cachequant(self, bits: int, site: Site) -> Iterator[Named]:
        """CacheQuant, its parts, and the same made separately."""
        integers = self.quantizer(bits, "all", self.pool)
        name = type(site).__name__
        every, steps = self.args.every, self.args.steps
        uniform = DiffusionPolicy(site, Interval(every=every), companions=(integers,))
        yield f"{name}: uniform", uniform
        profiles = record_each(self.model, self.run, site)
        computed = groups(profiles.values(), every)
        gate = Mask(steps=tuple(i in computed for i in range(steps)))
        apart = DiffusionPolicy(site, gate, companions=(integers,))
        path = str(self.folder / f"apart-{bits}")
        corrector = self.inside(
            integers,
            lambda: affine_correction(
                path, self.model, profiles, Reuse(), computed, cachequant.channel_axis(profiles)
            ),
        )
        yield f"{name}: separate groups", apart
        yield f"{name}: separate groups, correction", replace(apart, corrector=corrector)
        joint = cachequant.calibrate(self.folder, self.model, self.run, integers, every, site)
        half = replace(joint, companions=(integers,))
        self.held_out[f"{name}, W{bits}A8"] = self.ratio(integers, joint)
        yield f"{name}: joint groups", replace(half, corrector=None)
        yield f"{name}: joint groups, DEC-cache", half
        if joint.companions != half.companions:
            yield f"{name}: joint groups, both DEC", joint

    def ratio(self, integers: Quantized, policy: DiffusionPolicy) -> float:
        """Squared error of reuse after its correction, over that before, on noise not fitted."""
        other = record_each(self.model, lambda: self.run(7_000), policy.site, (integers,))
        mask, corrector = policy.gate, policy.corrector
        assert isinstance(mask, Mask)
        assert corrector is not None
        computed = tuple(i for i, flag in enumerate(mask.steps) if flag)
        before = after = 0.0
        for site, profile in other.items():
            for step, guess, truth in forecasts(profile, Reuse(), computed):
                better = corrector.correct(guess, step, site)
                before += sum(
                    float((g - t).square().sum()) for g, t in zip(guess, truth, strict=True)
                )
                after += sum(
                    float((g - t).square().sum()) for g, t in zip(better, truth, strict=True)
                )
        return after / before


def judge(name: str, pictures: torch.Tensor, plain: torch.Tensor, labels: Any) -> dict[str, float]:
    """Distances of a set of pictures."""
    net = classifier.load(images.path(name))
    real = images.draw(labels, torch.Generator().manual_seed(99))
    return {
        "psnr": float(psnr(pictures, plain).clamp_max(100).mean()),
        "drift": classifier.frechet(net, pictures, plain),
        "frechet": classifier.frechet(net, pictures, real),
        "recognized": float((net(pictures).argmax(1) == labels).float().mean()),
    }


def measure(
    name: str, args: argparse.Namespace, folder: Path
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """All rows of one model, and what its corrections leave of errors on noise not fitted."""
    model = images.load(name)
    labels = torch.arange(args.pictures) % len(images.CLASSES)
    plain = {s: images.sample(model, labels, args.steps, seed=s) for s in args.seeds}
    weights = nbytes(list(model.parameters()))
    rows: list[dict[str, Any]] = []

    def row(what: str, bits: str, scores: Any, held: int, share: float, seconds: float) -> None:
        means = {k: sum(one[k] for one in scores) / len(scores) for k in scores[0]}
        rows.append({"model": name, "bits": bits, "recipe": what, "bytes": held, "computed": share,
                     "processor_seconds": seconds, **means, "each": scores})  # fmt: skip

    def attached(what: str, bits: str, *policies: DiffusionPolicy, steps: int = args.steps) -> None:
        """A row for a policy, or for several that differ in what they were calibrated on."""
        began, scores, held, share = time.process_time(), [], weights, 1.0
        for policy in policies:
            with accelerated(model, policy) as acceleration:
                for seed in args.seeds:
                    pictures = images.sample(model, labels, steps, seed=seed)
                    scores.append(judge(name, pictures, plain[seed], labels))
                report = acceleration.report()
                if policy.companions:
                    held = quantized(model).nbytes
            share = report.computed / report.evaluations * steps / args.steps
        row(what, bits, scores, held, share, time.process_time() - began)

    row("float", "float", [judge(name, plain[s], plain[s], labels) for s in args.seeds],
        weights, 1.0, 0.0)  # fmt: skip
    net = hasattr(model, "up_blocks")
    sites: tuple[Site, ...] = (Branch(),) if net else (Hidden(), Modules())
    for site in sites:
        policy = DiffusionPolicy(site, Interval(every=args.every))
        attached(f"{type(site).__name__}: uniform", "float", policy)
    fewer = -(-args.steps // args.every)
    attached("fewer steps", "float", DiffusionPolicy(gate=Interval(every=1)), steps=fewer)
    workshop = Workshop(model, args, folder)
    for bits in args.bits:
        for what, policy in workshop.quantized(bits):
            attached(what, f"W{bits}A8", policy)
            if what == "quantized":
                attached("quantized, fewer steps", f"W{bits}A8", policy, steps=fewer)
        if not net and bits == 8:
            attached(
                "Q&C: float, cache",
                "float",
                DiffusionPolicy(Modules(), Interval(every=args.qc_every)),
            )
            found: dict[str, list[DiffusionPolicy]] = {}
            for chosen in range(1, args.selections + 1):
                for what, policy in workshop.qc(bits, chosen):
                    found.setdefault(what, []).append(policy)
            for what, policies in found.items():
                attached(f"Q&C: {what}", f"W{bits}A8", *policies)
        for site in sites:
            for what, policy in workshop.cachequant(bits, site):
                attached(what, f"W{bits}A8", policy)
    return rows, workshop.held_out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [n for n in ("tiny-dit", "tiny-unet") if n in images.names()]
    parser.add_argument("--model", nargs="+", default=known, choices=known)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4], choices=(4, 8))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=3, help="steps per computed one")
    parser.add_argument("--pictures", type=int, default=16, help="per set of seeds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1000, 2000])
    parser.add_argument("--calibration", type=int, default=16, help="pictures to calibrate on")
    parser.add_argument("--selected", type=int, default=24, help="samples selected for Q&C")
    parser.add_argument("--selections", type=int, default=3, help="of these samples, averaged")
    parser.add_argument("--qc-every", type=int, default=2, help="Q&C: steps per computed one")
    parser.add_argument("--busy", action="store_true", help="note that the machine was busy")
    default = Path(__file__).resolve().parent / "results" / "diffusion_quantized.json"
    parser.add_argument("--json", type=Path, default=default)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    held_out: dict[str, dict[str, float]] = {}
    for name in args.model:
        with tempfile.TemporaryDirectory() as folder:
            found, held_out[name] = measure(name, args, Path(folder))
            rows += found
    for name in args.model:
        table = Table(title=f"{name}, {args.steps} steps, {args.pictures} pictures a set")
        for column in (
            "bits",
            "recipe",
            "computed",
            "KiB",
            "PSNR",
            "drift",
            "Frechet",
            "recognized",
        ):
            table.add_column(column, justify="left" if column in ("bits", "recipe") else "right")
        for r in (r for r in rows if r["model"] == name):
            table.add_row(
                r["bits"], r["recipe"], f"{r['computed']:.0%}", f"{r['bytes'] / 1024:,.0f}",
                f"{r['psnr']:.2f}", f"{r['drift']:.1f}", f"{r['frechet']:.1f}",
                f"{r['recognized']:.1%}",
            )  # fmt: skip
        Console(width=110).print(table)
        for what, ratio in held_out[name].items():
            print(f"error of reuse left by its correction, {what}, other noise: {ratio:.0%}")
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    given = {k: v for k, v in vars(args).items() if k != "json"}
    report = {**given, "machine": platform.machine(), "versions": versions,
              "held_out": held_out, "rows": rows}  # fmt: skip
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {args.json.name}")


if __name__ == "__main__":
    main()
