"""All that scheduler and workers tell each other: orders one way, a report the other.

Plain picklable data. Everything else stays in its process.
"""

from __future__ import annotations

from dataclasses import dataclass, field


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
        taint: the workers' failure count as far as the scheduler has heard (see `Report`).
    """

    loads: list[Load] = field(default_factory=list)
    saves: list[Part] = field(default_factory=list)
    taint: int = 0


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
    """

    committed: list[bytes] = field(default_factory=list)
    lost: set[bytes] = field(default_factory=set)
    refused: set[bytes] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    taint: int = 0

    def merge(self, other: Report) -> None:
        """Add what another worker, or a later moment, has to say."""
        self.committed += other.committed
        self.lost |= other.lost
        self.refused |= other.refused
        self.failed |= other.failed
        self.taint = max(self.taint, other.taint)
