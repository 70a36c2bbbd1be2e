"""CacheGen's controller: which level of each chunk to fetch, or to compute it again (2310.07240).

Pure policy: no clocks, no network. Two things run side by side: a link that transfers one chunk
after the other, and the model, which can compute a chunk again from its text only once all chunks
before it are there. `Progress` says how far both are; a policy chooses the next chunk's level from
it, from the measured bandwidth and from the deadline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from recollect.store.streaming.frontier import Frontier

TEXT = -1  # the choice of computing a chunk again


@dataclass(frozen=True)
class Chunk:
    """One stored chunk.

    Attributes:
        sizes: bytes at every level, best first.
        text_seconds: what computing it again takes, once all chunks before it are there.
        decode_seconds: from the last byte to usable keys and values, at any level.
    """

    sizes: tuple[int, ...]
    text_seconds: float
    decode_seconds: float = 0.0


@dataclass(frozen=True)
class Progress:
    """Seconds since the request: when the link is free, and when all chunks so far are ready."""

    link: float = 0.0
    ready: float = 0.0

    def after(self, chunk: Chunk, choice: int, transfer_seconds: float) -> Progress:
        """With one more chunk: transferred and decoded, or computed again."""
        if choice == TEXT:
            return Progress(self.link, self.ready + chunk.text_seconds)
        link = self.link + transfer_seconds
        return Progress(link, max(self.ready, link + chunk.decode_seconds))


class Bandwidth(NamedTuple):
    """What is known of a link.

    Attributes:
        last: bytes per second of the last transfer.
        change: by what share bandwidth typically differs from one transfer to the next; 0 to 1.
    """

    last: float
    change: float = 0.1


class Policy(Protocol):
    """Chooses a level, or `TEXT`, for the first of the chunks that remain."""

    def choose(
        self,
        remaining: Sequence[Chunk],
        progress: Progress,
        deadline: float,
        bandwidth: Bandwidth | None,
    ) -> int:
        """`deadline` in seconds since the request; `bandwidth` None while nothing was measured."""


@dataclass(frozen=True)
class AdaptivePolicy:
    """The choice with which the best assignment of all remaining chunks begins.

    Best is: ready by the deadline if that can be, then of highest total value, then soonest. Slack
    that earlier chunks left is spent on later ones. Computing again is exact, but it spends what
    the store was to save, so it counts as little as the smallest level: it is chosen where it is
    needed, or lets other chunks be better.

    Attributes:
        values: worth of each level, best first; evenly spaced from 1 if left out.
        caution: how many of the link's typical changes for the worse are reckoned with, as long as
            the deadline can be met even so.
    """

    values: tuple[float, ...] | None = None
    caution: float = 1.0

    def choose(
        self,
        remaining: Sequence[Chunk],
        progress: Progress,
        deadline: float,
        bandwidth: Bandwidth | None,
    ) -> int:
        """See `Policy`. Without a measured bandwidth: a middle level."""
        levels = len(remaining[0].sizes)
        if bandwidth is None:
            return levels // 2
        values = self.values or tuple(1 - level / levels for level in range(levels))
        last = bandwidth.last
        for trusted in (last * max(0.1, 1 - self.caution * bandwidth.change), last):
            frontier = Frontier(remaining, values, trusted, deadline)
            choice = frontier.best_in_time(progress.link, progress.ready)
            if choice is not None:
                return choice
        return Frontier(remaining, values, last, math.inf).soonest(progress.link, progress.ready)


@dataclass(frozen=True)
class ReleasedPolicy:
    """The released script's: each chunk has an equal share of the deadline, used or not.

    Takes the first level, best first, that transfers within the share; computes again where none
    does. Attributes: `chunks` of the whole request.
    """

    chunks: int

    def choose(
        self,
        remaining: Sequence[Chunk],
        progress: Progress,
        deadline: float,
        bandwidth: Bandwidth | None,
    ) -> int:
        """See `Policy`."""
        share = deadline / self.chunks
        for level, size in enumerate(remaining[0].sizes):
            if bandwidth and bandwidth.last > 0 and size / bandwidth.last < share:
                return level
        return TEXT


class Throughput:
    """Bandwidth as the last transfer showed it; small transfers show latency and do not count."""

    def __init__(self, smallest: int = 64 << 10, known: Bandwidth | None = None) -> None:
        self.smallest = smallest
        self.bandwidth = known

    def observe(self, nbytes: int, seconds: float) -> None:
        """Take note of a finished transfer."""
        if nbytes < self.smallest or seconds <= 0:
            return
        now, before = nbytes / seconds, self.bandwidth
        if before is None:
            self.bandwidth = Bandwidth(now)
            return
        larger = max(now, before.last)
        changed = 1 - min(now, before.last) / larger if 0 < larger < math.inf else 0.0
        self.bandwidth = Bandwidth(now, (before.change + changed) / 2)
