"""A request on a link whose bandwidth changes: how a policy fares, and how the best one would."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from recollect.store.streaming.controller import (
    TEXT,
    Bandwidth,
    Chunk,
    Policy,
    Progress,
    Throughput,
)


@dataclass(frozen=True)
class Trace:
    """Bandwidths in bytes per second, each for `step` seconds; the last one goes on."""

    bandwidths: tuple[float, ...]
    step: float = math.inf

    def at(self, time: float) -> float:
        """Bandwidth at that moment."""
        return self.bandwidths[min(int(time / self.step), len(self.bandwidths) - 1)]

    def transfer(self, start: float, nbytes: float) -> float:
        """Seconds that many bytes take from `start` on; infinite where the link stays dead."""
        time, left = start, float(nbytes)
        for i in range(int(start / self.step), len(self.bandwidths)):
            last = i == len(self.bandwidths) - 1
            end = math.inf if last else (i + 1) * self.step
            rate = self.bandwidths[i]
            if rate > 0 and left / rate <= end - time:
                return time + left / rate - start
            if last:
                return math.inf
            left -= rate * (end - time)
            time = end
        rate = self.bandwidths[-1]
        return left / rate if rate > 0 else math.inf


class Outcome(NamedTuple):
    """What was chosen and when all was ready, in seconds since the request."""

    choices: tuple[int, ...]
    finish: float


def run(
    policy: Policy,
    chunks: Sequence[Chunk],
    deadline: float,
    trace: Trace,
    *,
    known: float | None = None,
    oracle: bool = False,
) -> Outcome:
    """Let a policy choose chunk by chunk, each time knowing what the last transfer showed.

    Args:
        known: bandwidth believed before the first transfer.
        oracle: tell it the bandwidth of the moment instead.
    """
    throughput = Throughput(smallest=0, known=None if known is None else Bandwidth(known))
    progress, choices = Progress(), []
    for i, chunk in enumerate(chunks):
        told = Bandwidth(trace.at(progress.link)) if oracle else throughput.bandwidth
        choice = policy.choose(chunks[i:], progress, deadline, told)
        seconds = 0.0 if choice == TEXT else trace.transfer(progress.link, chunk.sizes[choice])
        if choice != TEXT:
            throughput.observe(chunk.sizes[choice], seconds)
        choices.append(choice)
        progress = progress.after(chunk, choice, seconds)
    return Outcome(tuple(choices), progress.ready)


def outcome(choices: Sequence[int], chunks: Sequence[Chunk], trace: Trace) -> Outcome:
    """When all is ready with those choices."""
    progress = Progress()
    for chunk, choice in zip(chunks, choices, strict=True):
        seconds = 0.0 if choice == TEXT else trace.transfer(progress.link, chunk.sizes[choice])
        progress = progress.after(chunk, choice, seconds)
    return Outcome(tuple(choices), progress.ready)


def value(choices: Sequence[int], levels: int) -> float:
    """Mean worth of choices as `AdaptivePolicy` counts it by default, between 0 and 1."""
    worth = [1 - level / levels for level in range(levels)]
    return sum(worth[choice] for choice in choices) / len(choices)  # TEXT is -1: the last level


def brute_force(chunks: Sequence[Chunk], deadline: float, trace: Trace) -> Outcome:
    """The assignment that is best with the whole trace known: in time, valuable, soon.

    Where none is in time, the soonest.
    """
    levels = len(chunks[0].sizes)
    best = Outcome((), math.inf)
    rank = (1.0, math.inf, 0.0)
    waiting: list[tuple[tuple[int, ...], Progress]] = [((), Progress())]
    while waiting:
        choices, progress = waiting.pop()
        if len(choices) < len(chunks):
            chunk = chunks[len(choices)]
            for choice in (*range(levels), TEXT):
                text = choice == TEXT
                seconds = 0.0 if text else trace.transfer(progress.link, chunk.sizes[choice])
                waiting.append(((*choices, choice), progress.after(chunk, choice, seconds)))
            continue
        late = progress.ready > deadline
        worth = 0.0 if late else -value(choices, levels)
        found = (float(late), progress.ready if late else worth, progress.ready)
        if found < rank:
            rank, best = found, Outcome(choices, progress.ready)
    return best
