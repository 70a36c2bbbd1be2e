"""From records to what reports show: one estimate per recipe, keep, task and mode."""

from __future__ import annotations

import statistics as plain
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from recollect.evaluate.caches import HOST, Variant
from recollect.evaluate.metrics import METRICS
from recollect.evaluate.statistics import Estimate, average, estimate

AVERAGE = "average"
Record = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One recipe at one keep on one chart.

    Attributes:
        variant: which.
        bytes_ratio: bytes held over those of the host's cache, mean over the cases.
        value: the quality, with its interval.
    """

    variant: Variant
    bytes_ratio: float
    value: Estimate


@dataclass(frozen=True)
class Speed:
    """How fast a variant is against the host's own cache in the same rounds.

    Attributes:
        variant: which.
        length: tokens of context.
        bytes_ratio: bytes held over those of the host's cache.
        decode: decode speed over the host's: median, smallest and largest over the rounds.
        prefill: time of prefill with compression over the host's prefill.
        tokens_per_second: of this machine.
        compress_seconds: deciding and encoding, median.
    """

    variant: Variant
    length: int
    bytes_ratio: float
    decode: Estimate
    prefill: float
    tokens_per_second: float
    compress_seconds: float


def points(
    records: Iterable[Record], *, metric: str, mode: str, task: str = AVERAGE
) -> list[Point]:
    """Points of one chart, recipes in the order they were measured in.

    The average weighs every task alike and leaves out tasks that have no such metric.
    """
    share = METRICS[metric].bounds == (0.0, 1.0)
    values: dict[Variant, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    ratios: dict[Variant, list[float]] = defaultdict(list)
    for record in cases(records, mode):
        value = record["metrics"][metric]
        if value is None or task not in (AVERAGE, record["task"]):
            continue
        variant = Variant(record["recipe"], record["keep"])
        values[variant][record["task"]].append(value)
        ratios[variant].append(record["nbytes"] / record["dense_nbytes"])
    return [
        Point(
            variant,
            plain.fmean(ratios[variant]),
            average([estimate(group, share=share) for group in groups.values()]),
        )
        for variant, groups in values.items()
    ]


def speeds(records: Iterable[Record]) -> list[Speed]:
    """Speed of every variant and length."""
    timed = [r for r in records if r["kind"] == "speed"]
    host = {(r["length"], r["round"]): r for r in timed if r["recipe"] == HOST}
    groups: dict[tuple[Variant, int], dict[int, Record]] = defaultdict(dict)
    for record in timed:  # a round taken up again replaces the one that was stopped
        if (record["length"], record["round"]) in host:
            key = (Variant(record["recipe"], record["keep"]), record["length"])
            groups[key][record["round"]] = record
    found = []
    for (variant, length), by_round in groups.items():
        rounds = list(by_round.values())
        hosts = [host[length, r["round"]] for r in rounds]
        decode = [h["step_seconds"] / r["step_seconds"] for h, r in zip(hosts, rounds, strict=True)]
        prefill = [
            r["prefill_seconds"] / h["prefill_seconds"] for h, r in zip(hosts, rounds, strict=True)
        ]
        found.append(
            Speed(
                variant,
                length,
                plain.fmean(r["nbytes"] / r["dense_nbytes"] for r in rounds),
                Estimate(plain.median(decode), min(decode), max(decode), len(rounds)),
                plain.median(prefill),
                1 / plain.median(r["step_seconds"] for r in rounds),
                plain.median(r["compress_seconds"] for r in rounds),
            )
        )
    return found


def cases(records: Iterable[Record], mode: str) -> list[Record]:
    """The quality records of one mode."""
    return [r for r in records if r["kind"] == "case" and r["mode"] == mode]


def modes(records: Iterable[Record]) -> list[str]:
    """Modes that were measured, in order."""
    return list(dict.fromkeys(r["mode"] for r in records if r["kind"] == "case"))


def task_names(records: Iterable[Record]) -> list[str]:
    """Tasks that were measured, in order."""
    return list(dict.fromkeys(r["task"] for r in records if r["kind"] == "case"))


def kept(records: Iterable[Record], mode: str) -> dict[Variant, tuple[int, list[list[float]]]]:
    """Tokens seen, and tokens kept by layer and head, in one case of each variant."""
    return {
        Variant(r["recipe"], r["keep"]): (r["seen"], r["kept"])
        for r in reversed(cases(records, mode))
        if "kept" in r
    }
