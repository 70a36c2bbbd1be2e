"""Category policies: one category is the plain cache, doubt is strict, load relaxes to floors."""

import math
from dataclasses import replace

import numpy as np
import pytest
from candidates import candidate
from hypothesis import given
from hypothesis import strategies as st

from recollect.answers.decision import Context, Verdict
from recollect.answers.decisions import (
    Centroids,
    LoadMeter,
    PerCategory,
    Static,
    relaxed_similarity,
    relaxed_ttl,
)
from recollect.answers.decisions.category import CategoryRule, break_even, strictest
from recollect.answers.decisions.classify import fit_centroids
from recollect.answers.encoders import NgramEncoder
from recollect.errors import RecipeError, StoreError

similarities = st.lists(st.floats(-1, 1), max_size=8).map(lambda s: sorted(s, reverse=True))


@given(similarities, st.floats(-1, 1))
def test_one_category_decides_as_the_plain_threshold(values, threshold):
    near = [candidate(n, s, category="all") for n, s in enumerate(values)]
    policy = PerCategory({"all": CategoryRule(threshold)})
    context = Context("q", category="all", now=1.0)
    plain = Static(threshold).decide(near, context)
    assert policy.decide(near, context)[:2] == plain[:2]


RULES = {
    "faq": CategoryRule(0.8, ttl=100.0, quota=0.5, drop=0.1, floor=0.75, growth=1.0),
    "code": CategoryRule(0.95, ttl=1000.0, quota=0.2),
}


def decide(near, **context):
    return PerCategory(RULES).decide(near, Context("q", **context))


def test_each_category_has_its_own_threshold():
    near = [candidate(1, 0.9, category="faq"), candidate(2, 0.9, category="code")]
    assert decide(near, category="faq")[:2] == (Verdict.HIT, 1)
    assert decide(near, category="code").verdict is Verdict.MISS


def test_an_entry_too_old_for_its_category_is_a_miss_before_anything_is_fetched():
    near = [candidate(1, 0.99, category="faq", created_at=0.0)]
    assert decide(near, category="faq", now=99.9).verdict is Verdict.HIT
    old = decide(near, category="faq", now=100.0)
    assert (old.verdict, old.reason) == (Verdict.MISS, "older than category 'faq' allows")
    assert decide(near, category="faq", now=150.0, load=1.0).verdict is Verdict.HIT


def test_load_lowers_the_threshold_to_its_floor_only():
    near = [candidate(1, 0.76, category="faq")]
    assert decide(near, category="faq", load=0.0).verdict is Verdict.MISS
    assert decide(near, category="faq", load=1.0).verdict is Verdict.HIT
    assert decide([candidate(1, 0.74, category="faq")], category="faq", load=1.0)[1] is None
    assert decide([candidate(1, 0.94, category="code")], category="code", load=1.0)[1] is None


def test_an_unknown_category_is_treated_by_the_strictest_rule():
    near = [candidate(1, 0.94), candidate(2, 0.96)]
    assert decide(near[:1], category="").verdict is Verdict.MISS
    assert decide(near[1:], category="").verdict is Verdict.HIT
    lifetime = PerCategory(RULES).lifetime("never heard of", load=1.0)
    assert (lifetime.ttl, lifetime.quota, lifetime.cacheable) == (100.0, 0.2, True)


def test_one_category_that_is_never_cached_closes_the_unknown_too():
    rules = {**RULES, "personal": CategoryRule(cacheable=False)}
    assert PerCategory(rules).lifetime("", 0.0).cacheable is False
    decision = PerCategory(rules).decide([candidate(1, 1.0)], Context("q"))
    assert decision.reason == "category 'unknown' is never cached"


def test_the_strictest_of_nothing_caches_nothing():
    assert strictest([]).cacheable is False


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(-1, 1), st.floats(-5, 5))
def test_relaxation_never_leaves_the_range_between_floor_and_threshold(tau, drop, floor, load):
    found = relaxed_similarity(tau, drop, floor, load)
    assert min(tau, floor) <= found <= tau
    assert relaxed_similarity(tau, drop, floor, 0.0) == tau


def test_relaxed_times_follow_the_formula():
    assert relaxed_similarity(0.9, 0.1, 0.5, 0.5) == pytest.approx(0.85)
    assert relaxed_ttl(100, 2.0, 0.5) == 200
    assert relaxed_ttl(100, 2.0, math.nan) == 100


def test_a_load_meter_follows_latency_and_forgets():
    meter = LoadMeter(target=1.0, limit=3.0, half_life=10.0)
    assert meter.load(0.0) == 0.0
    meter.record(2.0, now=0.0)
    assert meter.load(0.0) == 0.5
    assert meter.load(10.0) == 0.25
    for second in range(1, 200):
        meter.record(5.0, now=float(second))
    assert meter.load(199.0) == 1.0
    assert meter.load(100.0) == 1.0  # a clock set back changes nothing


def test_break_even_hit_rates_are_the_published_ones():
    assert break_even(0.030, 0.200) == pytest.approx(0.15)
    assert break_even(0.030, 0.150) == pytest.approx(0.20)
    assert break_even(0.002, 0.050, fetch=0.005) == pytest.approx(0.044, abs=1e-3)
    assert break_even(0.002, 0.200, fetch=0.005) == pytest.approx(0.010, abs=1e-3)
    assert break_even(0.002, 0.005, fetch=0.005) == math.inf


@pytest.mark.parametrize(
    "wrong", [{"min_similarity": 90}, {"quota": 2}, {"ttl": -1}, {"drop": -0.1}]
)
def test_impossible_rules_are_refused(wrong):
    with pytest.raises(RecipeError):
        replace(CategoryRule(), **wrong)


EXAMPLES = {
    "oil": ["how do i change the oil", "steps to change car oil", "changing engine oil"],
    "weather": ["what is the weather today", "weather forecast for tomorrow", "is it raining"],
}


@pytest.fixture(scope="module")
def classifier():
    return fit_centroids(EXAMPLES, NgramEncoder(), {"oil": "faq", "weather": "live"})


def classify(classifier, text):
    return classifier.classify(text, NgramEncoder().encode([text])[0])


def test_a_clear_query_finds_its_category_and_a_foreign_one_finds_none(classifier):
    assert classify(classifier, "how to change oil in my car") == "faq"
    assert classify(classifier, "tomorrow's weather forecast") == "live"
    assert classify(classifier, "zebra quilts") == ""
    assert classifier.classify("no vector", None) == ""


def test_a_query_between_two_categories_is_unknown(classifier):
    middle = classifier.vectors.sum(0)
    assert classifier.classify("", middle / np.linalg.norm(middle)) == ""


def test_centroids_survive_saving_and_refuse_another_encoder(classifier, tmp_path):
    path = tmp_path / "centroids.safetensors"
    classifier.save(path)
    loaded = Centroids.load(path, classifier.encoder_id)
    assert loaded.categories == ("faq", "live")
    assert classify(loaded, "how to change oil in my car") == "faq"
    with pytest.raises(StoreError, match="no centroids of another"):
        Centroids.load(path, "another")
