"""All that scheduler and workers tell each other: orders one way, a report the other.

Plain picklable data. Everything else stays in its process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True)
class Part:
    """Blocks that one entry fills, or is made of.

    Attributes:
        key: of the entry.
        blocks: ids in the engine's cache.
        skip: blocks of the entry before the first of them (the engine had those already).
    """

    key: bytes
    blocks: tuple[int, ...]
    skip: int = 0


@dataclass(frozen=True)
class Load:
    """Entries for one request, in order. `later`: the request waits, the forward does not."""

    request: str
    parts: tuple[Part, ...]
    later: bool = False


@dataclass
class Orders:
    """From the scheduler, once per step.

    Attributes:
        loads: what to fetch.
        saves: entries to make after this step's forward.
        probes: entries to read for nothing but to learn what it takes.
        taint: the workers' failure count as far as the scheduler has heard (see `Report`).
        tokens, pairs: what this step's forward computes, where it is worth timing: tokens, and
            pairs of tokens that attend.
    """

    loads: list[Load] = field(default_factory=list)
    saves: list[Part] = field(default_factory=list)
    probes: list[bytes] = field(default_factory=list)
    taint: int = 0
    tokens: int = 0
    pairs: float = 0.0


class Measured(NamedTuple):
    """Seconds that one thing took: reading or writing `amount` bytes, from or to `tier`."""

    tier: str
    amount: int
    seconds: float


class Forward(NamedTuple):
    """Seconds of one forward of so many tokens and pairs of tokens."""

    tokens: int
    pairs: float
    seconds: float


@dataclass
class Report:
    """From the workers, once per step.

    Attributes:
        committed: entries that are readable now; one mention per worker.
        lost: entries that could not be read.
        refused: saves that were not made.
        failed: requests whose load broke off.
        taint: how many loads have failed in a forward. What a forward computes behind a failed
            load is garbage until the scheduler has heard of it; workers save nothing till then.
        reads, writes: what moving entries took; for writes, what it cost the engine.
        forwards: what forwards took.
    """

    committed: list[bytes] = field(default_factory=list)
    lost: set[bytes] = field(default_factory=set)
    refused: set[bytes] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    taint: int = 0
    reads: list[Measured] = field(default_factory=list)
    writes: list[Measured] = field(default_factory=list)
    forwards: list[Forward] = field(default_factory=list)

    def is_news(self) -> bool:
        """Whether there is anything in it that the scheduler has not heard."""
        told = (self.committed, self.lost, self.refused, self.failed)
        return any(told) or any((self.reads, self.writes, self.forwards))

    def merge(self, other: Report) -> None:
        """Add what another worker, or a later moment, has to say."""
        self.committed += other.committed
        self.lost |= other.lost
        self.refused |= other.refused
        self.failed |= other.failed
        self.taint = max(self.taint, other.taint)
        self.reads += other.reads
        self.writes += other.writes
        self.forwards += other.forwards
