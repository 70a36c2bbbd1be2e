"""The head of a prompt: loaded while that is quicker, given up when it is not."""

import pytest

from recollect.store.admission import Admission, AdmissionPolicy
from recollect.store.background import BackgroundThreads
from recollect.store.loading import load_leading, plan_load
from recollect.store.store import Store
from recollect.store.tiers.objects import ObjectTier

CHUNK, NBYTES = 16, 1000
KEYS = [bytes([i]) * 32 for i in range(1, 9)]


class Slow(ObjectTier):
    """Every read advances a clock; how much may change from read to read."""

    def __init__(self, seconds):
        super().__init__("memory:///")
        self.seconds, self.now, self.reads = seconds, 0.0, 0

    def get(self, key):
        self.now += self.seconds(self.reads)
        self.reads += 1
        return super().get(key)


def make_store(seconds, known, **policy):
    """A store of one tier whose reads took `known` seconds so far; a chunk computes in 10 ms."""
    tier = Slow(seconds)
    admission = Admission(AdmissionPolicy(**policy), clock=lambda: tier.now)
    for tokens in (CHUNK, 8 * CHUNK):
        admission.observe_prefill(tokens, 0.01 * tokens / CHUNK)
    store = Store(tiers=[tier], admission=admission, background=BackgroundThreads(1))
    store.clock = lambda: tier.now
    for key in KEYS:
        store.put(key, bytes(NBYTES))
    for _ in range(20):
        store.admission.observe_read("objects", NBYTES, known)
    return store, tier


def load(store, keys=KEYS):
    leases = load_leading(store, keys, 8 * CHUNK + 1, nbytes=NBYTES, chunk=CHUNK)
    for lease in leases:
        lease.release()
    return len(leases)


def test_a_quick_tier_is_loaded_whole():
    store, _ = make_store(lambda _: 0.001, known=0.001)
    assert load(store) == 8


def test_a_slow_tier_is_not_touched():
    store, tier = make_store(lambda _: 1.0, known=1.0)
    assert load(store) == 0
    assert tier.reads == 0


def test_a_tier_that_turned_slow_is_given_up_after_two_chunks():
    store, tier = make_store(lambda _: 1.0, known=0.001)
    assert load(store) <= 2
    assert load(store) == 0
    assert tier.reads <= 2


def test_one_hiccup_does_not_end_a_load():
    store, _ = make_store(lambda read: 0.05 if read == 2 else 0.001, known=0.001)
    assert load(store) == 8


def test_what_is_missing_ends_the_load():
    store, _ = make_store(lambda _: 0.001, known=0.001)
    store.delete(KEYS[3])
    assert load(store) == 3
    assert load(store, KEYS[4:6]) == 2


def test_an_entry_that_vanishes_while_loading_ends_the_load():
    store, tier = make_store(lambda _: 0.001, known=0.001)
    tier.seconds = lambda read: 0.001 * store.delete(KEYS[2])
    assert load(store) == 2


def test_a_tier_passed_over_for_long_is_measured_off_the_path():
    store, tier = make_store(lambda _: 1.0, known=1.0, probe_every=60)
    tier.now += 100
    decision, stored = plan_load(store, KEYS, 200, nbytes=NBYTES, chunk=CHUNK)
    assert (decision.load, decision.probe, len(stored)) == (0, "objects", 8)


@pytest.mark.parametrize("tier", ["disk", "memory"])
def test_real_tiers_load_what_was_put(tmp_path, tier):
    where = {"path": tmp_path} if tier == "disk" else {"remote": "memory:///"}
    with Store(host=None, **where, chunk=CHUNK) as store:
        for i, key in enumerate(KEYS):
            store.put(key, bytes([i]) * NBYTES)
        leases = store.load(KEYS, 200, nbytes=NBYTES)
        assert [bytes(lease.data) for lease in leases] == [bytes([i]) * NBYTES for i in range(8)]
        name = store.tiers[0].name
        assert store.admission.reading(name).observations == 8
        for lease in leases:
            lease.release()
        del leases, lease
        assert store.stats().tiers[0].leases == 0
