"""`recollect calibrate-diffusion`: learn or profile what some diffusion recipes need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from recollect.cli.common import debug_option, err, json_option, out, print_json
from recollect.errors import RecipeError

_METHODS = ("harmonica", "bac", "ertacache", "magcache", "teacache")


@click.command("calibrate-diffusion")
@click.argument("method", type=click.Choice(_METHODS))
@click.option("--model", "-m", "name", required=True, metavar="NAME_OR_FOLDER",
              help="A model of the zoo, or a folder from `recollect zoo train`.")  # fmt: skip
@click.option("--out", "path", required=True, type=click.Path(path_type=Path),
              help="File to write.")  # fmt: skip
@click.option("--steps", type=click.IntRange(min=2), default=None,
              help="Denoising steps; the result is for this number.  "
              "[default: 30 for images, 100 for policies]")  # fmt: skip
@click.option("--solver", default=None, help="Of an image model: euler or dpm.  [default: euler]")
@click.option("--guidance", type=float, default=None, help="Of an image model.  [default: 2]")
@click.option("--samples", default=16, show_default=True, type=click.IntRange(min=1),
              help="Drawn to calibrate on.")  # fmt: skip
@click.option("--seed", default=7_000, show_default=True, help="Noise of the first sample.")
@click.option("--share", default=0.5, show_default=True,
              help="harmonica: share of the modules to compute.")  # fmt: skip
@click.option("--trajectories", default=100, show_default=True, type=click.IntRange(min=1),
              help="harmonica: samplings to learn from.")  # fmt: skip
@click.option("--proxy", type=click.Choice(["single", "cumulative"]), default="single",
              show_default=True, help="harmonica: how steps are weighted.")  # fmt: skip
@click.option("--begin", type=click.Choice(["uniform", "computed", "random"]), default="uniform",
              show_default=True, help="harmonica: the schedule to begin with.")  # fmt: skip
@click.option("--updates", default=10, show_default=True, help="bac: updates of a module.")
@click.option("--union", default=3, show_default=True,
              help="bac: feed-forward modules updated along with those behind them.")  # fmt: skip
@click.option("--per", type=click.Choice(["module", "model"]), default="module",
              show_default=True, help="bac: what has a schedule of its own.")  # fmt: skip
@click.option("--threshold", type=float, default=None,
              help="ertacache, magcache, teacache: drift below which steps are reused.  "
              "[default: 0.1, 0.1, 0.15]")  # fmt: skip
@click.option("--adjust", is_flag=True, help="ertacache: change the lengths of steps, too.")
@click.option("--degree", default=4, show_default=True, help="teacache: of the polynomial.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads for torch.")
@json_option
@debug_option
def calibrate_diffusion(
    method: str,
    name: str,
    path: Path,
    steps: int | None,
    solver: str | None,
    guidance: float | None,
    samples: int,
    seed: int,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Learn or profile what a recipe needs for one model, number of steps and solver.

    harmonica, bac and ertacache write an artefact that the recipe takes; magcache and teacache
    write a whole policy. All of them refuse other models.

    \b
    Example:
      recollect calibrate-diffusion harmonica --model tiny-dit --steps 20 --out router.safetensors
      recollect calibrate-diffusion bac --model tiny-policy --updates 10 --out bac.safetensors
      recollect calibrate-diffusion magcache --model tiny-dit --steps 30 --out magcache.yaml
    """
    with err.status(f"loading {name} …"):
        import torch

        from recollect.diffusion.learned.subjects import load

        if threads is not None:
            torch.set_num_threads(threads)
        subject = load(name, steps, solver, guidance)
    found = globals()[f"_{method}"](subject, path, samples, seed, options)
    whole = method in ("magcache", "teacache")
    use = f'"{path}"' if whole else f'"{method}", artefact="{path}"'
    result = {"method": method, "out": str(path), **found, "use": f"accelerate(model, {use})"}
    if as_json:
        print_json(result)
        return
    for key, value in result.items():
        out.print(f"{key:10s} {value}", soft_wrap=True)


