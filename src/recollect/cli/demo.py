"""`recollect demo`: the evaluation on the zoo's tiny model, small enough for a coffee."""

from __future__ import annotations

from pathlib import Path

import click

from recollect.cli.common import debug_option, json_option, load_model
from recollect.cli.evaluate import measure

MODEL = "tiny-qwen"
RECIPES = ("streaming-llm", "snapkv", "adakv", "expected-attention", "chelsea", "duo-attention",
           "kivi(recent=32)", "snapkv + kivi(recent=32)")  # fmt: skip
TASKS = ("needle-keys", "turns", "code", "perplexity")


@click.command()
@click.option(
    "--out",
    "folder",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Run folder; an interrupted demo goes on there.",
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True,
              help="CPU threads; for so small a model more are rarely faster.")  # fmt: skip
@json_option
@debug_option
def demo(folder: Path, threads: int, as_json: bool) -> None:
    """Measure eight recipes on a tiny trained model and Python's own source; about two minutes.

    \b
    Example:
      recollect demo
    """
    from recollect.evaluate.runs import Settings

    settings = Settings(
        recipes=RECIPES, keeps=(0.5, 0.25, 0.1), tasks=TASKS, seeds=2, cases=2,
        decode_steps=16, speed_rounds=2,
    )  # fmt: skip
    subject = load_model(MODEL, "auto", "cpu", threads)
    measure(subject, settings, folder, as_json=as_json)
