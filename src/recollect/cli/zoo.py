"""`recollect zoo`: the tiny trained models that ship with the package."""

from __future__ import annotations

import click


@click.group()
def zoo() -> None:
    """The tiny trained models that ship with the package."""
