"""Assignments of levels to chunks, without those that others beat in every respect.

An assignment of the first chunks matters for the rest only by when the link is free, when all is
ready, and what it is worth. Of these states only the undominated ones are carried on, at most
`MOST` of them; the search is exact while there are no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from recollect.store.streaming.controller import Chunk

MOST = 160
TEXT = -1


class Frontier:
    """All chunks that remain, under one bandwidth (bytes per second) and one deadline."""

    def __init__(
        self,
        remaining: Sequence[Chunk],
        values: Sequence[float],
        bandwidth: float,
        deadline: float,
    ) -> None:
        self.remaining = remaining
        self.values = np.array([*values, min(values)])
        self.bandwidth = bandwidth
        self.deadline = deadline

    def best_in_time(self, link: float, ready: float) -> int | None:
        """First choice of the best assignment ready by the deadline, if there is one."""
        found = self._search(link, ready, self.values)
        if found is None:  # perhaps only because states were left out: time alone is exact
            found = self._search(link, ready, np.zeros_like(self.values))
        return found

    def soonest(self, link: float, ready: float) -> int:
        """First choice of the assignment that is ready soonest."""
        found = self._search(link, ready, np.zeros_like(self.values))
        assert found is not None
        return found

    def _search(self, link: float, ready: float, values: np.ndarray) -> int | None:
        # Columns: link, ready, minus the value; all the smaller the better.
        states = np.array([[link, ready, 0.0]])
        first = np.array([TEXT])
        for number, chunk in enumerate(self.remaining):
            steps = [self._transferred(states, chunk, size) for size in chunk.sizes]
            steps.append(states + np.array([0.0, chunk.text_seconds, 0.0]))
            for step, value in zip(steps, values, strict=True):
                step[:, 2] -= value
            options = np.repeat([*range(len(chunk.sizes)), TEXT], len(states))
            first = np.tile(first, len(steps)) if number else options
            states = np.concatenate(steps)
            kept = np.flatnonzero(states[:, 1] <= self.deadline)
            kept = kept[_undominated(states[kept])]
            states, first = states[kept], first[kept]
            if not len(states):
                return None
        return int(first[np.lexsort((states[:, 1], states[:, 2]))[0]])

    def _transferred(self, states: np.ndarray, chunk: Chunk, size: int) -> np.ndarray:
        """States after a transfer; unreachable where there is no bandwidth."""
        seconds = size / self.bandwidth if self.bandwidth > 0 else np.inf
        link = states[:, 0] + seconds
        ready = np.maximum(states[:, 1], link + chunk.decode_seconds)
        return np.stack([link, ready, states[:, 2]], axis=1)


def _undominated(states: np.ndarray) -> np.ndarray:
    """Indices of states that no other equals or beats in all columns; an even choice of `MOST`."""
    order = np.lexsort(states.T)  # by value, then ready, then link: what dominates comes first
    ranked = states[order]
    no_worse = np.ones((len(ranked), len(ranked)), bool)
    for column in ranked.T:
        no_worse &= column[:, None] <= column[None]
    beaten = np.triu(no_worse, 1).any(0)
    kept = order[~beaten]
    if len(kept) > MOST:
        kept = kept[np.linspace(0, len(kept) - 1, MOST).astype(int)]
    return kept
