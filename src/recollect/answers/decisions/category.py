"""What each category of queries is allowed: threshold, time to live, share of the room, or nothing.

Category-Aware Semantic Caching for Heterogeneous LLM Workloads (2025, arXiv 2510.26835). A query
whose category is unknown is treated by the strictest rule there is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from recollect.answers.decision import Candidate, Context, Decision, Lifetime, Verdict
from recollect.answers.decisions.load import relaxed_similarity, relaxed_ttl
from recollect.answers.decisions.static import check_similarity, nearest_above
from recollect.errors import RecipeError

DAY = 86_400.0


@dataclass(frozen=True)
class CategoryRule:
    """One category's policy.

    Attributes:
        min_similarity: cosine from which an entry answers.
        ttl: seconds an entry lives.
        quota: fraction of the capacity its entries may take; 0 stores nothing.
        cacheable: False: neither read nor written, not even for identical requests.
        drop: how far the threshold sinks at full load; 0 where errors are dear.
        floor: the threshold never sinks below.
        growth: at full load entries live (1 + growth) times as long.
    """

    min_similarity: float = 0.9
    ttl: float = DAY
    quota: float = 1.0
    cacheable: bool = True
    drop: float = 0.0
    floor: float = 0.8
    growth: float = 0.0

    def __post_init__(self) -> None:
        check_similarity("min_similarity", self.min_similarity)
        check_similarity("floor", self.floor)
        if not self.ttl >= 0 or not 0 <= self.quota <= 1:
            raise RecipeError(f"a category needs ttl >= 0 and quota in [0, 1], not {self}")
        if not (0 <= self.drop <= 1 and self.growth >= 0):
            raise RecipeError(f"a category needs drop in [0, 1] and growth >= 0, not {self}")

    def threshold(self, load: float) -> float:
        """The cosine in force at this load of the model."""
        return relaxed_similarity(self.min_similarity, self.drop, self.floor, load)


# Starting points for all-MiniLM-L6-v2; calibrate them with `learning.calibrate`.
DEFAULTS: Mapping[str, CategoryRule] = {
    "code": CategoryRule(0.92, 7 * DAY, drop=0.04, floor=0.88, growth=1.0),
    "docs": CategoryRule(0.88, 7 * DAY, drop=0.06, floor=0.80, growth=1.0),
    "faq": CategoryRule(0.88, 7 * DAY, drop=0.06, floor=0.80, growth=1.0),
    "chat": CategoryRule(0.85, 1 * DAY, drop=0.05, floor=0.80, growth=1.0),
    "facts": CategoryRule(0.90, 1 * DAY, drop=0.03, floor=0.87),
    "finance": CategoryRule(0.95, 300.0),
    "weather": CategoryRule(0.95, 300.0),
    "news": CategoryRule(0.95, 300.0),
    "medical": CategoryRule(0.95, 1 * DAY),
    "legal": CategoryRule(0.95, 1 * DAY),
    "personal": CategoryRule(cacheable=False),
    "tools": CategoryRule(cacheable=False),
    "side-effects": CategoryRule(cacheable=False),
}


@dataclass(frozen=True)
class Categories:
    """The rules of all categories: lifetimes for the store (stage ``lifetimes``).

    Attributes:
        categories: category -> rule.
        unknown: rule of queries without a known category; the strictest of `categories` when None,
            which forbids caching as soon as one category does.
    """

    categories: Mapping[str, CategoryRule] = field(default_factory=lambda: dict(DEFAULTS))
    unknown: CategoryRule | None = None

    def rule(self, category: str) -> CategoryRule:
        """The rule of a category, or that of the unknown."""
        known = self.categories.get(category)
        return known or self.unknown or strictest(self.categories.values())

    def lifetime(self, category: str, load: float) -> Lifetime:
        """Time to live in seconds at this load, quota, and whether to cache at all."""
        rule = self.rule(category)
        return Lifetime(relaxed_ttl(rule.ttl, rule.growth, load), rule.quota, rule.cacheable)


@dataclass(frozen=True)
class PerCategory(Categories):
    """Stage ``decision``: the threshold and the time to live of the query's category.

    Entries of other categories do not answer, and ages are judged here, before any answer is
    fetched. With one category this decides as `Static` does.

    Attributes:
        by_category: entries are searched within the query's category, so that nearer ones of
            other categories cannot hide the right one.
    """

    by_category: ClassVar[bool] = True

    def decide(self, candidates: Sequence[Candidate], context: Context) -> Decision:
        """HIT on the nearest candidate of the same category that is near and fresh enough."""
        rule = self.rule(context.category)
        name = context.category or "unknown"
        if not rule.cacheable:
            return Decision(Verdict.MISS, None, f"category '{name}' is never cached")
        ttl = relaxed_ttl(rule.ttl, rule.growth, context.load)
        alike = [c for c in candidates if c.category == context.category]
        fresh = [c for c in alike if context.now - c.created_at < ttl]
        if alike and not fresh:
            return Decision(Verdict.MISS, None, f"older than category '{name}' allows")
        decision = nearest_above(fresh, rule.threshold(context.load))
        return decision._replace(reason=f"{decision.reason} in category '{name}'")


def strictest(rules: Iterable[CategoryRule]) -> CategoryRule:
    """A rule as strict as every one of `rules` in every respect."""
    given = list(rules)
    if not given:
        return CategoryRule(cacheable=False)
    return CategoryRule(
        min_similarity=max(rule.min_similarity for rule in given),
        ttl=min(rule.ttl for rule in given),
        quota=min(rule.quota for rule in given),
        cacheable=all(rule.cacheable for rule in given),
        floor=max(rule.floor for rule in given),
    )


def break_even(lookup: float, model: float, fetch: float = 0.0) -> float:
    """Hit rate above which a category's cache pays for its lookups: lookup / (model - fetch).

    All in seconds (or all in money): `lookup` is paid by every request, `model` by every miss,
    `fetch` by every hit. Infinite where a hit costs as much as the model.
    """
    return lookup / (model - fetch) if model > fetch else math.inf
