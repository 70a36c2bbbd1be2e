"""The command line: ``recollect demo | eval | generate | recipes | serve`` and more."""

from __future__ import annotations

import click

from recollect import __version__
from recollect.cli.calibrate import calibrate
from recollect.cli.calibrate_diffusion import calibrate_diffusion
from recollect.cli.common import Group, debug_option
from recollect.cli.demo import demo
from recollect.cli.diffusion import eval_diffusion, plan_diffusion
from recollect.cli.evaluate import evaluate
from recollect.cli.gateway import gateway
from recollect.cli.generate import generate
from recollect.cli.recipes import recipes
from recollect.cli.redteam import redteam
from recollect.cli.report import report
from recollect.cli.serve import serve
from recollect.cli.store import store
from recollect.cli.zoo import zoo


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="recollect")
@debug_option
def main() -> None:
    """Caching as a first-class, composable thing across generative-AI inference.

    \b
    Start with:
      recollect demo                         what recipes cost and save, in three minutes
      recollect recipes                      what there is
      recollect eval --model PATH_OR_ID      the same on your own checkpoint
    """


for _command in (
    demo,
    evaluate,
    report,
    generate,
    calibrate,
    recipes,
    redteam,
    serve,
    store,
    zoo,
    plan_diffusion,
    eval_diffusion,
    calibrate_diffusion,
):
    main.add_command(_command)
serve.add_command(gateway)
