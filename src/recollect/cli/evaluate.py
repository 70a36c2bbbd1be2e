"""`recollect eval`: measure recipes on a model, with a table and a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from recollect.cli.common import (
    command_line,
    counts,
    debug_option,
    err,
    json_option,
    keeps,
    load_model,
    model_options,
    out,
    print_json,
    words,
)

RECIPES = "streaming-llm,knorm,tova,snapkv,adakv,expected-attention,kivi,snapkv + kivi"


@click.command("eval")
@model_options
@click.option(
    "--recipes",
    default=RECIPES,
    show_default=True,
    metavar="A,B,'C + D'",
    help="Recipes and compositions; arguments in brackets: 'snapkv + kivi(bits=2)'.",
)
@click.option(
    "--keep",
    default="0.5,0.25,0.1",
    show_default=True,
    help="Fractions (0.25) or numbers (256) of tokens kept.",
)
@click.option(
    "--tasks",
    default="all",
    show_default=True,
    metavar="A,B",
    help="needle, needle-keys, needle-values, needle-queries, turns, variables, "
    "common-words, code, perplexity.",
)
@click.option(
    "--modes",
    default="agnostic,aware",
    show_default=True,
    help="agnostic: the question comes after compression; aware: it is in view.",
)
@click.option("--length", default="1024", show_default=True, help="Tokens of context: 1024,4096.")
@click.option("--seeds", default=3, show_default=True, help="Each seed has its own cases.")
@click.option("--cases", default=4, show_default=True, help="Cases per task and seed.")
@click.option("--chat", is_flag=True, help="Apply the tokenizer's chat template.")
@click.option(
    "--decode-steps",
    default=32,
    show_default=True,
    help="Tokens generated to time decoding; 0 times nothing.",
)
@click.option("--rounds", default=3, show_default=True, help="How often everything is timed.")
@click.option(
    "--out",
    "folder",
    type=click.Path(path_type=Path),
    default=None,
    help="Run folder; an interrupted run goes on there. [default: runs/MODEL]",
)
@json_option
@debug_option
def evaluate(
    model: str,
    dtype: str,
    device: str,
    threads: int | None,
    recipes: str,
    keep: str,
    tasks: str,
    modes: str,
    length: str,
    seeds: int,
    cases: int,
    chat: bool,
    decode_steps: int,
    rounds: int,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Measure what recipes cost and save on a model, against the host's own cache.

    Writes results.jsonl and report.html to the run folder; the same command again goes on where a
    run was stopped.

    \b
    Example:
      recollect eval --model tiny-llama --recipes snapkv,knorm,'snapkv + kivi' \\
          --keep 0.5,0.25 --tasks needle-keys,code --seeds 3 --out runs/mine
    """
    from recollect.evaluate.caches import split_recipes
    from recollect.evaluate.runs import Settings
    from recollect.evaluate.tasks import TASKS

    settings = Settings(
        recipes=tuple(split_recipes(recipes)),
        keeps=keeps(keep),
        tasks=tuple(TASKS) if tasks == "all" else words(tasks),
        modes=words(modes),
        lengths=counts(length, "length"),
        seeds=seeds,
        cases=cases,
        chat=chat,
        decode_steps=decode_steps,
        speed_rounds=rounds,
    )
    settings.variants()  # a wrong recipe is told before the model is loaded
    subject = load_model(model, dtype, device, threads)
    folder = folder or Path("runs") / Path(model).name
    measure(subject, settings, folder, as_json=as_json)


def measure(subject: Any, settings: Any, folder: Path, *, as_json: bool) -> None:
    """Run with a progress bar, then print the table and write the report."""
    from recollect.cli import tables
    from recollect.evaluate.report import write_page

    records = _with_bar(subject, settings, folder)
    page = write_page(folder)
    if as_json:
        print_json({
            "run": str(folder), "results": str(folder / "results.jsonl"), "report": str(page),
            "rows": tables.summarize(records),
        })  # fmt: skip
        return
    tables.show(records)
    out.print(f"\nresults  {folder / 'results.jsonl'}\nreport   {page}", soft_wrap=True)


def _with_bar(subject: Any, settings: Any, folder: Path) -> list[dict[str, Any]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from recollect.evaluate import runs

    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    bar = Progress(*columns, console=err, refresh_per_second=4)
    line = bar.add_task("measuring", total=None)

    def notify(state: runs.Progress, record: dict[str, Any] | None) -> None:
        bar.start()  # not before something was measured: errors come without a bar
        what = "" if record is None else str(record.get("task", "speed"))
        bar.update(line, total=state.total, completed=state.done,
                   description=f"measuring {what:14.14}")  # fmt: skip

    try:
        return runs.run(
            subject, settings, folder,
            command=command_line(), progress=runs.Progress(notify=notify),
        )  # fmt: skip
    except KeyboardInterrupt:
        bar.stop()
        err.print("stopped; what is measured is kept, the same command goes on with it")
        raise
    finally:
        bar.stop()
