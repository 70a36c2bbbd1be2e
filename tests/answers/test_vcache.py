"""vCache's verified decision: its formulas, and its promise on streams that fit its model."""

import math
import random

import numpy as np
import pytest
from candidates import candidate

from recollect.answers.decision import Context, Verdict
from recollect.answers.decisions import Verified, logistic
from recollect.answers.decisions.verified import (
    Curve,
    explore_probability,
    fit_curve,
    separated_variance,
)
from recollect.errors import RecipeError

CONTEXT = Context(query="q")


@pytest.mark.parametrize(
    ("delta", "variance", "expected"),
    [
        (0.02, 1e-4, [0.978, 0.919, 0.664, None, None]),
        (0.02, 1e-3, [0.979, 0.953, 0.881, 0.613, 0.192]),
        (0.02, 1e-2, [0.976, 0.964, 0.949, 0.921, 0.865]),
        (0.05, 1e-4, [0.946, 0.796, 0.159, None, None]),
    ],
)
def test_explore_probability_has_the_published_values(delta, variance, expected):
    curve = Curve(middle=0.8, steepness=40.0, variance=variance)
    for similarity, value in zip((0.75, 0.85, 0.90, 0.95, 1.0), expected, strict=True):
        found = explore_probability(similarity, curve, delta)
        if value is None:
            assert found < 0
        else:
            assert found == pytest.approx(value, abs=6e-4)


def test_logistic_fit_equals_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is the oracle")
    rng = np.random.default_rng(0)
    features = rng.standard_normal((300, 3))
    correct = rng.random(300) < logistic.sigmoid(features @ [2.0, -1.0, 0.5] + 0.3)
    ours = logistic.fit(features, correct, ridge=0.5)
    theirs = linear_model.LogisticRegression(C=2.0, tol=1e-10).fit(features, correct)
    expected = [*theirs.intercept_, *theirs.coef_[0]]
    np.testing.assert_allclose(ours.coefficients, expected, atol=1e-4)


def test_logistic_fit_is_finite_on_separable_data():
    fit = logistic.fit(np.array([[0.0], [0.1], [0.9], [1.0]]), np.array([0, 0, 1, 1]), 1e-3)
    assert np.isfinite(fit.coefficients).all()
    assert -fit.coefficients[0] / fit.coefficients[1] == pytest.approx(0.5, abs=1e-3)


def test_a_curve_finds_the_middle_of_what_it_is_fed():
    rng = random.Random(1)
    rows = []
    for _ in range(250):
        similarity = rng.uniform(0.6, 1.0)
        rows.append((similarity, rng.random() < 1 / (1 + math.exp(-40 * (similarity - 0.8)))))
    curve = fit_curve(rows)
    assert curve.middle == pytest.approx(0.8, abs=0.02)
    assert curve.steepness == pytest.approx(40, rel=0.35)
    assert 0 < curve.variance < 1e-3


def test_separated_observations_take_their_variance_from_the_table():
    curve = fit_curve([(0.7, False), (0.75, False), (0.9, True), (0.92, True)])
    assert 0.75 < curve.middle < 0.9
    assert curve.variance == 0.0354
    assert separated_variance(3) == 0.0354
    assert separated_variance(25) == 0.0131
    assert separated_variance(1000) == 0.0052


def test_an_entry_is_explored_until_it_has_four_observations_of_its_own():
    decision = Verified(delta=0.02).build()
    for n in range(4):
        assert decision.decide([candidate(7, 0.99)], CONTEXT).verdict is Verdict.EXPLORE, n
        decision.observe(7, 0.99, True)
    for similarity in np.linspace(0.5, 0.7, 60):
        decision.observe(7, similarity, similarity > 0.6)
        decision.observe(7, similarity, similarity > 0.59)
    assert decision.decide([candidate(7, 0.999)], CONTEXT)[:2] == (Verdict.HIT, 7)
    assert decision.decide([candidate(8, 0.999)], CONTEXT).verdict is Verdict.EXPLORE


def test_a_forgotten_entry_starts_again():
    decision = Verified(delta=0.02).build()
    for _ in range(60):
        decision.observe(7, 0.95, True)
    decision.forget([7])
    assert decision.decide([candidate(7, 0.99)], CONTEXT).verdict is Verdict.EXPLORE


def test_nothing_stored_is_a_miss():
    assert Verified().build().decide([], CONTEXT).verdict is Verdict.MISS


def test_a_delta_that_is_no_share_is_refused():
    with pytest.raises(RecipeError, match="between 0 and 1"):
        Verified(delta=2)


@pytest.mark.parametrize("delta", [0.02, 0.05])
def test_wrong_answers_stay_within_delta_where_the_model_holds(delta):
    """Six entries, correctness truly logistic: the share of wrong answers among all requests."""
    rng, decision = random.Random(3), Verified(delta=delta).build()
    wrong = hits = 0
    requests = 1800
    for n in range(requests):
        similarity = rng.uniform(0.5, 1.0)
        right = rng.random() < 1 / (1 + math.exp(-60 * (similarity - 0.75)))
        found = decision.decide([candidate(n % 6, similarity)], CONTEXT)
        if found.verdict is Verdict.HIT:
            hits += 1
            wrong += not right
        else:
            decision.observe(n % 6, similarity, right)
    assert wrong / requests <= delta
    assert hits / requests > 0.15
