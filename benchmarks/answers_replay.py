"""Replaying a stream of labelled queries through a decision policy, without a model behind it.

A miss or an exploration calls "the model", which gives the labelled answer; a hit is wrong when
the entry's label is another one. Nobody tells the policy about its hits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from answers_data import Queries
from recollect.answers.decision import Candidate, Context, Verdict

NEIGHBOURS = 8
THRESHOLDS = np.round(np.arange(0.50, 1.0, 0.01), 2)


class Outcome(NamedTuple):
    """Counts over a stream."""

    requests: int
    hits: int
    wrong: int

    @property
    def hit_rate(self) -> float:
        """Hits among requests."""
        return self.hits / self.requests

    @property
    def wrong_hits(self) -> float:
        """Wrong ones among hits."""
        return self.wrong / self.hits if self.hits else 0.0

    @property
    def wrong_requests(self) -> float:
        """Wrong hits among requests."""
        return self.wrong / self.requests


def replay(decision: object, queries: Queries, categories: Sequence[str] | None = None) -> Outcome:
    """What a decision object (`decide`, perhaps `observe`) does on the stream.

    With `categories` each query is searched among entries of its own category only.
    """
    paraphrases = getattr(decision, "keeps_paraphrases", False)
    learns = hasattr(decision, "observe")
    similar = queries.vectors @ queries.vectors.T
    names = np.array(categories) if categories is not None else np.full(len(similar), "")
    kept: dict[str, np.ndarray] = {}  # category -> the entries' places in the stream
    same_as: dict[int, int] = {}
    hits = wrong = 0
    for at, row in enumerate(similar):
        answer, name = queries.answer[at], names[at]
        pool = kept.setdefault(name, np.zeros(0, np.int64))
        near = _nearest(row, pool, same_as, name)
        found = decision.decide(near, Context("", category=name, now=1.0))
        if found.verdict is Verdict.HIT:
            hits += 1
            wrong += bool(queries.answer[found.entry_id] != answer)
            continue
        right = [c for c in near if queries.answer[c.entry_id] == answer]
        explored = next((c for c in near if c.entry_id == found.entry_id), None)
        if explored is not None and learns:
            decision.observe(explored.entry_id, explored.similarity, explored in right)
            if explored in right and not paraphrases:
                continue
        if right:
            same_as[at] = same_as.get(right[0].entry_id, right[0].entry_id)
        kept[name] = np.append(pool, at)
    return Outcome(len(similar), hits, wrong)


def _nearest(
    row: np.ndarray, pool: np.ndarray, same_as: dict[int, int], name: str
) -> list[Candidate]:
    if not len(pool):
        return []
    values = row[pool]
    few = min(NEIGHBOURS, len(pool))
    best = np.argpartition(-values, few - 1)[:few]
    best = best[np.argsort(-values[best])]
    return [
        Candidate(entry, cosine, name, None, 0.0, 9e9, "", "live", same_as.get(entry))
        for entry, cosine in zip(pool[best].tolist(), values[best].tolist(), strict=True)
    ]


def static_outcomes(queries: Queries) -> dict[float, Outcome]:
    """Every threshold of a plain cache that stores what it missed: threshold -> outcome."""
    similar = queries.vectors @ queries.vectors.T
    outcomes = {}
    for threshold in THRESHOLDS.tolist():
        absent = np.full(len(similar), -2.0, np.float32)
        hits = wrong = 0
        for at in range(len(similar)):
            seen = similar[at, :at] + absent[:at]
            nearest = int(seen.argmax()) if at else -1
            if at and seen[nearest] >= threshold:
                hits += 1
                wrong += bool(queries.answer[nearest] != queries.answer[at])
            else:
                absent[at] = 0.0
        outcomes[threshold] = Outcome(len(similar), hits, wrong)
    return outcomes


def best_static(outcomes: dict[float, Outcome], share: float, per: str = "hits") -> Outcome:
    """In hindsight: the threshold with most hits of which at most `share` are wrong."""
    wrong = {"hits": "wrong_hits", "requests": "wrong_requests"}[per]
    allowed = [outcome for outcome in outcomes.values() if getattr(outcome, wrong) <= share]
    nothing = Outcome(next(iter(outcomes.values())).requests, 0, 0)
    return max(allowed, key=lambda outcome: outcome.hits, default=nothing)
