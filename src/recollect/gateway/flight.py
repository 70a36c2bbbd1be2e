"""Single flight: identical requests that arrive while one is on its way share its answer.

A flight runs in a task of its own and keeps what it has received, so a client that joins late
reads from the start, and one that leaves takes nobody with it. When the last one leaves, the
flight is cancelled: nobody pays for an answer that nobody reads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from typing import TYPE_CHECKING

from recollect.gateway.refusals import Refusal

log = logging.getLogger("recollect.gateway")

if TYPE_CHECKING:
    from recollect.gateway.incontext.routes import Route
    from recollect.gateway.upstream import Head


class Flight:
    """One call upstream and everyone who waits for it.

    Attributes:
        head: of the response, once `headed` returned.
        failure: what broke it off, if anything did.
        travellers: how many read it now.
        boarded: how many ever did.
        task: flies it.
        route: where it goes and with what examples, where that was chosen.
    """

    def __init__(self) -> None:
        self.head: Head | None = None
        self.failure: Refusal | None = None
        self.route: Route | None = None
        self.travellers = self.boarded = 0
        self._chunks: list[bytes] = []
        self._landed = False
        self._moved = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    # The pilot's side ---------------------------------------------------------------------------

    def take_off(
        self, fly: Callable[[Flight], Awaitable[None]], landed: Callable[[], None]
    ) -> None:
        """Start. `fly` calls `begin`, `add` and `land`; `landed` is called at its very end."""
        self.task = asyncio.get_running_loop().create_task(self._fly(fly, landed))

    def begin(self, head: Head) -> None:
        """The response's head is there."""
        self.head = head
        self._wake()

    def add(self, chunk: bytes) -> None:
        """A piece of the body is there."""
        self._chunks.append(chunk)
        self._wake()

    def land(self) -> None:
        """The body is complete. What `fly` does afterwards, nobody waits for."""
        self._landed = True
        self._wake()

    async def _fly(
        self, fly: Callable[[Flight], Awaitable[None]], landed: Callable[[], None]
    ) -> None:
        try:
            await fly(self)
        except Refusal as refusal:
            self.failure = refusal
        except asyncio.CancelledError:
            self.failure = Refusal(502, "the request was given up", "abandoned")
            raise
        except Exception as error:
            log.exception("a flight failed", exc_info=error)
            self.failure = Refusal(500, "the gateway failed", "internal_error")
        finally:
            landed()
            self.land()

    def _wake(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    # The travellers' side -----------------------------------------------------------------------

    def board(self) -> None:
        """One more waits."""
        self.travellers += 1
        self.boarded += 1

    def leave(self) -> None:
        """One less waits."""
        self.travellers -= 1
        if self.travellers == 0 and not self._landed and self.task is not None:
            self.task.cancel()

    async def headed(self) -> Head:
        """The head of the response. Raises Refusal when none came."""
        while self.head is None:
            if self._landed:
                raise self.failure or Refusal(502, "the upstream said nothing", "upstream_broke")
            await self._moved.wait()
        return self.head

    async def read(self) -> bytes:
        """The whole body. Raises Refusal when it broke off."""
        while not self._landed:
            await self._moved.wait()
        if self.failure is not None:
            raise self.failure
        return b"".join(self._chunks)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body from its start, piece by piece. Raises Refusal when it breaks off."""
        at = 0
        while True:
            while at < len(self._chunks):
                at += 1
                yield self._chunks[at - 1]
            if self._landed:
                break
            await self._moved.wait()
        if self.failure is not None:
            raise self.failure


class Flights:
    """Flights on their way, by what makes requests identical."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, Flight] = {}
        self._all: set[Flight] = set()  # those that are never shared as well

    def __len__(self) -> int:
        return len(self._all)

    @property
    def settling(self) -> int:
        """How many are read by nobody any more, and on their way into the store."""
        return sum(flight.travellers == 0 for flight in self._all)

    @property
    def travellers(self) -> int:
        """How many wait for a flight."""
        return sum(flight.travellers for flight in self._all)

    def join(
        self, key: Hashable | None, fly: Callable[[Flight], Awaitable[None]]
    ) -> tuple[Flight, bool]:
        """Board the flight of that key, or start it; whether it was there. None is never shared.

        The caller must `leave` it.
        """
        found = self._flights.get(key) if key is not None else None
        if found is not None:
            found.board()
            return found, True
        flight = Flight()
        flight.board()
        self._all.add(flight)
        if key is not None:
            self._flights[key] = flight
        flight.take_off(fly, lambda: self._landed(key, flight))
        return flight, False

    async def settled(self, seconds: float) -> None:
        """Wait until none is settling, or so many seconds."""
        tasks = [f.task for f in self._all if f.travellers == 0 and f.task]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    def _landed(self, key: Hashable | None, flight: Flight) -> None:
        self._all.discard(flight)
        if key is not None and self._flights.get(key) is flight:
            del self._flights[key]
