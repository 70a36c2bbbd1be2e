"""`Answers` from an event loop, which waits for nothing longer than microseconds.

Each kind of work has a thread of its own, so that a hit waits for no encoder and nobody for a
sweep: remote stores, encoders, chores. Within a thread the order of work is that of arrival: a
lookup that missed is told before a later write is done, which single flight relies on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from recollect.answers import Answers, Lookup, Stored
from recollect.gateway.config import GatewayConfig

T = TypeVar("T")

_LOCAL = ("memory", "sqlite:")


class Cache:
    """An `Answers` and the threads that work on it."""

    def __init__(self, answers: Answers, config: GatewayConfig) -> None:
        self.answers = answers
        self._local = config.store.startswith(_LOCAL)
        self._store, self._encoder, self._chores = (
            ThreadPoolExecutor(1, thread_name_prefix=f"recollect-{name}")
            for name in ("store", "encoder", "chores")
        )
        # Who writes works behind those who may be about to find that nothing is stored.
        self._writer = self._encoder if answers.is_semantic else self._store

    async def warm(self) -> None:
        """Load the encoder now rather than at the first request."""
        if self.answers.is_semantic:
            await _in(self._encoder, lambda: self.answers.encode("warm-up"))

    async def lookup(self, request: Any, **asked: Any) -> Lookup:
        """`Answers.lookup`."""
        found = await self._exact(lambda: self.answers.lookup_exact(request, **asked))
        if not found.pending:
            return found
        headers = asked.get("headers")
        return await _in(self._encoder, lambda: self.answers.lookup_similar(found, headers))

    async def lookup_each(self, requests: Sequence[Any], **asked: Any) -> list[Lookup]:
        """`Answers.lookup` of requests that only the same request may answer."""
        return await _in(
            self._store, lambda: [self.answers.lookup_exact(each, **asked) for each in requests]
        )

    async def store(self, ticket: Any, response: bytes, **about: Any) -> Stored:
        """`Answers.store`."""
        return await _in(self._writer, lambda: self.answers.store(ticket, response, **about))

    async def run(self, work: Callable[[], T]) -> T:
        """Anything else; it may take its time."""
        return await _in(self._chores, work)

    async def close(self) -> None:
        """Finish what is under way, then close the store."""
        for thread in (self._store, self._encoder, self._chores):
            await asyncio.to_thread(thread.shutdown)
        await asyncio.to_thread(self.answers.close)

    async def _exact(self, look_up: Callable[[], Lookup]) -> Lookup:
        return look_up() if self._local else await _in(self._store, look_up)


async def _in(thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(thread, work)
