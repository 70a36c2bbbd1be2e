"""What the gateway has done, in figures: by category for the dashboard, and the latest decisions.

Metrics for machines are in `metrics`; this is what a person wants to see on one page.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import asdict, dataclass, field
from typing import Any

from recollect.gateway.metrics import Metrics

KINDS = ("exact", "semantic", "shared", "miss", "bypass", "error")


@dataclass(frozen=True)
class Outcome:
    """How one request went.

    Attributes:
        at: seconds since the epoch.
        protocol, model, tenant, category: of the request.
        kind: `exact` and `semantic` hits; `shared` another's answer under way; `miss`; `bypass`
            neither looked up nor stored; `error` not answered.
        reason: why, in a few words.
        seconds: until the client had its first byte.
        status: of HTTP.
        similarity: of a semantic hit.
        age: of the stored answer in seconds.
        tokens, money, saved_seconds: what a hit spared.
    """

    at: float
    protocol: str
    model: str
    tenant: str
    kind: str
    reason: str = ""
    category: str = ""
    seconds: float = 0.0
    status: int = 200
    similarity: float | None = None
    age: float | None = None
    tokens: int = 0
    money: float = 0.0
    saved_seconds: float = 0.0


@dataclass
class Tally:
    """Sums of one category."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    tokens: int = 0
    money: float = 0.0
    seconds: float = 0.0

    def add(self, outcome: Outcome) -> None:
        self.counts[outcome.kind] += 1
        self.tokens += outcome.tokens
        self.money += outcome.money
        self.seconds += outcome.saved_seconds


@dataclass
class Routed:
    """Sums of one model that requests were routed to.

    Attributes:
        requests, helped: requests, and those with examples.
        examples, tokens: shown, and what they added to prompts by estimate.
        rated, quality: answers that were rated, and the sum of the ratings.
    """

    requests: int = 0
    helped: int = 0
    examples: int = 0
    tokens: int = 0
    rated: int = 0
    quality: float = 0.0


class Board:
    """The figures.

    Args:
        metrics: told of everything as well.
        since: when counting began, seconds since the epoch.
        latest: decisions kept for display.
    """

    def __init__(self, metrics: Metrics, since: float, latest: int = 100) -> None:
        self._metrics, self._since = metrics, since
        self._categories: defaultdict[str, Tally] = defaultdict(Tally)
        self._latest: deque[Outcome] = deque(maxlen=latest)
        self._routed: defaultdict[str, Routed] = defaultdict(Routed)
        self.spent_tokens = 0
        self.spent_money = 0.0
        self.provider_cached_tokens = 0

    def note(self, outcome: Outcome) -> None:
        """A request was answered."""
        known = outcome.category in self._categories or len(self._categories) < 200
        self._categories[outcome.category if known else "(others)"].add(outcome)
        self._latest.appendleft(outcome)
        self._metrics.note(outcome)

    def spare(self, category: str, tokens: int, money: float) -> None:
        """Clients that shared one answer did not cost this much."""
        tally = self._categories[category]
        tally.tokens += tokens
        tally.money += money
        self._metrics.spare(tokens, money)

    def spend(self, tokens: int, money: float, provider_cached: int) -> None:
        """The upstream was paid; `provider_cached` prompt tokens were in its own cache."""
        self.spent_tokens += tokens
        self.spent_money += money
        self.provider_cached_tokens += provider_cached
        self._metrics.spend(tokens, money, provider_cached)

    def route(self, model: str, examples: int, tokens: int) -> None:
        """A request goes to this model, with so many examples."""
        routed = self._routed[model]
        routed.requests += 1
        routed.helped += examples > 0
        routed.examples += examples
        routed.tokens += tokens
        self._metrics.route(model, examples, tokens)

    def rate(self, model: str, quality: float) -> None:
        """An answer of this model was rated."""
        self._routed[model].rated += 1
        self._routed[model].quality += quality
        self._metrics.rate(model, quality)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        categories = [
            {"category": name, **asdict(tally)} for name, tally in self._categories.items()
        ]
        return {
            "since": self._since,
            "categories": sorted(categories, key=lambda c: -sum(c["counts"].values())),
            "spent": {
                "tokens": self.spent_tokens,
                "money": self.spent_money,
                "provider_cached_tokens": self.provider_cached_tokens,
            },
            "routed": [{"model": name, **asdict(one)} for name, one in self._routed.items()],
            "latest": [asdict(outcome) for outcome in self._latest],
        }
