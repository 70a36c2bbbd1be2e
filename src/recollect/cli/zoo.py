"""`recollect zoo`: the tiny trained models that ship with the package."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from recollect.cli.common import counts, debug_option, json_option, load_model, out, print_json
from recollect.errors import RecipeError

_DRAWN = {
    "tiny-dit": "recollect.zoo.images.train",
    "tiny-unet": "recollect.zoo.images.train",
    "tiny-video-dit": "recollect.zoo.videos.train",
    "tiny-flux-edit": "recollect.zoo.edits.train",
    "tiny-policy": "recollect.zoo.control.train",
    "tiny-flux-edit-outlines": "recollect.diffusion.banks.outlines",
}
"""Who trains models of drawings; they need diffusers, and are imported when one is asked for."""


@click.group()
def zoo() -> None:
    """The tiny trained models that ship with the package.

    \b
    Example:
      recollect zoo list
      recollect zoo check tiny-llama
    """


@zoo.command("list")
@json_option
@debug_option
def list_(as_json: bool) -> None:
    """List the models and where they are.

    \b
    Example:
      recollect zoo list
    """
    from recollect import zoo as models

    found = [{"name": name, "path": models.path(name)} for name in models.names()]
    if as_json:
        print_json(found)
        return
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("model", no_wrap=True)
    table.add_column("folder", overflow="fold")
    for model in found:
        table.add_row(model["name"], model["path"])
    out.print(table)


@zoo.command()
@click.argument("name")
@click.option(
    "--out",
    "folder",
    type=click.Path(path_type=Path),
    default=None,
    help="Where the model goes; a stopped training goes on there. [default: runs/NAME]",
)
@click.option(
    "--minutes",
    default=None,
    type=click.FloatRange(min=0),
    help="Time to train a language model for. [default: 60]",
)
@click.option(
    "--steps",
    default=None,
    type=click.IntRange(min=1),
    help="Updates of any other model; few make one that loads and knows little. "
    "[default: what the shipped one took]",
)
@click.option("--device", default=None, help="[default: a CUDA device if there is one, else cpu]")
@click.option("--seed", default=0, show_default=True, help="Seed of weights and data.")
@json_option
@debug_option
def train(
    name: str,
    folder: Path | None,
    minutes: float | None,
    steps: int | None,
    device: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Train a model of the zoo from nothing: language models from the standard library's source,
    image models (tiny-dit, tiny-unet) from drawn shapes, tiny-video-dit from moving ones,
    tiny-flux-edit from edits of them, tiny-policy from scripted demonstrations. And an adapter
    that makes tiny-flux-edit follow drawn outlines: tiny-flux-edit-outlines.

    \b
    Example:
      recollect zoo train tiny-llama --minutes 60 --out runs/my-llama
      recollect zoo train tiny-flux-edit --steps 50 --out runs/glance
    """
    folder = folder or Path("runs") / name
    shared: dict[str, Any] = {"device": device, "seed": seed, "progress": not as_json}
    if name in _DRAWN:
        if minutes is not None:
            raise RecipeError("this model trains for a number of steps: --steps, not --minutes")
        given = {} if steps is None else {"steps": steps}
        card = importlib.import_module(_DRAWN[name]).train(name, folder, **given, **shared)
    elif steps is not None:
        raise RecipeError("language models train for a time: --minutes, not --steps")
    else:
        from recollect.zoo import train as training

        card = training.train(name, folder, minutes=60.0 if minutes is None else minutes, **shared)
    print_json(card) if as_json else out.print(f"trained  {folder}", soft_wrap=True)


@zoo.command()
@click.argument("name")
@click.option("--length", default="1024,2048,4096", show_default=True, help="Tokens of context.")
@click.option(
    "--cases",
    default=128,
    show_default=True,
    type=click.IntRange(min=1),
    help="Questions per length.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads for torch.")
@json_option
@debug_option
@click.pass_context
def check(
    ctx: click.Context, name: str, length: str, cases: int, threads: int | None, as_json: bool
) -> None:
    """Measure recall and perplexity on text the model never saw, against the shipped bars.

    Ends with exit code 1 when a bar is missed.

    \b
    Example:
      recollect zoo check tiny-llama --cases 32
    """
    from recollect.zoo import bars

    lengths = counts(length, "length")
    subject = load_model(name, "auto", "cpu", threads)
    subject.check_length(max(lengths))
    found = bars.measure(subject.model, subject.tokenizer, lengths=lengths, cases=cases)
    print_json(found) if as_json else _show(found, bars.BARS)
    if any(found["needle"][n]["exact"] < bar for n, bar in bars.BARS.items() if n in lengths):
        ctx.exit(1)


def _show(found: dict[str, Any], wanted: dict[int, float]) -> None:
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("tokens", "exact", "digits", "cases", "bar"):
        table.add_column(heading, justify="right")
    for length, its in found["needle"].items():
        bar = f"{wanted[length]:.0%}" if length in wanted else "–"
        table.add_row(f"{length:,}", f"{its['exact']:.1%}", f"{its['digits']:.1%}",
                      str(its["cases"]), bar)  # fmt: skip
    out.print(table)
    out.print(f"perplexity on held-out source: {found['perplexity']:.2f}")
