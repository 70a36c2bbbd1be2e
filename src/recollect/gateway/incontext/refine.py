"""Learning while nobody waits: answers are rated by a model or a function, the weakest made again.

Both wait while the strong model's upstream is busy.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from recollect.answers.examples import InContextCache, Maintained
from recollect.errors import GatewayError
from recollect.gateway.incontext.judge import Asker, Judge
from recollect.gateway.incontext.routes import Route, Routes

log = logging.getLogger("recollect.gateway")

T = TypeVar("T")


class Refiner:
    """Rates and replays.

    Args:
        judge: rates answers; None asks the model that the settings name, if any.
        forget: removes a stored answer that turned out bad.
    """

    def __init__(
        self,
        routes: Routes,
        asker: Asker,
        judge: Judge | None,
        forget: Callable[[int], Coroutine[Any, Any, Any]],
    ) -> None:
        self._routes, self._asker, self._forget = routes, asker, forget
        self._model = routes.settings.judge
        self._judge = judge
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recollect-replay")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asking: Future[Any] | None = None
        self._closed = False

    @property
    def judges(self) -> bool:
        """Whether anybody but clients rates answers."""
        return self._judge is not None or bool(self._model)

    async def rate(self, route: Route, quality: float) -> None:
        """An answer was rated: a bad one is neither shown nor served again."""
        good = await self._routes.rate(route, quality)
        if not good and route.entry_id is not None:
            await self._forget(route.entry_id)

    async def judge(self, route: Route, query: str, text: str) -> None:
        """Have an answer rated. What goes wrong is told in the log."""
        try:
            self._begin()
            quality = await self._on_thread(lambda: self._quality(query, text))
            if quality is not None:
                await self.rate(route, quality)
        except GatewayError as error:
            log.warning("an answer was not rated: %s", error)

    async def replay(self) -> Maintained:
        """Make the answers again that promise most, for every tenant, and keep the better ones."""
        if not self.judges:
            raise GatewayError("examples: nobody judges answers; name a judge to replay them")
        self._begin()
        replay = partial(self._maintain, limit=self._routes.settings.replays)
        done = [await self._on_thread(partial(replay, one)) for one in self._routes.caches]
        await self._routes.run(self._routes.save)
        return Maintained(*map(sum, zip(*done, strict=True))) if done else Maintained(0, 0, 0)

    async def close(self) -> None:
        """Give up what is under way."""
        self._closed = True
        if self._asking is not None:
            self._asking.cancel()
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    def _begin(self) -> None:
        self._loop = asyncio.get_running_loop()

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # On the thread ------------------------------------------------------------------------------

    def _maintain(self, cache: InContextCache, limit: int) -> Maintained:
        return cache.maintain(self._answer, self._score, limit=limit)

    def _quality(self, query: str, text: str) -> float | None:
        if self._judge is not None:
            return self._judge(query, text)
        return self._wait(self._asker.rate(self._model, query, text))

    def _score(self, query: str, text: str) -> float:
        # What got no grade is never better than what is there.
        return self._quality(query, text) or 0.0

    def _answer(self, query: str) -> str:
        return self._wait(self._asker.answer(self._routes.settings.strong, query))

    def _wait(self, asking: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None
        if self._closed:
            asking.close()
            raise GatewayError("the gateway is being stopped")
        self._asking = asyncio.run_coroutine_threadsafe(asking, self._loop)
        try:
            return self._asking.result()
        except BaseException as error:
            if self._closed:
                raise GatewayError("the gateway is being stopped") from error
            raise
