"""`recollect serve gateway`: the response cache in front of an engine."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path
from typing import Any

import click

from recollect.cli.common import debug_option, err, json_option, print_json
from recollect.errors import GatewayError

_DEFAULT_STORE = "sqlite:///recollect-answers.db"


@click.command()
@click.option("--upstream", metavar="URL", help="Engine or provider, with or without /v1.")
@click.option("--anthropic-upstream", metavar="URL", help="For /v1/messages, where it is another.")
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    help="YAML with the same settings and more: tenants, prices. Options go before it.",
)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--store",
    metavar="URL",
    help=f"memory, sqlite:///, redis://, postgresql://. [default: {_DEFAULT_STORE}]",
)
@click.option("--recipe", help="Recipe of the area answers. [default: exact]")
@click.option(
    "--scope",
    type=click.Choice(["user", "team", "tenant", "global"]),
    help="Who shares answers. [default: user]",
)
@click.option(
    "--keep",
    metavar="A,B",
    help="How stored answers may end: stop,length,tool_calls … [default: stop]",
)
@click.option(
    "--disclose",
    type=click.Choice(["nothing", "hits", "debug"]),
    help="What headers say about hits. [default: hits]",
)
@click.option("--floor", is_flag=True, help="Hits take as long as misses do.")
@click.option("--audit", metavar="FILE", help="Keep the audit log in this file.")
@click.option("--budgets", metavar="FILE", help="Keep what was spent in this SQLite file.")
@click.option("--trace", is_flag=True, help="OpenTelemetry spans, to OTEL_EXPORTER_OTLP_ENDPOINT.")
@json_option
@debug_option
def gateway(
    file: Path | None, host: str, port: int, keep: str | None, as_json: bool, **options: Any
) -> None:
    """Put a response cache in front of an OpenAI- or Anthropic-compatible engine.

    Repeated requests are answered from the store, byte for byte or as valid streams; identical
    requests at the same time make one call. Callers see their own answers only, unless --scope
    says otherwise. Secrets come from the environment: RECOLLECT_ADMIN_KEY (dashboard, purge; one
    is made up and printed when unset), RECOLLECT_UPSTREAM_KEY (goes up instead of the callers'),
    RECOLLECT_SECRET (hides callers in the store; kept with the store when unset).

    \b
    Example:
      recollect serve gateway --upstream http://localhost:8000
      recollect serve gateway --config gateway.yaml --store redis://localhost
    """
    try:
        import uvicorn

        from recollect.answers.backends.base import shown
        from recollect.gateway.app import create_app
        from recollect.gateway.config import build_config, read_settings
        from recollect.gateway.gateway import Gateway
    except ImportError as error:
        raise GatewayError(
            f"the gateway needs {error.name}: pip install recollect[gateway]"
        ) from error

    given = {name: value for name, value in options.items() if value not in (None, False)}
    if keep is not None:
        given["keep"] = [word.strip() for word in keep.split(",")]
    for name in ("admin_key", "upstream_key", "secret"):
        if value := os.environ.get(f"RECOLLECT_{name.upper()}"):
            given[name] = value
    made_up = secrets.token_urlsafe(16)
    defaults = {"store": _DEFAULT_STORE, "admin_key": made_up}
    found = read_settings(file) if file else {}
    config = build_config({**defaults, **found, **given})

    listener = _listen(host, port)
    address = f"http://{host}:{listener.getsockname()[1]}"
    app = create_app(gateway=Gateway(config))
    dashboard = f"{address}/recollect"
    if config.admin_key == made_up:
        dashboard += f"#key={made_up}"
    if as_json:
        print_json({"address": address, "dashboard": dashboard, "store": shown(config.store)})
    else:
        err.print(f"gateway    {address}  →  {config.upstream}", soft_wrap=True)
        err.print(f"dashboard  {dashboard}", soft_wrap=True)
        err.print(
            f"answers    {shown(config.store)}, recipe {config.recipe}, shared per {config.scope}"
        )
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            server_header=False,
            date_header=False,
            access_log=False,
            timeout_graceful_shutdown=10,
        )
    )
    server.run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises GatewayError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)  # who connects before the server is ready waits
    except OSError as error:
        reason = error.strerror or error
        raise GatewayError(
            f"cannot listen on {host}:{port}: {reason}; try another --port"
        ) from error
    return listener
