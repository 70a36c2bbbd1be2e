"""Admission: costs are learned from what happened, and no request waits longer than without."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recollect.errors import RecipeError
from recollect.store.admission import Admission, AdmissionPolicy, Stored
from recollect.store.costs import LinkCost, PrefillCost, non_negative_fit


def measured(reads=(), prefills=(), **policy):
    """An admission that has seen reads (tier, bytes, seconds) and prefills (tokens, seconds)."""
    admission = Admission(AdmissionPolicy(**policy), clock=lambda: 0.0)
    for read in reads:
        admission.observe_read(*read)
    for tokens, seconds in prefills:
        admission.observe_prefill(tokens, seconds)
    return admission


# -- costs ---------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.floats(1e-5, 1), st.floats(1e5, 1e10))
def test_latency_and_bandwidth_are_recovered_from_two_sizes(latency, bandwidth):
    link = LinkCost()
    for nbytes in (1_000, 10_000_000) * 4:
        link.observe(nbytes, latency + nbytes / bandwidth)
    for nbytes in (1_000, 100_000, 10_000_000):
        assert link.predict(nbytes) == pytest.approx(latency + nbytes / bandwidth, rel=0.01)


@settings(deadline=None)
@given(st.floats(1e-5, 1e2), st.integers(1, 10**8), st.floats(0.1, 10))
def test_one_size_seen_bounds_every_other(seconds, nbytes, ratio):
    """Nothing costs less than none of it being fixed, nor more than all of it growing."""
    link = LinkCost()
    for _ in range(20):
        link.observe(nbytes, seconds)
    assert link.predict(nbytes) == pytest.approx(seconds, rel=0.01)
    low, high = sorted([seconds, seconds * ratio])
    assert low * 0.99 <= link.predict(nbytes * ratio) <= high * 1.01


def test_small_transfers_teach_latency_and_large_ones_bandwidth():
    small, large = LinkCost(), LinkCost()
    small.observe(100, 0.5)
    assert small.predict(10_000_000) < 1.0
    large.observe(10_000_000, 10.0)
    assert large.predict(100_000_000) > 50.0


@pytest.mark.parametrize("times", [0.001, 0.1, 10, 1000])
def test_a_link_that_changed_for_good_is_found_out_within_a_few_transfers(times):
    link = LinkCost()
    for _ in range(100):
        link.observe(1_000_000, 0.01)
    for _ in range(8):
        link.observe(1_000_000, 0.01 * times)
    assert link.predict(1_000_000) == pytest.approx(0.01 * times, rel=0.2)


@pytest.mark.parametrize("times", [0.001, 1000])
def test_one_hiccup_moves_little(times):
    link = LinkCost()
    for _ in range(20):
        link.observe(1_000_000, 0.01)
    link.observe(1_000_000, 0.01 * times)
    assert 0.009 < link.predict(1_000_000) < 0.015
    link.observe(1_000_000, 0.01)
    assert 0.009 < link.predict(1_000_000) < 0.015


def test_prefill_learns_start_tokens_and_pairs():
    def truth(tokens, prefix=0):
        return 3e-3 + 2e-5 * tokens + 4e-9 * tokens * (prefix + (tokens + 1) / 2)

    prefill = PrefillCost()
    for tokens, prefix in [(64, 0), (512, 0), (4096, 0), (64, 4096), (1024, 1024)] * 3:
        prefill.observe(tokens, truth(tokens, prefix), prefix)
    for tokens, prefix in [(128, 0), (2048, 2048), (8192, 0)]:
        assert prefill.predict(tokens, prefix) == pytest.approx(truth(tokens, prefix), rel=0.02)
    assert prefill.predict(0, 100) == 0.0


@given(st.integers(2, 3), st.integers(0, 2**32 - 1))
def test_no_other_non_negative_prices_fit_better(count, seed):
    rng = np.random.default_rng(seed)
    rows, times = rng.normal(size=(6, count)), rng.normal(size=6)
    squares, sums = rows.T @ rows, rows.T @ times
    found = non_negative_fit(squares, sums)
    assert (found >= 0).all()

    def loss(prices):
        return ((times - rows @ prices) ** 2).sum()

    others = np.abs(found + rng.normal(size=(200, count)) * rng.choice([0.01, 0.1, 1], (200, 1)))
    assert all(loss(found) <= loss(other) + 1e-9 for other in others)


def test_what_took_no_time_teaches_nothing():
    link = LinkCost()
    link.observe(10, 0.0)
    assert link.observations == 0


# -- loading -------------------------------------------------------------------------------------

chunks = st.lists(
    st.builds(
        Stored, st.sampled_from(["disk", "redis"]), st.integers(1, 10**7), st.integers(1, 512)
    ),
    max_size=8,
)
seconds = st.floats(1e-4, 10)


@given(chunks, st.integers(0, 500), seconds, seconds, seconds)
def test_the_split_is_the_best_of_all(stored, rest, disk, redis, prefill):
    admission = measured(
        [("disk", 10**6, disk), ("redis", 10**6, redis)], [(256, prefill), (64, prefill / 2)]
    )
    total = sum(chunk.tokens for chunk in stored) + rest

    def seconds(load):
        done = sum(chunk.tokens for chunk in stored[:load])
        loading = sum(admission.reading(c.tier).predict(c.nbytes) for c in stored[:load])
        return loading + admission.prefill.predict(total - done, prefix=done)

    decision = admission.decide(stored, total)
    assert decision.without == pytest.approx(seconds(0))
    assert decision.seconds == pytest.approx(seconds(decision.load))
    assert decision.seconds <= min(map(seconds, range(len(stored) + 1))) * (1 + 1e-9)


def test_a_fast_tier_is_loaded_and_a_slow_one_is_not():
    stored = [Stored("disk", 10**6, 256)] * 4
    fast = measured([("disk", 10**6, 0.001)], [(256, 0.1), (1024, 0.4)])
    slow = measured([("disk", 10**6, 10.0)], [(256, 0.1), (1024, 0.4)])
    assert fast.decide(stored, 1100).load == 4
    assert slow.decide(stored, 1100).load == 0


def test_what_is_near_is_loaded_though_the_rest_is_far():
    stored = [Stored("host", 10**6, 256)] * 2 + [Stored("redis", 10**6, 256)] * 2
    admission = measured([("host", 10**6, 1e-4), ("redis", 10**6, 10.0)], [(256, 0.1), (1024, 0.4)])
    assert admission.decide(stored, 1100).load == 2


@given(chunks, st.floats(1.0, 100))
def test_a_faster_tier_is_never_loaded_less(stored, times):
    total = sum(chunk.tokens for chunk in stored) + 10
    prefills = [(64, 0.02), (1024, 0.4)]
    slow = measured([("disk", 10**6, 0.1), ("redis", 10**6, 0.2)], prefills)
    fast = measured([("disk", 10**6, 0.1 / times), ("redis", 10**6, 0.2 / times)], prefills)
    if len({chunk.tier for chunk in stored}) == 1:
        assert fast.decide(stored, total).load >= slow.decide(stored, total).load
    assert fast.decide(stored, total).seconds <= slow.decide(stored, total).seconds * (1 + 1e-9)


def test_before_any_prefill_everything_stored_is_loaded():
    assert Admission().decide([Stored("redis", 10**9, 1)] * 3, 10).load == 3


def test_always_and_never():
    stored = [Stored("disk", 10**6, 256)] * 4
    slow = {"reads": [("disk", 10**6, 10.0)], "prefills": [(256, 0.1)]}
    assert measured(**slow, mode="always").decide(stored, 1100).load == 4
    fast = {"reads": [("disk", 10**6, 1e-4)], "prefills": [(256, 0.1)]}
    never = measured(**fast, mode="never")
    assert never.decide(stored, 1100).load == 0
    assert not never.stores("disk", 1, 256)


def test_a_margin_asks_for_a_clear_gain():
    stored = [Stored("disk", 10**6, 256)]
    seen = {"reads": [("disk", 10**6, 0.08)], "prefills": [(256, 0.1)]}
    assert measured(**seen).decide(stored, 256).load == 1
    assert measured(**seen, margin=0.5).decide(stored, 256).load == 0


def test_a_tier_that_is_passed_over_is_measured_again_now_and_then():
    now = [0.0]
    admission = Admission(AdmissionPolicy(probe_every=60), clock=lambda: now[0])
    admission.observe_prefill(256, 0.001)
    admission.observe_read("redis", 10**6, 1.0)
    stored = [Stored("redis", 10**6, 256)]
    assert admission.decide(stored, 300).probe is None
    now[0] = 61.0
    assert admission.decide(stored, 300).probe == "redis"
    assert admission.decide(stored, 300).probe is None  # one is under way
    for _ in range(40):
        admission.observe_read("redis", 10**6, 1e-5)
    assert admission.decide(stored, 300).load == 1


def test_unknown_modes_and_senseless_numbers_are_refused():
    with pytest.raises(RecipeError, match="measured, always, never"):
        AdmissionPolicy(mode="sometimes")
    with pytest.raises(RecipeError, match="positive"):
        AdmissionPolicy(margin=0)


# -- storing -------------------------------------------------------------------------------------


def test_what_would_never_be_loaded_is_not_written():
    prefills = [(256, 0.1), (1024, 0.4)]
    assert not measured([("redis", 10**6, 10.0)], prefills).stores("redis", 10**6, 256)
    assert measured([("redis", 10**6, 0.001)], prefills).stores("redis", 10**6, 256)


def test_what_is_never_reused_is_not_written_where_writes_are_dear():
    admission = measured([("redis", 10**6, 0.01)], [(256, 0.02)])
    admission.observe_write("redis", 10**6, 0.02)
    assert admission.stores("redis", 10**6, 256)
    admission.observe_reuse(stored=100_000)
    assert not admission.stores("redis", 10**6, 256)
    admission.observe_reuse(reused=100_000)
    assert admission.stores("redis", 10**6, 256)


def test_entries_of_which_nothing_is_known_are_stored():
    assert measured([("redis", 10**6, 10.0)], [(256, 0.1)]).stores("redis", 10**6, 0)


# -- never slower than no cache ------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("megabytes", [1, 10, 100, 1000])
def test_regret_on_throttled_tiers(megabytes, noise):
    """TTFT at most 1.05 times the better of always and never, summed over requests of a length.

    A simulated clock: loading and computing take what a link and a model take, give or take
    `noise`; the admission sees those times and nothing else.
    """
    rng = random.Random(megabytes)
    per_token, chunk = 4096, 64

    def compute(tokens, prefix=0):
        wobble = 1 + rng.uniform(-noise, noise)
        pairs = tokens * (prefix + tokens / 2)
        return (2e-3 + 6e-5 * tokens + 8e-9 * pairs) * wobble if tokens else 0.0

    def load():
        return (5e-4 + chunk * per_token / (megabytes * 1e6)) * (1 + rng.uniform(-noise, noise))

    admission = Admission(clock=lambda: 0.0)
    lengths = [64, 128, 256, 512, 1024, 2048, 4096]
    for tokens in lengths:  # prefills happen before anything is stored
        admission.observe_prefill(tokens, compute(tokens))

    def request(length):
        stored = [Stored("redis", chunk * per_token, chunk)] * (length // chunk)
        spent, ready = 0.0, 0
        while admission.decide(stored[ready // chunk :], length + 8, ready=ready).load:
            seconds = load()
            spent += seconds
            ready += chunk
            admission.observe_read("redis", chunk * per_token, seconds)
        seconds = compute(length + 8 - ready, ready)
        admission.observe_prefill(length + 8 - ready, seconds, ready)
        return spent + seconds

    for length in lengths:
        request(length)  # the first request of each length learns
    for length in lengths:
        ours = always = never = 0.0
        for _ in range(30):
            ours += request(length)
            always += sum(load() for _ in range(length // chunk)) + compute(8, length)
            never += compute(length + 8)
        slack = 1.05 if not noise else 1.08  # 30 noisy sums differ by a few percent themselves
        assert ours <= slack * min(always, never), (length, ours, always, never)
