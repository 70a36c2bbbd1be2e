"""Answers on their way down: responses with headers in order, what a hit discloses, errors."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING

from starlette.responses import Response, StreamingResponse

from recollect.answers import Lookup
from recollect.gateway import documents
from recollect.gateway import headers as hd
from recollect.gateway.asked import Asked
from recollect.gateway.board import Outcome
from recollect.gateway.config import GatewayConfig
from recollect.gateway.gateway import Gateway
from recollect.gateway.protocols import Protocol
from recollect.gateway.refusals import Refusal

if TYPE_CHECKING:
    from recollect.gateway.incontext.routes import Route

CACHE = "x-recollect-cache"
_UNPRINTABLE = re.compile(r"[^ -~]")


def reply(status: int, headers: hd.Pairs, body: bytes | AsyncIterator[bytes]) -> Response:
    """A response with exactly these headers, those of the body's length aside."""
    response: Response
    if isinstance(body, bytes):
        response = Response(status_code=status)
        response.body = body
        headers = [pair for pair in headers if pair[0].lower() != "content-length"]
        headers.append(("content-length", str(len(body))))
    else:
        response = StreamingResponse(body, status_code=status)
    response.raw_headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers
    ]
    return response


def refuse(protocol: Protocol, refusal: Refusal) -> Response:
    """An error of ours in the protocol's own words."""
    body = documents.dump(protocol.error(refusal.status, str(refusal), refusal.code))
    headers = [("content-type", "application/json"), *refusal.headers.items()]
    return reply(refusal.status, headers, body)


def disclosed(
    config: GatewayConfig,
    kind: str,
    lookup: Lookup | None,
    bypass: str = "",
    route: Route | None = None,
) -> hd.Pairs:
    """Headers that say how the answer came about, as far as the configuration lets them.

    Similarity and the reasons of misses help those who probe for thresholds: debug only.
    """
    if config.disclose == "nothing" or config.floor:
        return []
    hit = lookup is not None and lookup.hit and kind in ("exact", "semantic")
    told = {CACHE: "hit" if hit else kind}
    if bypass:
        told["x-recollect-reason"] = bypass
    if hit and lookup is not None and lookup.entry is not None:
        told |= {
            "age": str(int(lookup.age)),
            "x-recollect-tier": lookup.tier,
            "x-recollect-entry": str(lookup.entry.id),
            "x-recollect-usage": "stored",
        }
    if config.disclose == "debug" and lookup is not None:
        told["x-recollect-reason"] = bypass or lookup.reason
        if hit:
            told["x-recollect-similarity"] = f"{lookup.similarity:.4f}"
    if route is not None:
        told |= {
            "x-recollect-model": route.model,
            "x-recollect-examples": str(route.examples),
            "x-recollect-answer": route.id,
        }
        if route.wants_feedback:
            told["x-recollect-feedback"] = "wanted"
    # Reasons may quote the request: only what a header can carry.
    return [(name, _UNPRINTABLE.sub("?", value)) for name, value in told.items()]


def outcome(
    gateway: Gateway, protocol: str, asked: Asked, kind: str, reason: str
) -> Callable[..., Outcome]:
    """What the board is told of a request, up to what only its end shows."""
    return partial(
        Outcome,
        at=gateway.clock.now(),
        protocol=protocol,
        model=asked.model,
        tenant=asked.caller.tenant,
        kind=kind,
        reason=reason,
        seconds=asked.waited,
    )
