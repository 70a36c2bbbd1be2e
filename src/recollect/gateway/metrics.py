"""Prometheus metrics. No label tells tenants or users apart: this page may be public."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from recollect.gateway.board import Outcome

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PREFIX = "recollect_gateway_"


class Metrics:
    """One gateway's metrics, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(_PREFIX + name, text, labels, registry=self._registry)

        self._requests = counter("requests", "Requests answered", "protocol", "kind", "status")
        self._saved_tokens = counter("saved_tokens", "Tokens hits did not cost")
        self._saved_seconds = counter("saved_seconds", "Seconds hits did not take")
        self._saved_money = counter("saved_money", "Money hits did not cost")
        self._spent_tokens = counter("upstream_tokens", "Tokens paid for")
        self._spent_money = counter("upstream_money", "Money paid")
        self._cached = counter("upstream_cached_tokens", "Prompt tokens in the provider's cache")
        self._routed = counter("routed", "Requests routed to a model", "model", "examples")
        self._example_tokens = counter("example_tokens", "Tokens that examples added", "model")
        self._rated = counter("rated", "Answers that were rated", "model")
        self._quality = counter("quality", "Sum of ratings from 0 to 1", "model")
        self._stored = counter("writes", "Answers offered to the store", "result")
        self._seconds = Histogram(
            _PREFIX + "first_byte_seconds",
            "Seconds to the first byte of an answer",
            ("protocol", "kind"),
            buckets=_SECONDS,
            registry=self._registry,
        )

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A figure that is asked for when the page is."""
        Gauge(_PREFIX + name, text, registry=self._registry).set_function(value)

    def note(self, outcome: Outcome) -> None:
        """A request was answered."""
        self._requests.labels(outcome.protocol, outcome.kind, str(outcome.status)).inc()
        self._seconds.labels(outcome.protocol, outcome.kind).observe(outcome.seconds)
        self._saved_seconds.inc(outcome.saved_seconds)
        self.spare(outcome.tokens, outcome.money)

    def spare(self, tokens: int, money: float) -> None:
        """Something was not paid for."""
        self._saved_tokens.inc(tokens)
        self._saved_money.inc(money)

    def spend(self, tokens: int, money: float, provider_cached: int) -> None:
        """The upstream was paid."""
        self._spent_tokens.inc(tokens)
        self._spent_money.inc(money)
        self._cached.inc(provider_cached)

    def stored(self, kept: bool) -> None:
        """An answer was offered to the store."""
        self._stored.labels("stored" if kept else "refused").inc()

    def route(self, model: str, examples: int, tokens: int) -> None:
        """A request goes to this model, with so many examples."""
        self._routed.labels(model, "yes" if examples else "no").inc()
        self._example_tokens.labels(model).inc(tokens)

    def rate(self, model: str, quality: float) -> None:
        """An answer of this model was rated."""
        self._rated.labels(model).inc()
        self._quality.labels(model).inc(quality)

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)
