"""What is worth moving, by what the engine's own steps and transfers were measured to take.

A hit is loaded as far as that is quicker than computing it; a chunk is saved where the reuse to be
expected of it saves more time than saving it costs. Lives with the scheduler, learns from the
workers' reports.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import groupby

from recollect.store.admission import Admission, AdmissionPolicy, Stored
from recollect.store.reuse import Sightings
from recollect.vllm.messages import Report


class Always:
    """Everything is worth it, but for hits shorter than `min_load_tokens`."""

    def __init__(self, min_load_tokens: int = 0) -> None:
        self._least = min_load_tokens

    def seen(self, keys: Sequence[bytes]) -> None:
        """A request asks for these chunks."""

    def heard(self, report: Report) -> None:
        """What the workers measured."""

    def loads(
        self, tiers: Sequence[str], tokens: Sequence[int], total: int, ready: int
    ) -> tuple[int, bool]:
        """How many of the next stored chunks to load, and whether to probe the first one left out.

        Args:
            tiers: where each lies.
            tokens: how many tokens each would supply.
            total: tokens of the request.
            ready: tokens that the engine has.
        """
        return (len(tokens) if sum(tokens) >= self._least else 0), False

    def saves(self, keys: Sequence[bytes], start: int) -> int:
        """How many of these chunks, which follow each other from token `start` on, to save."""
        return len(keys)


class Measured(Always):
    """Decides by measured costs and by how often chunks come back.

    Args:
        nbytes: of one entry.
        chunk: tokens of one entry.
        near: name of the tier that takes saves.
        min_load_tokens: if given, decides about loads in place of measured costs.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        *,
        nbytes: int,
        chunk: int,
        near: str = "host",
        min_load_tokens: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(min_load_tokens or 0)
        self._gated = min_load_tokens is not None
        self._nbytes, self._chunk, self._near = nbytes, chunk, near
        # Workers report what a write cost the engine, not what it took: that counts in full.
        self.admission = Admission(AdmissionPolicy(write_weight=1.0), clock=clock)
        self.sightings = Sightings()

    def seen(self, keys: Sequence[bytes]) -> None:
        self.sightings.add(keys)

    def heard(self, report: Report) -> None:
        for read in report.reads:
            self.admission.observe_read(*read)
        for write in report.writes:
            self.admission.observe_write(self._near, write.amount, write.seconds)
        for forward in report.forwards:
            self.admission.prefill.observe_batch(*forward)

    def loads(
        self, tiers: Sequence[str], tokens: Sequence[int], total: int, ready: int
    ) -> tuple[int, bool]:
        if self._gated:
            return super().loads(tiers, tokens, total, ready)
        stored = [Stored(tier, self._nbytes, n) for tier, n in zip(tiers, tokens, strict=True)]
        decision = self.admission.decide(stored, total, ready=ready)
        return decision.load, decision.probe is not None

    def saves(self, keys: Sequence[bytes], start: int) -> int:
        # Never a chunk behind one that is not saved: it could not be found.
        count = 0
        for times, alike in groupby(keys, self.sightings.times):
            chunks = len(list(alike))
            pays = self.admission.pays(
                self._near, chunks * self._nbytes, chunks * self._chunk,
                prefix=start + count * self._chunk, reuses=self.sightings.odds(times),
            )  # fmt: skip
            if not pays:
                break
            count += chunks
        return count