def _harmonica(
    subject: Any, path: Path, samples: int, seed: int, options: dict[str, Any]
) -> dict[str, Any]:
    from rich.progress import Progress

    from recollect.diffusion.learned.harmonica import Training, save_router, train_router

    training = Training(
        trajectories=options["trajectories"], batch=min(samples, 8), share=options["share"],
        proxy=options["proxy"], begin=options["begin"], seed=seed,
    )  # fmt: skip
    with Progress(console=err, transient=True) as bar:
        task = bar.add_task("training", total=training.trajectories)

        def show(_: int, error: float, computed: float) -> None:
            note = f"error {error:.4f}, {computed:.0%} computed"
            bar.update(task, advance=1, description=note)

        router = train_router(subject.model, subject.trajectory, training, show)
    save_router(path, subject.model, router, subject.trajectory, training)
    return {"computed": float(router.mask(training.share).float().mean())}


def _bac(
    subject: Any, path: Path, samples: int, seed: int, options: dict[str, Any]
) -> dict[str, Any]:
    from recollect.diffusion.learned import bac
    from recollect.diffusion.profiles import record_each
    from recollect.diffusion.sites import Modules

    with err.status("recording features …"):
        profiles = record_each(subject.model, lambda: subject.draw(samples, seed), Modules())
    with err.status("planning updates …"):
        found = bac.module_schedules(
            subject.model, profiles, options["updates"], options["union"], per=options["per"]
        )
    bac.save_schedules(path, subject.model, found, subject.trajectory.conditions)
    updates = {name: len(schedule) for name, schedule in found.items()}
    return {"computed": sum(updates.values()) / (len(updates) * subject.steps), "updates": updates}


def _ertacache(
    subject: Any, path: Path, samples: int, seed: int, options: dict[str, Any]
) -> dict[str, Any]:
    from recollect.diffusion.ertacache import calibrate

    timeline = subject.trajectory.scheduler() if options["adjust"] else None
    with err.status("recording residuals …"):
        found = calibrate(
            path, subject.model, lambda sigmas: subject.draw(samples, seed, sigmas),
            _threshold(options, 0.1), timeline,
        )  # fmt: skip
    explained = {step: round(share, 3) for step, share in found.explained.items()}
    return {
        "computed": len(found.computed) / subject.steps,
        "steps": list(found.computed),
        "explained": explained,
        "sigmas": None if found.sigmas is None else list(found.sigmas),
    }


def _magcache(
    subject: Any, path: Path, samples: int, seed: int, options: dict[str, Any]
) -> dict[str, Any]:
    from recollect.diffusion.learned.gate_fits import magcache

    with err.status("recording residuals …"):
        made = magcache(
            subject.model, lambda: subject.draw(samples, seed), _threshold(options, 0.1)
        )
    gate: Any = made.gate
    return _write(path, made, {"ratios": gate.ratios})


def _teacache(
    subject: Any, path: Path, samples: int, seed: int, options: dict[str, Any]
) -> dict[str, Any]:
    from recollect.diffusion.learned.gate_fits import teacache

    with err.status("recording changes …"):
        made = teacache(
            subject.model, lambda: subject.draw(samples, seed), _threshold(options, 0.15),
            options["degree"],
        )  # fmt: skip
    gate: Any = made.gate
    return _write(path, made, {"polynomial": gate.polynomial, "calibrated": gate.calibrated})


def _threshold(options: dict[str, Any], default: float) -> float:
    given = options["threshold"]
    return default if given is None else float(given)


def _write(path: Path, policy: Any, found: dict[str, Any]) -> dict[str, Any]:
    import yaml

    from recollect.errors import StoreError

    if path.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"a policy goes to a file that ends in .yaml, not to {path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({"policy": policy.to_yaml()}, width=10**6))
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}") from error
    return {name: list(values) for name, values in found.items()}
