"""`recollect recipes`: what there is, with papers and parameters."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table

from recollect.cli.common import debug_option, json_option, out, print_json


@click.command()
@click.argument("name", required=False)
@click.option("--area", help="Only the recipes of one room, e.g. kv.")
@json_option
@debug_option
def recipes(name: str | None, area: str | None, as_json: bool) -> None:
    """List all recipes, or tell everything about one.

    \b
    Example:
      recollect recipes
      recollect recipes snapkv
      recollect recipes --json
    """
    from recollect.recipe import find
    from recollect.recipe import recipes as listed

    if name is not None:
        recipe = find(name)
        print_json(_as_dict(recipe)) if as_json else _show(recipe)
    elif as_json:
        print_json([_as_dict(recipe) for recipe in listed(area)])
    else:
        _list(listed(area))


def _as_dict(recipe: Any) -> dict[str, Any]:
    plain = ("name", "title", "authors", "year", "arxiv", "area", "summary", "reported", "status")
    return {
        **{field: getattr(recipe, field) for field in plain},
        "needs": list(recipe.needs),
        "stages": {k: repr(v) for k, v in {**recipe.fallback, **recipe.stages}.items()},
        "defaults": {
            k: v if isinstance(v, bool | int | float | str | None) else repr(v)
            for k, v in recipe.defaults.items()
        },
    }


def _list(found: list[Any]) -> None:
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it does", ratio=1)
    table.add_column("paper", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for recipe in found:
        paper = recipe.authors + (f"\n{recipe.arxiv}" if recipe.arxiv else "")
        table.add_row(f"[bold]{recipe.name}[/bold]", recipe.summary, paper, recipe.status)
    out.print(table)


def _show(recipe: Any) -> None:
    about = _as_dict(recipe)
    out.print(f"[bold]{recipe.name}[/bold]  {recipe.summary}\n", soft_wrap=True)
    rows = {
        "paper": f"{recipe.authors}: {recipe.title}",
        "arXiv": recipe.arxiv,
        "reported": recipe.reported,
        "stages": "\n".join(f"{kind}: {stage}" for kind, stage in about["stages"].items()),
        "arguments": ", ".join(f"{k}={v}" for k, v in about["defaults"].items()),
        "needs": ", ".join(recipe.needs),
        "status": recipe.status,
    }
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(ratio=1)
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    out.print(table)
