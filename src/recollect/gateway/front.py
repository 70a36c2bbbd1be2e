"""The journey of one request that generates: who asks, is it stored, is it under way, ask upstream.

A hit is answered from the store, as a document or as the stream that was asked for. A miss boards
the flight of its kind or starts one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Hashable

from starlette.requests import Request
from starlette.responses import Response

from recollect.answers import Lookup
from recollect.answers.canonical import canonical
from recollect.gateway import documents
from recollect.gateway.asked import Asked, read_asked
from recollect.gateway.flight import Flight
from recollect.gateway.floor import Times
from recollect.gateway.gateway import Gateway
from recollect.gateway.generation import Generation
from recollect.gateway.protocols import Protocol
from recollect.gateway.refusals import Refusal
from recollect.gateway.replies import CACHE, disclosed, outcome, refuse, reply
from recollect.gateway.tracing import Span


class Front:
    """Answers requests of one protocol."""

    def __init__(self, gateway: Gateway, protocol: Protocol) -> None:
        self._gateway, self._protocol = gateway, protocol

    async def __call__(self, request: Request) -> Response:
        """The answer to a request; errors of ours are in the protocol's own words."""
        gateway, protocol = self._gateway, self._protocol
        try:
            asked = await read_asked(gateway, request)
        except Refusal as refusal:
            return refuse(protocol, refusal)
        with gateway.tracing.request(f"{protocol.name} {asked.model}", asked.headers) as span:
            try:
                response = await self._answer(request, asked, span)
            except Refusal as refusal:
                about = outcome(gateway, protocol.name, asked, "error", str(refusal))
                gateway.board.note(about(status=refusal.status))
                response = refuse(protocol, refusal)
            if span is not None:
                span.set_attribute("gen_ai.request.model", asked.model)
                span.set_attribute("http.response.status_code", response.status_code)
                span.set_attribute("recollect.cache", response.headers.get(CACHE, ""))
        return response

    async def _answer(self, request: Request, asked: Asked, span: Span | None) -> Response:
        bypass = self._protocol.bypass(asked.document)
        lookup = None
        if not bypass:
            with self._gateway.tracing.step("lookup", span):
                lookup = await self._look_up(asked)
            if not lookup.readable:
                raise Refusal(400, lookup.reason, "invalid_json")
            if lookup.ticket is not None and not lookup.ticket.identity.cacheable:
                bypass = lookup.reason
            if lookup.hit and not bypass:
                replayed = await self._replay(asked, lookup)
                if replayed is not None:
                    return replayed
        if asked.directives.only:
            raise Refusal(504, "no stored answer, and only-if-cached was asked for", "not_cached")
        return await self._forward(request, asked, None if bypass else lookup, bypass, span)

    async def _look_up(self, asked: Asked) -> Lookup:
        return await self._gateway.cache.lookup(
            asked.document,
            protocol=self._protocol.name,
            scope_id=asked.caller.scope_id,
            user=asked.caller.id,
            conversation=asked.directives.conversation,
            category=asked.directives.category,
            load=self._gateway.load_before(asked.model, self._protocol.name),
            headers=asked.headers,
        )

    # Hits ---------------------------------------------------------------------------------------

    async def _replay(self, asked: Asked, lookup: Lookup) -> Response | None:
        """The stored answer, or None where it cannot answer this request after all."""
        gateway, entry = self._gateway, lookup.entry
        assert entry is not None
        times = None
        if gateway.config.floor:
            times = gateway.floor.draw((self._protocol.name, asked.streams, asked.model))
            if times is None:
                return None
        chunks, kind = [entry.response], "application/json"
        if asked.streams:
            document = documents.load_object(entry.response)
            if self._protocol.replayable(document, asked.document):
                return None
            chunks = list(self._protocol.replay(document, asked.document))
            kind = "text/event-stream; charset=utf-8"
        told = disclosed(gateway.config, lookup.tier, lookup)
        about = outcome(gateway, self._protocol.name, asked, lookup.tier, lookup.reason)
        if times is not None:
            await gateway.floor.wait(times.first - asked.waited)
        gateway.board.note(
            about(
                category=entry.category,
                similarity=lookup.similarity if lookup.tier == "semantic" else None,
                age=lookup.age,
                tokens=entry.cost_tokens,
                money=float(entry.facts.get("money", 0.0)),
                saved_seconds=max(0.0, entry.cost_seconds - asked.waited),
            )
        )
        headers = [("content-type", kind), *told]
        if times is None or not asked.streams:
            return reply(200, headers, b"".join(chunks))
        return reply(200, headers, self._paced(chunks, times, asked))

    async def _paced(self, chunks: list[bytes], times: Times, asked: Asked) -> AsyncIterator[bytes]:
        """Chunks spread from now to the time of the last byte."""
        floor, begun = self._gateway.floor, time.perf_counter()
        left = max(0.0, times.last - asked.waited)
        for number, chunk in enumerate(chunks):
            due = left * number / max(1, len(chunks) - 1)
            await floor.wait(due - (time.perf_counter() - begun))
            yield chunk
        await floor.wait(left - (time.perf_counter() - begun))

    # Misses -------------------------------------------------------------------------------------

    async def _forward(
        self,
        request: Request,
        asked: Asked,
        lookup: Lookup | None,
        bypass: str,
        span: Span | None,
    ) -> Response:
        gateway = self._gateway
        generation = Generation(gateway, self._protocol, asked, lookup, span)
        flight, joined = gateway.flights.join(self._flight_key(asked, lookup), generation.fly)
        passenger = _Passenger(flight, request)
        try:
            head = await flight.headed()
            body: bytes | AsyncIterator[bytes]
            if head.streams:
                encoded = head.encoding not in ("", "identity")
                body = self._stream(passenger, encoded)
            else:
                body = await flight.read()
        except BaseException:
            passenger.leave()
            raise
        kind = "shared" if joined else "bypass" if bypass else "miss"
        reason = bypass or (lookup.reason if lookup is not None else "")
        about = outcome(gateway, self._protocol.name, asked, kind, reason)
        category = lookup.ticket.category if lookup is not None and lookup.ticket else ""
        gateway.board.note(about(category=category, status=head.status))
        told = disclosed(gateway.config, kind, lookup, bypass, flight.route)
        headers = [*head.headers, *told]
        if isinstance(body, bytes):
            passenger.leave()
        return reply(head.status, headers, body)

    def _flight_key(self, asked: Asked, lookup: Lookup | None) -> Hashable | None:
        """What makes requests identical while one is under way; None never shares.

        Besides the identity: what changes the bytes of an answer without changing what it says.
        """
        if lookup is None or lookup.ticket is None or asked.directives.fresh:
            return None
        identity = lookup.ticket.identity
        options = canonical(asked.document.get("stream_options"))
        encodings = asked.headers.get("accept-encoding", "")
        return identity.partition, identity.exact_fp, options, encodings, lookup.ticket.write

    async def _stream(self, passenger: _Passenger, encoded: bool) -> AsyncIterator[bytes]:
        try:
            async for chunk in passenger.flight.chunks():
                yield chunk
        except Refusal as refusal:
            if encoded:
                raise  # the connection breaks: nothing can be said within compressed bytes
            yield self._protocol.broken(str(refusal))
        finally:
            passenger.leave()


class _Passenger:
    """One client's place on a flight; it is given up once, also when the client goes away."""

    def __init__(self, flight: Flight, request: Request) -> None:
        self.flight = flight
        self._left = False
        self._watch = asyncio.get_running_loop().create_task(self._until_gone(request))

    def leave(self) -> None:
        if not self._left:
            self._left = True
            self._watch.cancel()
            self.flight.leave()

    async def _until_gone(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        if not self._left:
            self._left = True
            self.flight.leave()
