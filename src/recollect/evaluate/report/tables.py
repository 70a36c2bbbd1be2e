"""The report's tables: all numbers of a mode, and papers beside our measurements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from recollect import recipe as registry
from recollect.evaluate.caches import HOST, Variant
from recollect.evaluate.metrics import Metric
from recollect.evaluate.report.findings import BASELINES, MODE_WORDS
from recollect.evaluate.summary import Record, Speed, modes, points


class Cell(NamedTuple):
    """A cell as shown, and the value it sorts by."""

    text: str
    value: float | str
    range: str = ""


def numbers(
    records: Sequence[Record], speeds: Sequence[Speed], metrics: Sequence[Metric], mode: str
) -> dict[str, Any]:
    """One row per variant: bytes, every metric, speed."""
    by_metric = {
        m.name: {p.variant: p for p in points(records, metric=m.name, mode=mode)} for m in metrics
    }
    fast = {s.variant: s for s in speeds}  # the longest context wins
    headings = ["Recipe", "Keep", "Bytes", *(m.short for m in metrics)]
    headings += ["Decode", "Prefill"] if fast else []
    rows = []
    for variant, point in by_metric[metrics[0].name].items():
        cells = [
            Cell(variant.recipe, variant.recipe),
            Cell(f"{variant.keep:g}", float(variant.keep)),
            Cell(f"{point.bytes_ratio:.1%}", point.bytes_ratio),
        ]
        cells += [_estimate_cell(by_metric[m.name].get(variant), m) for m in metrics]
        if fast:
            speed = fast.get(variant)
            cells.append(Cell(f"{speed.decode.mean:.2f}×", speed.decode.mean) if speed else _NONE)
            cells.append(Cell(f"{speed.prefill:.2f}×", speed.prefill) if speed else _NONE)
        rows.append({"host": variant.recipe == HOST, "cells": cells})
    return {"mode": mode, "title": MODE_WORDS[mode], "headings": headings, "rows": rows}


_NONE = Cell("–", "")


def _estimate_cell(point: Any, metric: Metric) -> Cell:
    if point is None:
        return _NONE
    value = point.value
    if metric.bounds == (0.0, 1.0):
        span = f"{value.low:.0%}–{value.high:.0%}"
        return Cell(f"{value.mean:.1%}", value.mean, span)
    return Cell(f"{value.mean:.3f}", value.mean, f"{value.low:.2f} to {value.high:.2f}")


def papers(records: Sequence[Record], speeds: Sequence[Speed], metric: str) -> list[dict[str, Any]]:
    """For every paper behind the run's recipes: what it reported, and what we measured."""
    measured = list(dict.fromkeys(r["recipe"] for r in records if r["kind"] == "case"))
    names = dict.fromkeys(
        part.name
        for recipe in measured
        if recipe not in BASELINES
        for part in registry.compose(recipe).recipes
    )
    rows = []
    for name in names:
        paper = registry.find(name)
        alone = [r for r in measured if _names(r) == [name]]
        mixed = [r for r in measured if name in _names(r)]
        lines = [line for r in alone or mixed for line in _ours(records, speeds, metric, r)]
        rows.append({
            "name": name, "title": paper.title, "authors": paper.authors, "arxiv": paper.arxiv,
            "reported": paper.reported, "ours": lines,
        })  # fmt: skip
    return rows


def _names(recipe: str) -> list[str]:
    if recipe in BASELINES:
        return [recipe]
    return [part.name for part in registry.compose(recipe).recipes]


def _ours(
    records: Sequence[Record], speeds: Sequence[Speed], metric: str, recipe: str
) -> list[str]:
    """One line per keep: bytes, quality in each mode (the full cache's in brackets), speed."""
    found: dict[Variant, list[str]] = {}
    ratios: dict[Variant, float] = {}
    for mode in modes(records):
        its = points(records, metric=metric, mode=mode)
        full = next(p.value.mean for p in its if p.variant.recipe == HOST)
        for point in its:
            if point.variant.recipe == recipe:
                quality = f"{point.value.mean:.0%} ({full:.0%}) {_SHORT_MODES[mode]}"
                found.setdefault(point.variant, []).append(quality)
                ratios[point.variant] = point.bytes_ratio
    fast = {s.variant: f", decode {s.decode.mean:.2f}×" for s in speeds}
    return [
        f"{variant.label}, {ratios[variant]:.0%} of the bytes: {', '.join(qualities)}"
        + fast.get(variant, "")
        for variant, qualities in found.items()
    ]


_SHORT_MODES = {"agnostic": "unseen", "aware": "in view"}
