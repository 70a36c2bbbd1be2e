"""The pooled bound: votes of neighbours, a budget of wrong hits, and a stream that holds it."""

import numpy as np
import pytest
from candidates import candidate
from hypothesis import given
from hypothesis import strategies as st

from recollect.answers.decision import Context, Verdict
from recollect.answers.decisions import Pooled
from recollect.answers.decisions.pooled import count_votes, lapse, risk_limit
from recollect.errors import RecipeError

CONTEXT = Context(query="q")
risks = st.lists(st.floats(0, 1), min_size=1, max_size=40)


@given(risks, st.sampled_from([0.01, 0.1, 0.5]), st.sampled_from(["hits", "requests"]))
def test_the_limit_is_the_highest_that_stays_within_the_budget(values, delta, per):
    values = np.array(values)
    limit = risk_limit(values, delta, per)

    def spent(at):
        served = values[values <= at]
        return served.sum() / (len(served) if per == "hits" else len(values))

    if limit >= 0:
        assert spent(limit) <= delta + 1e-9
    for other in values[values > limit]:
        assert spent(other) > delta - 1e-9


def test_the_lapse_is_the_share_of_errors_that_nothing_foretold():
    rng = np.random.default_rng(0)
    risks = rng.uniform(0, 0.2, 4000)
    for share in (0.001, 0.02):
        correct = rng.uniform(size=4000) >= share + (1 - share) * risks
        assert lapse(risks, correct) == pytest.approx(share, abs=0.008)
    clean = lapse(np.zeros(40), np.ones(40, bool))
    assert lapse(np.zeros(1000), np.ones(1000, bool)) < clean < 0.02
    one_wrong = np.arange(100) > 0
    assert lapse(np.zeros(100), one_wrong) > 0.01


def test_neighbours_that_agree_outvote_a_nearer_one():
    near = [candidate(1, 0.90), *(candidate(i, 0.89, answer=2) for i in range(2, 7))]
    vote = count_votes(near)
    assert vote.entry_id == 2
    assert vote.similarity == 0.89
    similarity, lead, odds, agreeing = vote.features[:4]
    assert (similarity, lead) == (0.89, pytest.approx(-0.01))
    assert odds > 1
    assert agreeing == 5 / 8


def test_without_known_agreement_the_nearest_leads_by_its_distance():
    vote = count_votes([candidate(1, 0.9), candidate(2, 0.8), candidate(3, 0.7)])
    assert (vote.entry_id, vote.features[1]) == (1, pytest.approx(0.1))


def test_everything_is_explored_before_there_is_a_curve():
    decision = Pooled().build()
    assert decision.decide([], CONTEXT).verdict is Verdict.MISS
    assert decision.decide([candidate(1, 1.0)], CONTEXT)[:2] == (Verdict.EXPLORE, 1)


def test_an_observation_of_something_never_asked_is_ignored():
    decision = Pooled(patience=10).build()
    for _ in range(100):
        decision.observe(1, 0.9, True)
        decision.observe(1, 0.1, False)
    assert decision.decide([candidate(1, 0.9)], CONTEXT).verdict is Verdict.EXPLORE


def test_bad_parameters_are_refused():
    for wrong in ({"delta": 0.0}, {"per": "days"}, {"audit": 1.0}, {"patience": 1}):
        with pytest.raises(RecipeError):
            Pooled(**wrong)


def topics(count, seed):
    """Noisy unit vectors of 24 topics that come in near pairs, and the topic of each."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((24, 48))
    centres[1::2] = centres[::2] + 0.55 * rng.standard_normal((12, 48))
    labels = rng.integers(0, 24, count)
    vectors = centres[labels] + 0.75 * rng.standard_normal((count, 48))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), labels


def replay(policy, vectors, labels):
    """A stream through a cache that keeps explored paraphrases: hits and wrong hits."""
    decision, kept, hits, wrong = policy.build(), [], 0, 0
    first = {}
    for n, vector in enumerate(vectors):
        near = []
        if kept:
            cosines = vectors[kept] @ vector
            for at in np.argsort(-cosines)[:8]:
                entry = kept[at]
                near.append(candidate(entry, float(cosines[at]), answer=first[labels[entry]]))
        found = decision.decide(near, CONTEXT)
        if found.verdict is Verdict.HIT:
            hits += 1
            wrong += labels[found.entry_id] != labels[n]
            continue
        if found.verdict is Verdict.EXPLORE:
            similarity = next(c.similarity for c in near if c.entry_id == found.entry_id)
            decision.observe(found.entry_id, similarity, bool(labels[found.entry_id] == labels[n]))
        first.setdefault(labels[n], n)
        kept.append(n)
    return hits, wrong


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_wrong_hits_stay_within_delta_and_hits_beat_the_best_threshold(seed):
    vectors, labels = topics(1500, seed)
    hits, wrong = replay(Pooled(delta=0.02, seed=seed), vectors, labels)
    assert wrong <= 0.02 * hits
    cosines = np.where(np.tri(len(vectors), k=-1, dtype=bool), vectors @ vectors.T, -1)
    nearest = cosines.argmax(1)
    best, right = cosines.max(1), labels[nearest] == labels
    order = np.argsort(-best)
    share = np.cumsum(~right[order]) / np.arange(1, len(order) + 1)
    static = np.flatnonzero(share <= 0.02).max(initial=0) + 1
    assert hits > 1.2 * static
