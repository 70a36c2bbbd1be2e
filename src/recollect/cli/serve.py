"""`recollect serve`: a model behind an HTTP server, with everything of ours configured.

`recollect serve MODEL` is `recollect serve engine MODEL`; other servers are further commands of the
group.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import click

from recollect.cli.common import Group, debug_option, err, print_json


class ServeGroup(Group):
    """A group for which what is no command of it is the model to serve."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands:
            args = ["engine", *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Options of the default command may come before the model.
        if args and args[0].startswith("-") and args[0] not in ("-h", "--help"):
            args = ["engine", *args]
        return super().parse_args(ctx, args)


@click.group(cls=ServeGroup)
def serve() -> None:
    """Serve a model, or what stands in front of one.

    \b
    Example:
      recollect serve meta-llama/Llama-3.2-1B-Instruct --path ~/.cache/recollect --disk 50GiB
    """


@serve.command(context_settings={"ignore_unknown_options": True})
@click.argument("model")
@click.argument("vllm_arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--path", help="Folder of the disk tier; engines that name the same one share it.")
@click.option("--host", help="Bytes of the memory tier, e.g. 4GiB.  [default: 1GiB]")
@click.option("--disk", help="Bytes of the disk tier, e.g. 100GiB.")
@click.option("--remote", help="A remote tier: redis://… or an object store.")
@click.option("--namespace", help="Entries of other namespaces are never read.")
@click.option("--chunk", type=click.IntRange(min=0), help="Tokens per entry.  [default: near 256]")
@click.option(
    "--load",
    type=click.Choice(["auto", "sync", "async"]),
    help="Load before the forward, or while other requests run.  [default: auto]",
)
@click.option(
    "--role",
    type=click.Choice(["kv_both", "kv_producer", "kv_consumer"]),
    default="kv_both",
    show_default=True,
    help="For disaggregated prefill.",
)
@click.option("--dry-run", is_flag=True, help="Print the command instead of running it.")
@click.option("--json", "as_json", is_flag=True, help="Print the command as JSON, and no more.")
@debug_option
def engine(
    model: str,
    vllm_arguments: tuple[str, ...],
    role: str,
    dry_run: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Start vLLM with recollect's KV store. Unknown options go to `vllm serve`.

    \b
    Example:
      recollect serve engine Qwen/Qwen3-0.6B --path /srv/kv --remote redis://kv:6379 --port 8001
    """  # fmt: skip
    from recollect.vllm.launch import command

    extra = {name: value for name, value in chosen.items() if value is not None}
    if "path" in extra:
        extra["path"] = str(Path(extra["path"]).expanduser().resolve())
    if model.startswith("zoo/"):
        from recollect import zoo

        model = zoo.path(model.removeprefix("zoo/"))
    arguments = command(model, extra, role, vllm_arguments)
    if as_json:
        print_json(arguments)
        return
    if dry_run:
        click.echo(shlex.join(arguments))
        return
    err.print(f"starting vLLM: {model}")
    os.execv(arguments[0], arguments)
