"""A store's counts in Prometheus' format, read when they are asked for.

`StoreCollector` may be registered with the registry of a server that has one already; nothing is
ever put in the global registry.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING

from recollect.errors import StoreError

try:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as error:  # pragma: no cover
    raise StoreError("metrics need prometheus-client: pip install recollect[store]") from error

if TYPE_CHECKING:
    from recollect.store.store import Store

# What a TierStat counts up, and what it holds now: field -> help
TIER_COUNTERS = {
    "hits": "Reads that found their entry.",
    "misses": "Reads that did not.",
    "evictions": "Entries that made room for others.",
    "errors": "Failures of the medium.",
    "corrupt": "Entries set aside because they failed a check.",
    "refused": "Reservations that found no room.",
}
TIER_GAUGES = {
    "entries": "Entries readable now.",
    "bytes": "Bytes of payload.",
    "capacity": "Bytes of room; 0 where there is no limit.",
    "leases": "Leases that live now.",
    "writing": "Reservations that live now.",
}
STORE_COUNTERS = {
    "puts": "Entries stored.",
    "refused": "Entries that no tier had room for.",
    "hits": "Entries found on some tier.",
    "misses": "Entries found on none.",
    "corrupt": "Entries that failed their check.",
    "promoted": "Copies made on a nearer tier.",
    "errors": "Failures of tiers.",
    "skipped": "Copies not made because too much was waiting.",
}


class StoreCollector(Collector):
    """Metrics named ``recollect_store_*``, labelled with the namespace and, by tier, its name."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        stats, space = self._store.stats(), self._store.namespace
        for name, text in STORE_COUNTERS.items():
            counter = CounterMetricFamily(f"recollect_store_{name}", text, labels=["namespace"])
            counter.add_metric([space], getattr(stats, name))
            yield counter
        tier_labels = ["namespace", "tier"]
        for name, text in TIER_COUNTERS.items():
            counter = CounterMetricFamily(f"recollect_store_tier_{name}", text, labels=tier_labels)
            for tier in stats.tiers:
                counter.add_metric([space, tier.name], getattr(tier, name))
            yield counter
        for name, text in TIER_GAUGES.items():
            gauge = GaugeMetricFamily(f"recollect_store_tier_{name}", text, labels=tier_labels)
            for tier in stats.tiers:
                gauge.add_metric([space, tier.name], getattr(tier, name))
            yield gauge
        yield from self._costs()

    def _costs(self) -> Iterator[Metric]:
        """What reads and writes were found to take; tiers never used are left out."""
        admission, space = self._store.admission, self._store.namespace
        labels = ["namespace", "tier", "direction"]
        latency = GaugeMetricFamily(
            "recollect_store_latency_seconds", "Measured time of a transfer without bytes.",
            labels=labels,
        )  # fmt: skip
        price = GaugeMetricFamily(
            "recollect_store_seconds_per_byte", "Measured time of a further byte.", labels=labels
        )
        for tier in self._store.tiers:
            for direction in ("reading", "writing"):
                link = getattr(admission, direction)(tier.name)
                if link.observations:
                    latency.add_metric([space, tier.name, direction], link.prices[0])
                    price.add_metric([space, tier.name, direction], link.prices[1])
        reuse = GaugeMetricFamily(
            "recollect_store_reuses_per_entry", "How often entries are read, recently.",
            labels=["namespace"],
        )  # fmt: skip
        reuse.add_metric([space], admission.reuses_per_entry)
        yield from (latency, price, reuse)


def metrics_text(store: Store) -> str:
    """All metrics of a store in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StoreCollector(store))
    return generate_latest(registry).decode()


def unlisted(stat: type) -> set[str]:
    """Fields of a statistics class that no metric shows; for the tests to find empty."""
    shown = {*TIER_COUNTERS, *TIER_GAUGES, *STORE_COUNTERS, "name", "tiers"}
    return {field.name for field in fields(stat)} - shown
