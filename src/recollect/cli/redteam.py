"""`recollect redteam`: plant colliding keys in a semantic cache and count who is served them."""

from __future__ import annotations

import json
from typing import Any

import click

from recollect.cli.common import debug_option, err, json_option, out
from recollect.errors import RecipeError


@click.command()
@click.option("--encoder", "name", default="minilm", show_default=True,
              type=click.Choice(["minilm", "ngram"]), help="Of the attacked cache.")  # fmt: skip
@click.option("--min-similarity", type=click.FloatRange(-1, 1),
              help="Its threshold.  [default: 0.8, ngram 0.5]")  # fmt: skip
@click.option("--defence", "defences", multiple=True, metavar="NAME",
              help="none, contrast, coverage, pair, guards, quarantine, 'user scope'; "
              "may be repeated.  [default: all; pair with minilm only]")  # fmt: skip
@click.option("--level", "levels", multiple=True, metavar="NAME",
              help="concatenation, splice, adaptive, gradient (needs MiniLM's weights; minutes); "
              "may be repeated.  [default: all but gradient]")  # fmt: skip
@click.option("--victims", default=6, show_default=True, type=click.IntRange(1, 16),
              help="Questions that are attacked.")  # fmt: skip
@click.option("--budget", default=24, show_default=True, type=click.IntRange(1),
              help="Probes of the adaptive attacker for each victim and instruction.")  # fmt: skip
@click.option("--seed", default=0, show_default=True)
@json_option
@debug_option
def redteam(
    name: str,
    min_similarity: float | None,
    defences: tuple[str, ...],
    levels: tuple[str, ...],
    victims: int,
    budget: int,
    seed: int,
    as_json: bool,
) -> None:
    """Attack a shared semantic cache with harmless canaries, each defence on and off.

    Success is the share of attempts after which a victim was served the planted answer; benign
    is the share of honest rewordings that still hit.

    \b
    Example:
      recollect redteam --encoder ngram --victims 4
      recollect redteam --defence none --defence guards --level adaptive --json
      recollect redteam --defence none --defence guards --level gradient --victims 2
    """
    from rich.progress import Progress
    from rich.table import Table

    from recollect.answers.encoders.base import make_encoder
    from recollect.answers.redteam import DEFENCES, LEVELS, Row, attack, threshold_of

    encoder = make_encoder(name)
    tau = threshold_of(encoder) if min_similarity is None else min_similarity
    usual = [defence for defence in DEFENCES if defence != "pair" or name == "minilm"]
    defences, levels = defences or tuple(usual), levels or LEVELS[:3]
    with Progress(console=err, transient=True) as bar:
        task = bar.add_task("attacking", total=len(defences) * len(levels))

        def show(row: Row) -> None:
            bar.update(task, advance=1, description=f"{row.defence}, {row.level}")

        rows = attack(
            encoder, min_similarity=tau, victims=victims, budget=budget, seed=seed,
            progress=show, defences=defences,
            levels=levels,
        )  # fmt: skip
    if not any(row.benign_pairs for row in rows):
        raise RecipeError(f"nothing honest hits at {tau}: lower --min-similarity")
    if as_json:
        report: dict[str, Any] = {"encoder": encoder.encoder_id, "min_similarity": tau}
        click.echo(json.dumps(report | {"rows": [vars(row) for row in rows]}))
        return
    table = Table("defence", "level", "success", "attempts", "probes", "benign kept")
    for row in rows:
        table.add_row(
            row.defence, row.level, f"{row.success:.1%}", str(row.attempts), str(row.probes),
            f"{row.benign:.1%} of {row.benign_pairs}",
        )  # fmt: skip
    out.print(table)
