"""Never slower than no cache: what is loaded, and what is stored, decided by measured cost.

An entry is loaded where loading is predicted to take less than computing it again, and written to a
tier where the reuse to be expected is worth the write. A cache that reads 40 s of disk where the
model needs 0.9 s is worse than none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from recollect.errors import RecipeError
from recollect.store.costs import LinkCost, PrefillCost

# First guesses, until a tier has been measured: (seconds of latency, bytes per second)
GUESSES = {
    "host": (2e-6, 5e9),
    "disk": (1e-4, 1e9),
    "redis": (5e-4, 500e6),
    "objects": (2e-2, 100e6),
}
MODES = ("measured", "always", "never")


@dataclass(frozen=True)
class Stored:
    """A chunk that lies on a tier: `tokens` of a prompt as `nbytes`."""

    tier: str
    nbytes: int
    tokens: int


@dataclass(frozen=True)
class Decision:
    """How many leading chunks to load, and what was expected of it.

    Attributes:
        load: chunks to load, from the first on; the rest of the prompt is computed.
        seconds: predicted time to the first token when doing so.
        without: predicted time when loading nothing.
        probe: a tier that was passed over and not measured for long; reading one chunk of it off
            the critical path tells whether that is still right. None: nothing to find out.
    """

    load: int
    seconds: float
    without: float
    probe: str | None = None


@dataclass(frozen=True)
class AdmissionPolicy:
    """How to decide.

    Attributes:
        mode: ``measured``; ``always`` and ``never`` load and store regardless.
        margin: load only where its predicted time is below this times the alternative's.
        write_weight: what a second of background writing costs the requests meanwhile, in seconds.
        probe_every: seconds after which a tier that is never read is measured once more.
    """

    mode: Literal["measured", "always", "never"] = "measured"
    margin: float = 1.0
    write_weight: float = 0.05
    probe_every: float = 60.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise RecipeError(f"unknown admission '{self.mode}'; there are: {', '.join(MODES)}")
        if self.margin <= 0 or self.write_weight < 0 or self.probe_every <= 0:
            raise RecipeError("margin and probe_every are positive, write_weight is not negative")


class Admission:
    """Measures, predicts, decides. Safe to use from several threads.

    Before the first prefill was seen nothing is known of its cost: everything stored is loaded.

    Args:
        policy: how to decide.
        guesses: tier name -> (seconds of latency, bytes per second) before it was measured.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        policy: AdmissionPolicy | None = None,
        *,
        guesses: Mapping[str, tuple[float, float]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy or AdmissionPolicy()
        self.prefill = PrefillCost()
        self._guesses = {**GUESSES, **(guesses or {})}
        self._clock = clock
        self._reads: dict[str, LinkCost] = {}
        self._writes: dict[str, LinkCost] = {}
        self._read_at: dict[str, float] = {}
        self._stores = self._reuses = 1.0  # one imagined reuse of one imagined entry to start with
        self._lock = threading.Lock()

    def reading(self, tier: str) -> LinkCost:
        """What reading from a tier costs."""
        return self._link(self._reads, tier)

    def writing(self, tier: str) -> LinkCost:
        """What writing to a tier costs."""
        return self._link(self._writes, tier)

    def observe_read(self, tier: str, nbytes: int, seconds: float) -> None:
        """An entry was read from a tier, until its bytes were at hand."""
        self.reading(tier).observe(nbytes, seconds)
        self._read_at[tier] = self._clock()

    def observe_write(self, tier: str, nbytes: int, seconds: float) -> None:
        """An entry was written to a tier."""
        self.writing(tier).observe(nbytes, seconds)

    def observe_prefill(self, tokens: int, seconds: float, prefix: int = 0) -> None:
        """The model computed `tokens` behind `prefix` others."""
        self.prefill.observe(tokens, seconds, prefix)

    def observe_reuse(self, stored: int = 0, reused: int = 0) -> None:
        """Entries were stored or reused. The past fades: the rate is that of the last thousands."""
        with self._lock:
            fade = 0.9998 ** (stored + reused)
            self._stores = self._stores * fade + stored
            self._reuses = self._reuses * fade + reused

    @property
    def reuses_per_entry(self) -> float:
        """How often an entry is loaded, on average over the recent past."""
        return self._reuses / max(self._stores, 1e-9)

    def decide(self, chunks: Sequence[Stored], total: int, *, ready: int = 0) -> Decision:
        """How many of the next stored chunks of a prompt of `total` tokens to load.

        The best of all splits into a loaded head and a computed tail, by predicted time. `ready`
        tokens of the prompt are there already; `chunks` follow them.
        """
        without = self.prefill.predict(total - ready, prefix=ready)
        if self.policy.mode == "never" or not chunks:
            return Decision(0, without, without)
        known = self.policy.mode == "measured" and self.prefill.observations > 0
        best, least = 0, without * self.policy.margin
        prices = {tier: self.reading(tier).prices for tier in {chunk.tier for chunk in chunks}}
        loading, done = 0.0, ready
        for count, chunk in enumerate(chunks, start=1):
            latency, per_byte = prices[chunk.tier]
            loading += latency + per_byte * chunk.nbytes
            done += chunk.tokens
            seconds = loading + self.prefill.predict(total - done, prefix=done)
            if not known or seconds < least:
                best, least = count, seconds
        return Decision(best, least if best else without, without, self._probe(chunks[best:]))

    def stores(self, tier: str, nbytes: int, tokens: int, *, prefix: int = 0) -> bool:
        """Whether writing an entry to a tier pays: what its reuses save, against its write.

        Entries that stand for no tokens (`tokens` = 0) are always stored: nothing is known of them.
        """
        if self.policy.mode != "measured" or tokens <= 0:
            return self.policy.mode != "never"
        reuses = self.reuses_per_entry
        return self.pays(tier, nbytes, tokens, prefix=prefix, reuses=reuses) or self._due(tier)

    def pays(
        self, tier: str, nbytes: int, tokens: int, *, prefix: int = 0, reuses: float = 1.0
    ) -> bool:
        """Whether so many expected `reuses` save more than the write costs. Unknown costs: yes."""
        if self.prefill.observations == 0:
            return True
        # The entry's own share: what a prompt with it loaded does not have to compute.
        computing = self.prefill.predict(prefix + tokens) - self.prefill.predict(prefix)
        saved = computing - self.reading(tier).predict(nbytes)
        writing = self.writing(tier).predict(nbytes) * self.policy.write_weight
        return saved > 0 and reuses * saved > writing

    def _probe(self, passed_over: Sequence[Stored]) -> str | None:
        if not passed_over or not self._due(passed_over[0].tier):
            return None
        self._read_at[passed_over[0].tier] = self._clock()  # one probe at a time
        return passed_over[0].tier

    def _due(self, tier: str) -> bool:
        """Whether a tier has not been read for so long that its prices may be out of date."""
        last = self._read_at.get(tier)
        return last is None or self._clock() - last >= self.policy.probe_every

    def _link(self, links: dict[str, LinkCost], tier: str) -> LinkCost:
        with self._lock:
            if tier not in links:
                links[tier] = LinkCost(*self._guesses.get(tier, self._guesses["redis"]))
            return links[tier]
