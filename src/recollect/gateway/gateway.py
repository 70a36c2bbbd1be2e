"""The gateway's parts in one place: who asks, what is stored, what is under way, what it cost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from recollect.answers import Answers, Clock, SystemClock
from recollect.answers.backends.base import open_backend
from recollect.errors import GatewayError
from recollect.gateway.board import Board
from recollect.gateway.budgets import Budgets
from recollect.gateway.cache import Cache
from recollect.gateway.callers import Caller, Callers
from recollect.gateway.config import GatewayConfig
from recollect.gateway.flight import Flights
from recollect.gateway.floor import Floor
from recollect.gateway.load import Load
from recollect.gateway.metrics import Metrics
from recollect.gateway.protocols import Usage
from recollect.gateway.tracing import Tracing, make_tracing
from recollect.gateway.upstream import Upstream

if TYPE_CHECKING:
    from recollect.gateway.incontext.judge import Judge
    from recollect.gateway.incontext.refine import Refiner
    from recollect.gateway.incontext.routes import Routes

log = logging.getLogger("recollect.gateway")

_SAVE_SECONDS = 1.0  # how much spending a crash may forget
_SWEEP_SECONDS = 300.0
_STOP_SECONDS = 5.0  # how long the end waits for answers on their way into the store


class Gateway:
    """Everything that lives as long as the process does.

    Args:
        config: what it was told.
        answers: the response cache; opened as `config` says when None.
        clock: of everything that ages.
        tracing: makes spans; as `config` says when None.
        judge: rates answers of routed requests in a thread: (query, answer) -> quality in [0, 1]
            or None; the model that `config` names when None.
    """

    def __init__(
        self,
        config: GatewayConfig,
        answers: Answers | None = None,
        clock: Clock | None = None,
        tracing: Tracing | None = None,
        judge: Judge | None = None,
    ) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.tracing = tracing or make_tracing(config.trace)
        self.cache = Cache(answers or open_answers(config, self.clock), config)
        self.callers = Callers(config)
        self.budgets = Budgets(self.clock, config.budgets)
        self.flights = Flights()
        self.floor = Floor()
        self.metrics = Metrics()
        self.board = Board(self.metrics, self.clock.now())
        self.metrics.gauge("flights", "Generations under way", lambda: len(self.flights))
        self.metrics.gauge("load", "Load of the busiest upstream", self.load_of_busiest)
        self.routes: Routes | None = None
        self.refiner: Refiner | None = None
        if config.examples is not None:
            self.routes, self.refiner = self._learning(judge)
        self._loads: dict[str, Load] = {}
        self._upstream: Upstream | None = None
        self._chores: list[asyncio.Task[None]] = []
        self.calls: set[asyncio.Task[None]] = set()  # what boards no flight

    @property
    def upstream(self) -> Upstream:
        """The way up; there from `start` to `stop`."""
        if self._upstream is None:
            raise GatewayError("the gateway has not been started")
        return self._upstream

    async def start(self) -> None:
        """Open connections, load the encoder and begin the chores."""
        await self.cache.warm()
        self._upstream = Upstream(self.config)
        chores = [(_SAVE_SECONDS, self._save), (_SWEEP_SECONDS, self._sweep)]
        if self.routes is not None and self.refiner is not None:
            await self.routes.warm()
            chores.append((_SWEEP_SECONDS, self._sweep_examples))
            if self.refiner.judges and self.routes.settings.replay_seconds:
                chores.append((self.routes.settings.replay_seconds, self._replay))
        self._chores = [asyncio.create_task(self._every(*chore)) for chore in chores]

    async def stop(self) -> None:
        """Close everything; what was spent is written down."""
        for chore in self._chores:
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        await self.flights.settled(_STOP_SECONDS)
        if self.calls:
            await asyncio.wait(self.calls, timeout=_STOP_SECONDS)
        if self.routes is not None and self.refiner is not None:
            await self.refiner.close()
            await self.routes.close()
        if self._upstream is not None:
            await self._upstream.close()
        await self.cache.close()
        self.budgets.close()

    def load(self, address: str) -> Load:
        """The load of one upstream."""
        if address not in self._loads:
            config = self.config
            self._loads[address] = Load(config.target_seconds, config.target_requests)
        return self._loads[address]

    def load_of_busiest(self) -> float:
        """The highest load of all upstreams."""
        return max((load.now() for load in self._loads.values()), default=0.0)

    def load_before(self, model: str, protocol: str) -> float:
        """The load of what a request for this model may need, before it is routed."""
        if self.routes is not None and self.routes.serves(model):
            model = self.routes.settings.strong
        return self.load(self.config.address(model, protocol)).now()

    def beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that no client waits for."""
        call = asyncio.get_running_loop().create_task(work)
        self.calls.add(call)
        call.add_done_callback(self.calls.discard)

    def charge(self, caller: Caller, usage: Usage, money: float) -> None:
        """Take what an answer cost from the caller's accounts, and count it."""
        self.budgets.charge(caller.spends, usage.total, money)
        self.board.spend(usage.total, money, usage.cached)

    async def _save(self) -> None:
        self.budgets.save()

    async def _sweep(self) -> None:
        await self.cache.run(self.cache.answers.sweep)
        await self.cache.run(self.cache.answers.refresh)

    async def _sweep_examples(self) -> None:
        assert self.routes is not None
        await self.routes.run(self.routes.expire)
        await self.routes.run(self.routes.save)

    async def _replay(self) -> None:
        assert self.refiner is not None
        await self.refiner.replay()

    def _learning(self, judge: Judge | None) -> tuple[Routes, Refiner]:
        from recollect.gateway.incontext.judge import Asker  # numpy, and only here
        from recollect.gateway.incontext.refine import Refiner
        from recollect.gateway.incontext.routes import Routes

        async def forget(entry_id: int) -> None:
            await self.cache.run(lambda: self.cache.answers.forget(entry_id, by="rating"))

        routes = Routes(self.config, self.clock, self.board)
        asker = Asker(self.config, self.board, lambda: self.upstream)
        return routes, Refiner(routes, asker, judge, forget)

    async def _every(self, seconds: float, chore: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await chore()
            except Exception:
                log.exception("a chore failed; it is tried again")


def open_answers(config: GatewayConfig, clock: Clock) -> Answers:
    """The response cache of a configuration."""
    return Answers(
        open_backend(config.store, config.require_store),
        recipe=config.recipe,
        clock=clock,
        secret=config.secret or None,
        scope=config.scope,
        ledger=config.audit or None,
        **config.arguments,
    )
