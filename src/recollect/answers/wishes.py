"""What a caller asks of the cache in its request headers.

`Cache-Control: no-cache`, `no-store` and `max-age=seconds` as HTTP defines them (RFC 9111);
`X-Recollect-Cache: bypass` means neither read nor write, `exact` no answer to a similar request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple


class Wishes(NamedTuple):
    """May the cache be read, written, compared by similarity; the oldest answer, in seconds."""

    read: bool = True
    write: bool = True
    semantic: bool = True
    max_age: float = math.inf


def wishes(headers: Mapping[str, str] | None) -> Wishes:
    """Read the headers; what is not understood asks for nothing, a broken max-age for no reuse."""
    if not headers:
        return Wishes()
    lowered = {name.lower(): value.lower() for name, value in headers.items()}
    ours = lowered.get("x-recollect-cache", "").strip()
    directives = [part.strip() for part in lowered.get("cache-control", "").split(",")]
    max_age = math.inf
    for directive in directives:
        if directive.startswith("max-age="):
            seconds = directive.removeprefix("max-age=")
            max_age = min(max_age, float(seconds) if seconds.isdecimal() else 0.0)
    return Wishes(
        read=ours != "bypass" and not {"no-cache", "no-store"} & set(directives),
        write=ours != "bypass" and "no-store" not in directives,
        semantic=ours != "exact",
        max_age=max_age,
    )
