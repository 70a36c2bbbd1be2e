"""What a request's headers say about the cache, beyond what `Answers` reads itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from recollect.answers.wishes import wishes
from recollect.gateway.refusals import Refusal

CONVERSATION = "x-recollect-conversation"
CATEGORY = "x-recollect-category"
TTL = "x-recollect-ttl"


@dataclass(frozen=True)
class Directives:
    """What the client asks of the cache.

    Attributes:
        fresh: a stored answer will not do, nor one that others wait for already.
        only: nothing but a stored answer will do.
        ttl: how long the answer may be stored, in seconds.
        conversation: names the conversation that this request goes on with.
        category: of the query, where the client knows it.
    """

    fresh: bool = False
    only: bool = False
    ttl: float | None = None
    conversation: str | None = None
    category: str | None = None


_NOTHING = Directives()
_ASKING = ("cache-control", "x-recollect-cache", CONVERSATION, CATEGORY, TTL)


def read_directives(headers: Mapping[str, str]) -> Directives:
    """Read the headers. Raises Refusal (400) for a number that is none."""
    if not any(name in headers for name in _ASKING):
        return _NOTHING
    control = headers.get("cache-control", "").lower()
    return Directives(
        fresh=not wishes(headers).read,
        only="only-if-cached" in [part.strip() for part in control.split(",")],
        ttl=_seconds(headers.get(TTL)),
        conversation=headers.get(CONVERSATION) or None,
        category=headers.get(CATEGORY) or None,
    )


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,10}", text.strip()):
        raise Refusal(400, f"{TTL} '{text}' is not a number of seconds", "invalid_header")
    return float(text)
