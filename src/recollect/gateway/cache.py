"""`Answers` from an event loop: at once where that takes microseconds, else in a thread.

Remote stores and encoders get one thread, whose order of work is the order of arrival: a lookup
that missed is told before a later write is done, which single flight relies on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from recollect.answers import Answers, Lookup, Stored
from recollect.gateway.config import GatewayConfig

T = TypeVar("T")

_LOCAL = ("memory", "sqlite:")


class Cache:
    """An `Answers` and the thread that works on it."""

    def __init__(self, answers: Answers, config: GatewayConfig) -> None:
        self.answers = answers
        self._at_once = config.recipe == "exact" and config.store.startswith(_LOCAL)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recollect-answers")

    async def warm(self) -> None:
        """Load the encoder now rather than at the first request."""
        if not self._at_once:
            document = {"model": "warm-up", "messages": [{"role": "user", "content": "warm-up"}]}
            await self.run(lambda: self.answers.lookup(document, scope_id="recollect:warm-up"))

    async def lookup(self, request: Any, **asked: Any) -> Lookup:
        """`Answers.lookup`."""
        if self._at_once:
            return self.answers.lookup(request, **asked)
        return await self.run(lambda: self.answers.lookup(request, **asked))

    async def store(self, ticket: Any, response: bytes, **about: Any) -> Stored:
        """`Answers.store`."""
        return await self.run(lambda: self.answers.store(ticket, response, **about))

    async def run(self, work: Callable[[], T]) -> T:
        """Anything else, in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def close(self) -> None:
        """Finish what is under way, then close the store."""
        await self.run(self.answers.close)
        self._thread.shutdown()
