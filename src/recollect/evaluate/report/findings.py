"""What a run says in one glance: the tiles on top of the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from recollect.evaluate.caches import HOST
from recollect.evaluate.summary import Point, Record, Speed, modes, points

SMALL = 0.3  # "about a quarter": some recipes hold a little more than they are told to keep
BASELINES = (HOST, "full")
MODE_WORDS = {"agnostic": "question unseen", "aware": "question in view"}


class Tile(NamedTuple):
    """One finding.

    Attributes:
        title: what was looked for.
        figure: the number.
        words: which recipe, and against what.
    """

    title: str
    figure: str
    words: str


def tiles(records: Sequence[Record], speeds: Sequence[Speed], metric: str) -> list[Tile]:
    """The best small cache of each mode, the smallest lossless one, the fastest one."""
    found: list[Tile] = []
    for mode in modes(records):
        found += _best_small(points(records, metric=metric, mode=mode), mode)
    for mode in modes(records)[:1]:
        found += _smallest_good(points(records, metric=metric, mode=mode), mode)
    fastest = max(
        (s for s in speeds if s.variant.recipe not in BASELINES),
        key=lambda s: s.decode.mean,
        default=None,
    )
    if fastest is not None:
        found.append(Tile(
            "Fastest decoding", f"{fastest.decode.mean:.2f}×",
            f"{fastest.variant.label}, against the host's cache at {fastest.length:,} tokens",
        ))  # fmt: skip
    return found


def _best_small(its: list[Point], mode: str) -> list[Tile]:
    full = _host(its)
    small = [p for p in its if p.bytes_ratio <= SMALL and p.variant.recipe not in BASELINES]
    if full is None or not small or full.value.mean <= 0:
        return []
    best = max(small, key=lambda p: p.value.mean)
    share = best.value.mean / full.value.mean
    return [Tile(
        f"Best at {SMALL:.0%} of the bytes, {MODE_WORDS[mode]}", f"{share:.0%} of full quality",
        f"{best.variant.label}: {best.value.mean:.0%} of answer tokens right at "
        f"{best.bytes_ratio:.0%} of the bytes; full cache {full.value.mean:.0%}",
    )]  # fmt: skip


def _smallest_good(its: list[Point], mode: str) -> list[Tile]:
    full = _host(its)
    if full is None:
        return []
    good = [
        p
        for p in its
        if p.variant.recipe not in BASELINES and p.value.mean >= 0.95 * full.value.mean
    ]
    if not good:
        return []
    best = min(good, key=lambda p: p.bytes_ratio)
    return [Tile(
        f"Smallest with 95% of full quality, {MODE_WORDS[mode]}",
        f"{best.bytes_ratio:.0%} of the bytes", best.variant.label,
    )]  # fmt: skip


def _host(its: list[Point]) -> Point | None:
    return next((p for p in its if p.variant.recipe == HOST), None)
