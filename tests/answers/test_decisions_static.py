"""The plain threshold, and thresholds chosen from observations."""

import numpy as np
import pytest
from candidates import candidate
from hypothesis import given
from hypothesis import strategies as st

from recollect.answers.decision import Context, Verdict
from recollect.answers.decisions import Static
from recollect.answers.learning.calibrate import (
    NOTHING,
    best_f_threshold,
    category_thresholds,
    threshold_for_wrong_share,
)
from recollect.errors import RecipeError

CONTEXT = Context(query="q")


def test_the_threshold_itself_is_a_hit_and_anything_below_is_not():
    policy = Static(min_similarity=0.8)
    assert policy.decide([candidate(1, 0.8)], CONTEXT)[:2] == (Verdict.HIT, 1)
    assert policy.decide([candidate(1, 0.7999)], CONTEXT)[:2] == (Verdict.MISS, None)
    assert policy.decide([], CONTEXT).reason == "nothing similar is stored"


def test_a_threshold_that_is_no_cosine_is_refused():
    with pytest.raises(RecipeError, match="a cosine between -1 and 1, not 80"):
        Static(min_similarity=80)


observations = st.lists(
    st.tuples(st.sampled_from(np.linspace(0, 1, 11).tolist()), st.booleans()), min_size=1
)


def outcome(pairs, threshold):
    hits = [right for similarity, right in pairs if similarity >= threshold]
    return len(hits), hits.count(False)


@given(observations, st.sampled_from([0.0, 0.1, 0.5]))
def test_threshold_for_a_wrong_share_is_the_lowest_that_holds_it(pairs, wrong):
    chosen = threshold_for_wrong_share(*zip(*pairs, strict=True), wrong)
    hits, errors = outcome(pairs, chosen)
    assert errors <= wrong * hits
    for other in {similarity for similarity, _ in pairs}:
        more, bad = outcome(pairs, other)
        assert more <= hits or bad > wrong * more


@given(observations, st.sampled_from([0.5, 1.0, 2.0]))
def test_best_f_threshold_beats_every_other(pairs, beta):
    if len({right for _, right in pairs}) < 2:
        with pytest.raises(RecipeError, match="right and wrong"):
            best_f_threshold(*zip(*pairs, strict=True), beta)
        return

    def f(threshold):
        hits, errors = outcome(pairs, threshold)
        positives = sum(right for _, right in pairs)
        return (1 + beta**2) * (hits - errors) / (hits + beta**2 * positives)

    chosen = best_f_threshold(*zip(*pairs, strict=True), beta)
    assert f(chosen) == pytest.approx(max(f(similarity) for similarity, _ in pairs))


@given(observations, observations, st.sampled_from([0.0, 0.1, 0.3]))
def test_category_thresholds_hold_the_share_over_all_categories(first, second, wrong):
    pairs = {"a": tuple(zip(*first, strict=True)), "b": tuple(zip(*second, strict=True))}
    chosen = category_thresholds(pairs, wrong)
    hits, errors = (
        sum(parts)
        for parts in zip(outcome(first, chosen["a"]), outcome(second, chosen["b"]), strict=True)
    )
    assert errors <= wrong * hits


def test_category_thresholds_take_the_hits_where_they_are_safe():
    clean = ([0.5, 0.6, 0.7, 0.8], [True] * 4)
    dirty = ([0.5, 0.6, 0.7, 0.9], [False, False, False, True])
    chosen = category_thresholds({"clean": clean, "dirty": dirty}, 0.0)
    assert chosen == {"clean": 0.5, "dirty": pytest.approx(0.8)}
    alone = threshold_for_wrong_share(clean[0] + dirty[0], clean[1] + dirty[1], 0.0)
    assert alone > 0.7  # one threshold for both gets two hits, two thresholds get five


def test_a_category_of_wrong_answers_only_is_closed():
    chosen = category_thresholds({"bad": ([0.9, 0.95], [False, False])}, 0.1)
    assert chosen == {"bad": NOTHING}
