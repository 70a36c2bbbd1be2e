"""A miss: one call upstream, forwarded byte for byte, and kept when it was complete.

What the client gets is never changed: the assembler reads along, and whatever it does not
understand is passed on and not stored.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from recollect.answers import Lookup, Stored
from recollect.answers.documents import answer_text, read_document
from recollect.answers.protocols import hidden_state
from recollect.errors import GatewayError
from recollect.gateway import documents
from recollect.gateway import headers as hd
from recollect.gateway.asked import Asked
from recollect.gateway.flight import Flight
from recollect.gateway.floor import Times
from recollect.gateway.gateway import Gateway
from recollect.gateway.load import Load
from recollect.gateway.protocols import Protocol, Usage
from recollect.gateway.sse import SSEParser
from recollect.gateway.tracing import Span
from recollect.gateway.upstream import Response, decoder

if TYPE_CHECKING:
    from recollect.gateway.incontext.routes import Route

log = logging.getLogger("recollect.gateway")

_TOO_MUCH = (400, 413, 422)  # what servers say to a prompt longer than the model's context


class Generation:
    """One call upstream.

    Args:
        lookup: what the cache said; None when the answer must not be stored.
    """

    def __init__(
        self,
        gateway: Gateway,
        protocol: Protocol,
        asked: Asked,
        lookup: Lookup | None,
        span: Span | None = None,
    ) -> None:
        self._gateway, self._protocol, self._asked = gateway, protocol, asked
        self._lookup, self._span = lookup, span
        self._model, self._bodies = asked.model, [asked.body]
        self._route: Route | None = None
        self._document: bytes | None = None  # the answer, when it is complete
        self._problem = ""  # why it is not kept
        self._events = 0
        self._first = 0.0
        self.usage = Usage()
        self.money = 0.0

    async def fly(self, flight: Flight) -> None:
        """Call, forward, settle. Raises Refusal when there is no answer."""
        gateway, asked, config = self._gateway, self._asked, self._gateway.config
        await self._plan(flight)
        address = config.address(self._model, self._protocol.name)
        load = gateway.load(address)
        began = time.perf_counter()
        headers = hd.upwards(asked.pairs, config.upstream_key, asked.caller.known)
        headers = gateway.tracing.carried(headers, self._span)
        load.in_flight += 1
        try:
            while not await self._call(flight, address + self._protocol.path, headers, load):
                self._bare()
        finally:
            load.in_flight -= 1
            self._charge(flight)
            if self._route is not None and (self._problem or self._document is None):
                self._drop(self._route)
        seconds = time.perf_counter() - began
        flight.land()
        if not self._problem:
            # A document reaches its client all at once.
            last = asked.waited
            times = Times(self._first if asked.streams else last, last)
            gateway.floor.learn((self._protocol.name, asked.streams, asked.model), times)
        others = flight.boarded - 1
        category = self._lookup.ticket.category if self._lookup and self._lookup.ticket else ""
        gateway.board.spare(category, others * self.usage.total, others * self.money)
        stored = await self._keep(flight, seconds)
        await self._learn(stored)

    async def _call(self, flight: Flight, url: str, headers: hd.Pairs, load: Load) -> bool:
        """Ask with the first of the bodies; whether that was answered for good."""
        began = time.perf_counter()
        async with self._gateway.upstream.open("POST", url, headers, self._bodies[0]) as response:
            status = response.head.status
            if status in _TOO_MUCH and len(self._bodies) > 1:
                return False
            load.learn(time.perf_counter() - began)
            self._first = self._asked.waited
            if status >= 400:
                self._problem = f"status {status}"
            if response.head.streams:
                await self._stream(flight, response)
            else:
                await self._whole(flight, response)
        return True

    def _bare(self) -> None:
        """Go on without examples, and learn nothing from it."""
        assert self._route is not None
        self._bodies = self._bodies[1:]
        self._drop(self._route)
        self._route.examples, self._route.wants_feedback = 0, False

    def _drop(self, route: Route) -> None:
        assert self._gateway.routes is not None
        self._gateway.routes.drop(route)

    async def _plan(self, flight: Flight) -> None:
        """Choose the model and the examples, where the request leaves that to the gateway."""
        gateway, asked = self._gateway, self._asked
        if gateway.routes is None or not gateway.routes.serves(asked.model):
            return
        load = gateway.load_before(asked.model, self._protocol.name)
        # What is at the provider is there for one of the models only.
        bound = self._protocol.bypass(asked.document) or hidden_state(
            asked.document, self._protocol.name
        )
        self._route, self._bodies = await gateway.routes.plan(
            asked, self._protocol, load, bool(bound)
        )
        self._model, flight.route = self._route.model, self._route

    async def _learn(self, stored: Stored | None) -> None:
        """What may be stored and served may be shown to others as well, nothing else."""
        gateway, route = self._gateway, self._route
        if gateway.routes is None:
            return
        text = None
        if stored and stored.status == "live" and self._document is not None:
            text = answer_text(read_document(self._document))
        if route is not None and gateway.refiner is not None:
            if route.dropped:
                return
            query, route.entry_id = route.used.query, stored.id if stored else None
            await gateway.routes.learn(route, text)
            if route.wants_feedback and text and query and gateway.refiner.judges:
                gateway.beside(gateway.refiner.judge(route, query, text))
        elif text and gateway.routes.watches(self._model):
            await gateway.routes.watch(self._asked, self._protocol, text)

    async def _whole(self, flight: Flight, response: Response) -> None:
        body = await response.read()
        flight.begin(response.head)
        flight.add(body)
        decode = decoder(response.head.encoding)
        try:
            if decode is None:
                raise GatewayError(f"the encoding {response.head.encoding} is not read here")
            self._document = decode(body)
        except Exception as error:
            self._problem = self._problem or f"not readable: {error}"

    async def _stream(self, flight: Flight, response: Response) -> None:
        flight.begin(response.head)
        plain = response.head.encoding in ("", "identity")
        decode = decoder(response.head.encoding)
        parser, assembler = SSEParser(), self._protocol.assembler()
        if decode is None:
            self._problem = f"the encoding {response.head.encoding} is not read here"
        async for chunk in response.chunks():
            if not plain:
                flight.add(chunk)
            if self._problem:
                # Nothing to keep: the rest goes through as it comes.
                if plain:
                    flight.add(chunk)
                    self._events += chunk.count(b"\n\n")
                continue
            try:
                assert decode is not None
                for event in parser.feed(decode(chunk)):
                    if plain:
                        flight.add(event.raw)
                    self._events += 1
                    if not self._problem:
                        self._feed(assembler, event)
                if self._problem and plain and parser.pending:
                    flight.add(parser.pending)
            except Exception as error:
                self._problem = f"not readable: {error}"
                if plain:
                    flight.add(parser.pending)
        if not self._problem:
            if plain and parser.pending:
                flight.add(parser.pending)
            try:
                self._document = documents.dump(assembler.document())
            except GatewayError as error:
                self._problem = str(error)

    def _feed(self, assembler: Any, event: Any) -> None:
        try:
            assembler.feed(event)
        except GatewayError as error:
            self._problem = str(error)

    def _charge(self, flight: Flight) -> None:
        """Take what it cost, also where the answer broke off or nobody waited for its end."""
        if flight.head is None or flight.head.status >= 400:
            return
        usage = None
        if self._document is not None:
            try:
                usage = self._protocol.usage(documents.load_object(self._document))
            except (GatewayError, AttributeError, TypeError):
                self._problem = self._problem or "not a document of this protocol"
        # An upstream that does not say is charged by rule of thumb: a token for four bytes of
        # the request, and for every event of the stream.
        self.usage = usage or Usage(len(self._bodies[0]) // 4, self._events)
        self.money = self._gateway.config.price(self._model).of(self.usage)
        self._gateway.charge(self._asked.caller, self.usage, self.money)

    async def _keep(self, flight: Flight, seconds: float) -> Stored | None:
        """Store the answer, where nothing speaks against it."""
        problem = self._problem or self._unfit()
        if self._lookup is None or self._lookup.ticket is None or problem:
            log.debug("not stored: %s", problem)
            return None
        assert self._document is not None
        assert flight.head is not None
        facts = {
            "status": flight.head.status,
            "complete": True,
            "model": self._model,
            "prompt_tokens": self.usage.prompt,
            "completion_tokens": self.usage.completion,
            "money": self.money,
        }
        if self._asked.directives.ttl is not None:
            facts["ttl"] = self._asked.directives.ttl
        stored = await self._gateway.cache.store(
            self._lookup.ticket,
            self._document,
            cost_seconds=seconds,
            cost_tokens=self.usage.total,
            facts=facts,
        )
        self._gateway.metrics.stored(bool(stored))
        log.debug("stored: %s", stored)
        return stored

    def _unfit(self) -> str:
        """Why a complete answer is not kept all the same."""
        config = self._gateway.config
        if self._document is None:
            return "no answer"
        if len(self._document) > config.max_answer:
            return f"larger than {config.max_answer} bytes"
        try:
            document = documents.load_object(self._document)
            if document.get("error"):
                return "an error with the status of success"
            others = self._protocol.endings(document) - config.keep
        except (GatewayError, AttributeError, TypeError) as error:
            return f"not a document of this protocol: {error}"
        return f"it ended with {', '.join(sorted(others))}" if others else ""
