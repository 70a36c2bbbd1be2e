"""What the scheduler believes the store has.

Two sources: what this engine's own workers were told to save (known at once, corrected when they
report otherwise), and a look at the tiers that other processes can see, taken by a thread when a
request arrives. A wrong belief costs a recomputation, never a wrong answer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.01
THREADS = 4


class Shared(Protocol):
    """The part of Store that answers lookups."""

    def locate(self, keys: Sequence[bytes]) -> list[str]: ...


class Lookup:
    """The answer to come for one request, once `done`.

    Attributes:
        tiers: where each of the leading keys lies; the empty string for those of our own workers.
    """

    def __init__(self, done: bool = False) -> None:
        self.tiers: list[str] = []
        self.done = done
        self.started = time.monotonic()

    @property
    def found(self) -> int:
        """How many leading keys are present."""
        return len(self.tiers)

    def is_due(self, patience: float) -> bool:
        """Whether it is answered, or has been waited for long enough."""
        return self.done or time.monotonic() - self.started > patience


class Presence:
    """Keys believed to be present. Used by the scheduler's thread only, but for lookups."""

    def __init__(self, shared: Shared | None, most: int = 1_000_000) -> None:
        """`shared`: tiers other processes see, if there are any; `most`: keys remembered."""
        self._shared, self._most = shared, most
        self._own: dict[bytes, None] = {}
        self._pool = ThreadPoolExecutor(THREADS, "recollect-lookup") if shared is not None else None

    def __contains__(self, key: bytes) -> bool:
        return key in self._own

    def __len__(self) -> int:
        return len(self._own)

    def add(self, key: bytes) -> None:
        """Our workers have it, or are about to."""
        self._own[key] = None
        if len(self._own) > self._most:
            del self._own[next(iter(self._own))]

    def discard(self, key: bytes) -> None:
        """Our workers do not have it after all."""
        self._own.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self._own.clear()

    def leading(self, keys: Sequence[bytes], shared: int) -> int:
        """How many of the first `keys` are present, the first `shared` of them elsewhere."""
        for count in range(min(shared, len(keys)), len(keys)):
            if keys[count] not in self._own:
                return count
        return len(keys)

    def look_up(self, keys: Sequence[bytes], *, expected: int = 0, patience: float = 0) -> Lookup:
        """Ask the shared tiers about what is not known here, in the background.

        Args:
            expected: this many leading keys were announced by a producer …
            patience: … and are waited for so many seconds.
        """
        known = self.leading(keys, 0)
        if self._pool is None or known == len(keys):
            return Lookup(done=True)
        lookup = Lookup()
        self._pool.submit(self._answer, lookup, list(keys), known, expected, patience)
        return lookup

    def close(self) -> None:
        """End the lookups."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _answer(
        self, lookup: Lookup, keys: list[bytes], known: int, expected: int, patience: float
    ) -> None:
        assert self._shared is not None
        assert self._pool is not None
        try:
            lookup.tiers = [""] * known + self._shared.locate(keys[known:])
            late = time.monotonic() - lookup.started > patience
            if lookup.found < min(expected, len(keys)) and not late:
                time.sleep(POLL_SECONDS)  # and again, behind the lookups of other requests
                self._pool.submit(self._answer, lookup, keys, known, expected, patience)
                return
        except Exception as error:  # an unreachable tier is a miss, whatever it raises
            logger.warning("lookup failed, computing instead: %s", error)
        lookup.done = True
