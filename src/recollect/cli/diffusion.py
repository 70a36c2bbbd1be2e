"""`recollect plan-diffusion` and `recollect eval-diffusion`: recipes on diffusion models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.table import Table

from recollect.cli.common import (
    command_line,
    counts,
    debug_option,
    err,
    json_option,
    out,
    print_json,
    words,
)
from recollect.errors import RecipeError


def painter_options(command: Any) -> Any:
    """What draws, and how it is loaded."""
    for option in (
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads for torch."),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda, mps …"),
        click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]),
                     default="float32", show_default=True, help="Number format of a pipeline."),
        click.option("--prompt", "prompts", multiple=True, metavar="TEXT",
                     help="What a pipeline draws; several are drawn in turn."),
        click.option("--model", "-m", required=True, metavar="NAME_PATH_OR_ID",
                     help="A diffusion model of the zoo, or a pipeline's folder or hub id."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.command("plan-diffusion")
@painter_options
@click.option(
    "--budget",
    type=float,
    default=0.33,
    show_default=True,
    help="Share of the uncached computation that may be spent.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=2),
    default=30,
    show_default=True,
    help="Denoising steps; a plan is for this number.",
)
@click.option("--solver", default=None, help="Of a zoo model: euler or dpm. [default: euler]")
@click.option(
    "--pictures",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Drawn to plan on, and as many others to compare.",
)
@click.option(
    "--out",
    "path",
    type=click.Path(path_type=Path),
    default=Path("plan.yaml"),
    show_default=True,
    help="Where the plan goes.",
)
@json_option
@debug_option
def plan_diffusion(
    model: str,
    prompts: tuple[str, ...],
    dtype: str,
    device: str,
    threads: int | None,
    budget: float,
    steps: int,
    solver: str | None,
    pictures: int,
    path: Path,
    as_json: bool,
) -> None:
    """Find the best site, gate, forecast and schedule for a model and a compute budget.

    Draws pictures uncached and with every candidate, and writes what stays nearest to a file:
    recollect.accelerate(pipe, "plan.yaml") uses it, on this model only.

    \b
    Example:
      recollect plan-diffusion --model tiny-dit --budget 0.33 --steps 30 --out plan.yaml
      recollect plan-diffusion --model ./flux --prompt 'a lighthouse at dusk' --budget 0.4
    """
    painter = _load(model, prompts, dtype, device, threads)
    chosen = _solver(painter, solver)
    from recollect.diffusion.tuner import tune

    def draw(seed: int) -> Any:
        return painter.draw(steps, chosen, 1_000 * seed, pictures)

    with err.status("drawing uncached …") as status:
        found = tune(painter.target, draw, budget,
                     progress=lambda name: status.update(f"trying {name} …"))  # fmt: skip
    found.best.save(path)
    if as_json:
        trials = [
            {"name": t.name, "computed": t.computed, "decibels": t.decibels,
             "policy": t.policy.to_yaml()}
            for t in found.trials
        ]  # fmt: skip
        print_json({"plan": str(path), "trials": trials, "refused": found.refused})
        return
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("policy", "computed", "PSNR, dB"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for trial in found.trials:
        table.add_row(trial.name, f"{trial.computed:.1%}", f"{trial.decibels:.1f}")
    out.print(table)
    for name, why in found.refused.items():
        out.print(f"not possible: {name}: {why}", soft_wrap=True)
    out.print(f"\nbest: {found.best.name}\nplan  {path}", soft_wrap=True)


@click.command("eval-diffusion")
@painter_options
@click.option(
    "--recipes",
    default="",
    metavar="A,B,'C + D'",
    help="Only these; planned, planned reuse and reuse are among them. [default: all]",
)
@click.option(
    "--steps", default="", help="Denoising steps: 20,30,50. [default: what is usual for the model]"
)
@click.option("--solvers", default="", help="Of a zoo model: euler,dpm. [default: the first]")
@click.option(
    "--pictures", type=click.IntRange(min=1), default=64, show_default=True, help="Per setting."
)
@click.option("--seed", default=1_000, show_default=True, help="Noise of the first picture.")
@click.option(
    "--artefacts",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Keep what is calibrated here; routers in it (MODEL-STEPS-SOLVER/harmonica-SHARE"
    ".safetensors) are used instead of trained.",
)
@click.option(
    "--out",
    "folder",
    type=click.Path(path_type=Path),
    default=None,
    help="Run folder. [default: runs/MODEL]",
)
@json_option
@debug_option
def eval_diffusion(
    model: str,
    prompts: tuple[str, ...],
    dtype: str,
    device: str,
    threads: int | None,
    recipes: str,
    steps: str,
    solvers: str,
    pictures: int,
    seed: int,
    artefacts: Path | None,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Measure how near recipes stay to the uncached pictures, and for how much computation.

    Writes frontier.json and report.html to the run folder: charts, pictures beside the uncached
    ones, and all numbers. Models of the zoo are images, clips, edits or a control policy; each has
    recipes of its own beside the common ones, calibrated on other noise.

    \b
    Example:
      recollect eval-diffusion --model tiny-dit --steps 20,30 --solvers euler,dpm --out runs/dit
      recollect eval-diffusion --model tiny-flux-edit --pictures 32
    """
    painter = _load(model, prompts, dtype, device, threads)
    chosen = tuple(_solver(painter, name) for name in words(solvers)) or painter.solvers[:1]
    folder = folder or Path("runs") / Path(model).name
    numbers = counts(steps, "steps") if steps else (painter.steps,)
    rows, page = measure(painter, numbers, chosen, pictures, seed, words(recipes), folder,
                         artefacts)  # fmt: skip
    if as_json:
        slim = [{k: v for k, v in vars(row).items() if k != "samples"} for row in rows]
        print_json({"run": str(folder), "report": str(page), "rows": slim})
        return
    show(rows)
    out.print(f"\nresults  {folder / 'frontier.json'}\nreport   {page}", soft_wrap=True)


