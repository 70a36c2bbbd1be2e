"""Embeddings, item by item: what is stored is taken, what is under way is waited for, and only
the rest goes upstream, in one call. All are merged in the order that was asked for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from recollect.answers import Lookup
from recollect.answers.canonical import canonical
from recollect.answers.identity import split_embeddings
from recollect.errors import GatewayError
from recollect.gateway import documents
from recollect.gateway import headers as hd
from recollect.gateway.asked import Asked, read_asked
from recollect.gateway.floor import Times
from recollect.gateway.gateway import Gateway
from recollect.gateway.protocols.embeddings import Embeddings, join_documents, split_document
from recollect.gateway.refusals import Refusal
from recollect.gateway.replies import disclosed, outcome, refuse, reply
from recollect.gateway.tracing import Span
from recollect.gateway.upstream import Head, decoder


@dataclass(frozen=True)
class _Failure:
    """What every item of a failed call gets: the upstream's own answer, or a refusal of ours."""

    head: Head | None = None
    body: bytes = b""
    refusal: Refusal | None = None


class EmbeddingFront:
    """Answers embeddings requests."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway, self._protocol = gateway, Embeddings()
        self._under_way: dict[Hashable, asyncio.Future[bytes | _Failure]] = {}

    async def __call__(self, request: Request) -> Response:
        """The answer to a request."""
        gateway = self._gateway
        try:
            asked = await read_asked(gateway, request)
            with gateway.tracing.request(f"embeddings {asked.model}", asked.headers) as span:
                return await self._answer(asked, span)
        except Refusal as refusal:
            return refuse(self._protocol, refusal)

    async def _answer(self, asked: Asked, span: Span | None) -> Response:
        gateway = self._gateway
        items = split_embeddings(asked.document)
        with gateway.tracing.step("lookup", span):
            lookups = await gateway.cache.lookup_each(
                items,
                protocol="embeddings",
                scope_id=asked.caller.scope_id,
                user=asked.caller.id,
                category=asked.directives.category,
                headers=asked.headers,
            )
        unread = next((lookup for lookup in lookups if not lookup.readable), None)
        if unread is not None:
            raise Refusal(400, unread.reason, "invalid_json")
        times = None
        if gateway.config.floor:
            times = gateway.floor.draw(("embeddings", len(items) > 1, asked.model))
        if gateway.config.floor and times is None:
            found: list[Any] = [None] * len(items)
        else:
            found = [lookup.response if lookup.hit else None for lookup in lookups]
        stored = sum(part is not None for part in found)
        if stored < len(items) and asked.directives.only:
            raise Refusal(504, "not every item is stored, and only-if-cached was asked for",
                          "not_cached")  # fmt: skip
        waiting = self._board(asked, items, lookups, found, span)
        for at, future in waiting.items():
            found[at] = await asyncio.shield(future)
        self._note(asked, lookups, stored, len(items))
        failed = next((part for part in found if isinstance(part, _Failure)), None)
        if failed is not None:
            if failed.refusal is not None:
                raise failed.refusal
            assert failed.head is not None
            return reply(failed.head.status, failed.head.headers, failed.body)
        if times is not None and stored == len(items):
            await gateway.floor.wait(times.last - asked.waited)
        body = found[0] if len(items) == 1 else join_documents(found)
        kind = "exact" if stored == len(items) else "miss"
        told = disclosed(gateway.config, kind, lookups[0])
        if told and len(items) > 1:
            told.append(("x-recollect-items", f"stored={stored}, fetched={len(items) - stored}"))
        return reply(200, [("content-type", "application/json"), *told], body)

    def _board(
        self,
        asked: Asked,
        items: list[dict[str, Any]],
        lookups: list[Lookup],
        found: list[Any],
        span: Span | None,
    ) -> dict[int, asyncio.Future[bytes | _Failure]]:
        """A future for each item that is not stored; those nobody fetches are fetched now."""
        loop = asyncio.get_running_loop()
        waiting: dict[int, asyncio.Future[bytes | _Failure]] = {}
        ours: dict[int, Hashable | None] = {}
        for at, lookup in enumerate(lookups):
            if found[at] is not None:
                continue
            key = _item_key(asked, lookup)
            if key is None or key not in self._under_way:
                future: asyncio.Future[bytes | _Failure] = loop.create_future()
                ours[at] = key
                if key is not None:
                    self._under_way[key] = future
            else:
                future = self._under_way[key]
            waiting[at] = future
        if ours:
            futures = [waiting[at] for at in ours]
            call = self._fetch(
                asked, [items[at] for at in ours], [lookups[at] for at in ours], futures, span
            )
            self._gateway.beside(self._fly(call, list(ours.values()), futures))
        return waiting

    async def _fly(
        self,
        call: Any,
        keys: list[Hashable | None],
        futures: list[asyncio.Future[bytes | _Failure]],
    ) -> None:
        """Run a call; whatever happens, nobody is left waiting."""
        try:
            await call
        except Refusal as refusal:
            _land(futures, _Failure(refusal=refusal))
        finally:
            for key in keys:
                if key is not None:
                    self._under_way.pop(key, None)
            _land(futures, _Failure(refusal=Refusal(500, "the gateway failed", "internal_error")))

    async def _fetch(
        self,
        asked: Asked,
        items: list[dict[str, Any]],
        lookups: list[Lookup],
        futures: list[asyncio.Future[bytes | _Failure]],
        span: Span | None,
    ) -> None:
        gateway, config = self._gateway, self._gateway.config
        address = config.address(asked.model, "embeddings")
        began = time.perf_counter()
        everything = len(items) == len(split_embeddings(asked.document))
        wanted = {**asked.document, "input": [item["input"] for item in items]}
        headers = hd.upwards(asked.pairs, config.upstream_key, asked.caller.known)
        async with gateway.upstream.open(
            "POST",
            address + self._protocol.path,
            gateway.tracing.carried(headers, span),
            asked.body if everything else documents.dump(wanted),
        ) as response:
            body = await response.read()
        if response.head.status >= 400:
            _land(futures, _Failure(response.head, body))
            return
        sizes = [len(canonical(item.get("input"))) for item in items]
        try:
            decode = decoder(response.head.encoding)
            if decode is None:
                raise GatewayError(f"the encoding {response.head.encoding} is not read here")
            plain = decode(body)
            parts = split_document(plain, sizes)
        except Exception as error:
            if not everything:
                text = f"the upstream's embeddings are not readable: {error}"
                raise Refusal(502, text, "upstream_unreadable") from error
            # The client may understand what we do not: it gets what came.
            _land(futures, _Failure(response.head, body))
            return
        if len(items) == 1:
            parts = [plain]  # byte for byte
        for future, part in zip(futures, parts, strict=True):
            future.set_result(part)
        seconds = time.perf_counter() - began
        times = Times(asked.waited, asked.waited)
        gateway.floor.learn(("embeddings", len(items) > 1, asked.model), times)
        await self._keep(asked, lookups, parts, seconds)

    async def _keep(
        self, asked: Asked, lookups: list[Lookup], parts: list[bytes], seconds: float
    ) -> None:
        gateway = self._gateway
        price = gateway.config.price(asked.model)
        for lookup, part in zip(lookups, parts, strict=True):
            usage = self._protocol.usage(documents.load_object(part))
            tokens = usage.total if usage is not None else len(asked.body) // 4 // len(parts)
            money = price.input * tokens / 1e6
            gateway.budgets.charge(asked.caller.spends, tokens, money)
            gateway.board.spend(tokens, money, 0)
            if lookup.ticket is None or len(part) > gateway.config.max_answer:
                continue
            facts: dict[str, Any] = {"status": 200, "complete": True, "model": asked.model}
            facts |= {"prompt_tokens": tokens, "completion_tokens": 0, "money": money}
            if asked.directives.ttl is not None:
                facts["ttl"] = asked.directives.ttl
            stored = await gateway.cache.store(
                lookup.ticket,
                part,
                cost_seconds=seconds / len(parts),
                cost_tokens=tokens,
                facts=facts,
            )
            gateway.metrics.stored(bool(stored))

    def _note(self, asked: Asked, lookups: list[Lookup], stored: int, items: int) -> None:
        cacheable = any(lookup.ticket and lookup.ticket.identity.cacheable for lookup in lookups)
        kind = "exact" if stored == items else "miss" if cacheable else "bypass"
        reason = f"{stored} of {items} items stored" if cacheable else lookups[0].reason
        entries = [lookup.entry for lookup in lookups if lookup.entry is not None]
        about = outcome(self._gateway, "embeddings", asked, kind, reason)
        self._gateway.board.note(
            about(
                category=asked.directives.category or "",
                tokens=sum(entry.cost_tokens for entry in entries),
                money=sum(float(entry.facts.get("money", 0.0)) for entry in entries),
                saved_seconds=sum(entry.cost_seconds for entry in entries),
            )
        )


def _item_key(asked: Asked, lookup: Lookup) -> Hashable | None:
    if lookup.ticket is None or not lookup.ticket.identity.cacheable or asked.directives.fresh:
        return None
    return lookup.ticket.identity.partition, lookup.ticket.identity.exact_fp, lookup.ticket.write


def _land(futures: list[asyncio.Future[bytes | _Failure]], failure: _Failure) -> None:
    for future in futures:
        if not future.done():
            future.set_result(failure)
