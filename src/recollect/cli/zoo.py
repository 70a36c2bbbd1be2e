"""`recollect zoo`: the tiny trained models that ship with the package."""

from __future__ import annotations

import click
from rich.table import Table

from recollect.cli.common import debug_option, json_option, out, print_json


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
    from recollect.zoo.architectures import CONFIGS

    found = [{"name": name, "path": str(models.path(name))} for name in CONFIGS]
    if as_json:
        print_json(found)
        return
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("model", no_wrap=True)
    table.add_column("folder", overflow="fold")
    for model in found:
        table.add_row(model["name"], model["path"])
    out.print(table)
