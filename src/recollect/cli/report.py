"""`recollect report`: write a run's report again, or a still picture of it."""

from __future__ import annotations

from pathlib import Path

import click

from recollect.cli.common import debug_option, json_option, out, print_json


@click.command()
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN_DIR")
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    help="Where to write the page. [default: RUN_DIR/report.html]",
)
@click.option(
    "--svg",
    type=click.Path(path_type=Path),
    help="Write the picture of quality against bytes here, and no page.",
)
@click.option("--mode", default="agnostic", show_default=True, help="Mode of the picture.")
@click.option(
    "--metric",
    default="tokens",
    show_default=True,
    help="Metric of the picture: tokens, exact, logprob, kl.",
)
@json_option
@debug_option
def report(
    run: Path, html: Path | None, svg: Path | None, mode: str, metric: str, as_json: bool
) -> None:
    """Write the report of a finished or unfinished run.

    \b
    Example:
      recollect report runs/demo --svg docs/frontier.svg
    """
    from recollect.evaluate.report import write_page, write_still

    written = {}
    if svg is not None:
        written["svg"] = str(write_still(run, svg, mode=mode, metric=metric))
    if svg is None or html is not None:
        written["html"] = str(write_page(run, html))
    if as_json:
        print_json(written)
    else:
        for path in written.values():
            out.print(path, soft_wrap=True)