def measure(
    painter: Any,
    steps: tuple[int, ...],
    solvers: tuple[str, ...],
    pictures: int,
    seed: int,
    recipes: tuple[str, ...],
    folder: Path,
    artefacts: Path | None = None,
) -> tuple[list[Any], Path]:
    """Run the frontier with a line that says what is drawn; write results and report."""
    import diffusers
    import torch

    from recollect import __version__
    from recollect.evaluate.diffusion.frontier import run, save
    from recollect.evaluate.diffusion.page import write_page

    with err.status("drawing …") as status:
        rows = list(run(painter, steps, solvers, pictures, seed, recipes,
                        progress=lambda what: status.update(f"{what} …"),
                        artefacts=artefacts))  # fmt: skip
    about = {
        "model": painter.name,
        "pictures": pictures,
        "seed": seed,
        "command": command_line(),
        "versions": {"recollect": __version__, "torch": torch.__version__,
                     "diffusers": diffusers.__version__},
    }  # fmt: skip
    save(folder, about, rows)
    return rows, write_page(folder)


def show(rows: list[Any]) -> None:
    """A table for every number of steps and solver."""
    from recollect.evaluate.diffusion.chart import measured

    measures = measured(rows)
    for mode in dict.fromkeys((row.steps, row.solver) for row in rows):
        table = Table(title=f"{mode[0]} steps, {mode[1]}", header_style="bold")
        table.add_column("setting")
        for column in ("computed", *(m.title for m in measures), "state KiB"):
            table.add_column(column, justify="right")
        mine = [r for r in rows if (r.steps, r.solver) == mode and not r.refused]
        for row in sorted(mine, key=lambda r: (-r.flops, -r.measures["psnr"])):
            cells = (m.words(row.measures[m.name]) for m in measures)
            table.add_row(row.setting, f"{row.flops:.0%}", *cells, f"{row.bytes / 1024:.0f}")
        out.print(table)


def _load(
    model: str, prompts: tuple[str, ...], dtype: str, device: str, threads: int | None
) -> Any:
    with err.status(f"loading {model} …"):
        import torch

        from recollect.evaluate.diffusion.painters import painter

        if threads is not None:
            torch.set_num_threads(threads)
        return painter(model, prompts, dtype=getattr(torch, dtype), device=device)


def _solver(painter: Any, name: str | None) -> str:
    if name is None:
        return str(painter.solvers[0])
    if name not in painter.solvers:
        raise RecipeError(f"{painter.name} draws with {' or '.join(painter.solvers)}, not '{name}'")
    return name
