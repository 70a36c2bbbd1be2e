"""What every command shares: options, errors in one line, and consoles.

Nothing here imports torch, so that `recollect --help` answers at once.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
from rich.console import Console

from recollect.errors import RecipeError, RecollectError

F = TypeVar("F", bound=Callable[..., Any])

out = Console(soft_wrap=False, highlight=False)
err = Console(stderr=True, highlight=False)


class Group(click.Group):
    """A group whose commands answer errors of ours with one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RecollectError as error:
            if debugging(ctx):
                raise
            click.echo(f"recollect: {' '.join(str(error).split())}", err=True)
            ctx.exit(2)


def debugging(ctx: click.Context) -> bool:
    """Whether tracebacks are wanted."""
    return bool(ctx.find_root().meta.get("recollect.debug"))


def debug_option(command: F) -> F:
    """`--debug`, on every command and on the group."""

    def note(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            ctx.find_root().meta["recollect.debug"] = True

    return click.option(
        "--debug", is_flag=True, expose_value=False, callback=note,
        help="Show tracebacks of errors.",
    )(command)  # fmt: skip


def json_option(command: F) -> F:
    """`--json`: results for machines on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")(command)


def model_options(command: F) -> F:
    """How a model is loaded."""
    for option in (
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads for torch."),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda, mps …"),
        click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
                     default="auto", show_default=True, help="Number format of the weights."),
        click.option("--model", "-m", required=True, metavar="PATH_OR_ID",
                     help="A zoo model, a checkpoint folder, or a hub id."),
    ):  # fmt: skip
        command = option(command)
    return command


def load_model(name: str, dtype: str, device: str, threads: int | None) -> Any:
    """The model and its tokenizer, loaded quietly."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with err.status(f"loading {name} …"):
        import torch
        from transformers.utils import logging

        from recollect.evaluate import subject

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        if threads is not None:
            torch.set_num_threads(threads)  # our own kernels follow it
        return subject.load(name, dtype=dtype, device=device)


def words(text: str) -> tuple[str, ...]:
    """Read ``a,b,c``."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def keeps(text: str) -> tuple[float | int, ...]:
    """Read ``0.5,0.25,128``: fractions with a point, numbers of tokens without."""
    found: list[float | int] = []
    for word in words(text):
        try:
            found.append(int(word) if word.isdigit() and word != "1" else float(word))
        except ValueError:
            raise RecipeError(
                f"keep '{word}' is neither a fraction nor a number of tokens; "
                "write e.g. --keep 0.5,0.25 or --keep 256"
            ) from None
    if not found:
        raise RecipeError("no keep given; write e.g. --keep 0.5,0.25")
    return tuple(found)


def counts(text: str, name: str) -> tuple[int, ...]:
    """Read ``512,1024``."""
    try:
        found = tuple(int(word) for word in words(text))
    except ValueError:
        raise RecipeError(f"{name} takes whole numbers like 512,1024, not '{text}'") from None
    if not found:
        raise RecipeError(f"no {name} given")
    return found


def print_json(value: Any) -> None:
    """JSON on stdout."""
    click.echo(json.dumps(value, indent=2))


def command_line() -> str:
    """The command as it was typed."""
    return shlex.join(["recollect", *sys.argv[1:]])
