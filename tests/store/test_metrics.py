"""Metrics: everything that is counted is shown, read when asked for, and in nobody's registry."""

import prometheus_client
import pytest
from contract import BODY, KEYS
from prometheus_client.parser import text_string_to_metric_families

from recollect.store.metrics import StoreCollector, unlisted
from recollect.store.store import Store, StoreStats
from recollect.store.tiers.base import TierStat


@pytest.fixture
def store():
    with Store(host="1MiB", remote="memory:///", namespace="team") as store:
        yield store


def samples(store):
    """(name, tier) -> value."""
    families = text_string_to_metric_families(store.metrics())
    found = [sample for family in families for sample in family.samples]
    assert all(sample.labels["namespace"] == "team" for sample in found)
    return {
        (sample.name.removeprefix("recollect_store_"), sample.labels.get("tier")): sample.value
        for sample in found
    }


def test_every_count_of_the_store_is_shown():
    assert unlisted(StoreStats) == set()
    assert unlisted(TierStat) == set()


def test_counts_follow_what_happens(store):
    store.put(KEYS[0], BODY)
    store.flush()
    with store.get(KEYS[0]):
        assert samples(store)["tier_leases", "host"] == 1
    store.get(KEYS[1])
    shown = samples(store)
    assert shown["puts_total", None] == 1
    assert shown["hits_total", None] == 1
    assert shown["misses_total", None] == 1
    assert shown["tier_entries", "host"] == shown["tier_entries", "objects"] == 1
    assert shown["tier_bytes", "host"] == len(BODY)
    assert shown["tier_capacity", "host"] == 1 << 20
    assert shown["tier_leases", "host"] == 0


def test_measured_costs_appear_once_there_are_any(store):
    assert ("latency_seconds", "objects") not in samples(store)
    store.put(KEYS[0], BODY)
    store.flush()
    shown = samples(store)
    assert shown["latency_seconds", "objects"] + shown["seconds_per_byte", "objects"] > 0


def test_nothing_enters_the_global_registry(store):
    before = prometheus_client.generate_latest()
    store.metrics()
    assert b"recollect" not in prometheus_client.generate_latest()
    assert len(prometheus_client.generate_latest()) == pytest.approx(len(before), rel=0.2)


def test_a_server_may_register_a_store(store):
    registry = prometheus_client.CollectorRegistry()
    registry.register(StoreCollector(store))
    store.put(KEYS[0], BODY)
    assert registry.get_sample_value("recollect_store_puts_total", {"namespace": "team"}) == 1
