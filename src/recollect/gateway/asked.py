"""One request as the gateway understands it: read whole, checked for what routing needs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect, Request

from recollect.answers.identity import parse
from recollect.errors import RecipeError
from recollect.gateway import headers as hd
from recollect.gateway.callers import Caller
from recollect.gateway.directives import Directives, read_directives
from recollect.gateway.gateway import Gateway
from recollect.gateway.refusals import Refusal


@dataclass
class Asked:
    """A request that may be answered.

    Attributes:
        pairs, headers: names in lower case; as sent, and the last value of each.
        body: as sent.
        document: the body, parsed with its number literals.
        caller: who asks.
        directives: what is asked of the cache.
        began: `time.perf_counter` when it arrived.
    """

    pairs: hd.Pairs
    headers: Mapping[str, str]
    body: bytes
    document: dict[str, Any]
    caller: Caller
    directives: Directives
    began: float
    _gone: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def model(self) -> str:
        return str(self.document["model"])

    @property
    def streams(self) -> bool:
        return self.document.get("stream") is True

    @property
    def waited(self) -> float:
        """Seconds since it arrived."""
        return time.perf_counter() - self.began


async def read_asked(gateway: Gateway, request: Request) -> Asked:
    """Read a request. Raises Refusal for whatever is wrong with it."""
    began = time.perf_counter()
    pairs = hd.of_request(request.headers.raw)
    headers = dict(pairs)
    caller = gateway.callers.identify(headers)
    directives = read_directives(headers)
    body = await read_body(request, gateway.config.max_body)
    try:
        document = parse(body)
    except RecipeError as error:
        raise Refusal(400, f"{error}", "invalid_json") from None
    if not isinstance(document.get("model"), str) or not document["model"]:
        raise Refusal(400, "'model' must be the name of a model", "invalid_model")
    if not isinstance(document.get("stream", False), bool | None):
        raise Refusal(400, "'stream' must be true or false", "invalid_stream")
    gateway.budgets.admit(caller.spends)
    return Asked(pairs, headers, body, document, caller, directives, began)


async def read_body(request: Request, limit: int) -> bytes:
    """The body. Raises Refusal (413) as soon as it is longer than `limit` bytes."""
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            parts.append(part)
    except ClientDisconnect:
        raise Refusal(400, "the request broke off", "incomplete_request") from None
    return b"".join(parts)


def _too_large(limit: int) -> Refusal:
    return Refusal(
        413,
        f"the request is larger than {limit} bytes (the gateway's max_body)",
        "request_too_large",
        {"connection": "close"},
    )
