"""MeanCache's context chain and each user's own threshold."""

import pytest
from candidates import candidate

from recollect.answers.decision import Context, Verdict
from recollect.answers.decisions import Chain
from recollect.errors import RecipeError

A, B = 10, 20  # entries that answered two different first turns
TYPES = candidate(11, 0.99, parent=A, query="what are its types?")


def decide(near, parent, **policy):
    decision = Chain(**{"min_similarity": 0.8} | policy).build()
    return decision.decide(near, Context("what are its types?", conversation_parent=parent))


def test_a_follow_up_hits_under_its_own_parent_only():
    assert decide([TYPES], parent=A)[:2] == (Verdict.HIT, 11)
    assert decide([TYPES], parent=B).verdict is Verdict.MISS
    assert decide([TYPES], parent=None).verdict is Verdict.MISS


def test_a_follow_up_never_takes_a_standalone_answer():
    assert decide([candidate(1, 0.99)], parent=A).verdict is Verdict.MISS


def test_the_walk_goes_past_entries_of_other_conversations():
    near = [candidate(21, 0.99, parent=B), candidate(11, 0.85, parent=A)]
    assert decide(near, parent=A)[:2] == (Verdict.HIT, 11)
    assert decide(near, parent=A, neighbours=1).verdict is Verdict.MISS
    assert decide(near, parent=A, follow_ups=False)[:2] == (Verdict.HIT, 21)


def test_a_near_miss_is_compared_and_a_far_one_is_not():
    assert decide([candidate(1, 0.75)], parent=None)[:2] == (Verdict.EXPLORE, 1)
    assert decide([candidate(1, 0.65)], parent=None).verdict is Verdict.MISS


def learn(decision, user, outcomes):
    for similarity, correct in outcomes:
        context = Context("q", user=user)
        if decision.decide([candidate(1, similarity)], context).verdict is Verdict.EXPLORE:
            decision.observe(1, similarity, correct)


def test_each_user_gets_a_threshold_of_their_own():
    decision = Chain(min_similarity=0.8, reach=0.3).build()
    learn(decision, "lax", [(0.6 + n / 1000, True) for n in range(60)] + [(0.52, False)] * 20)
    assert decision.threshold("lax") < 0.7
    assert decision.threshold("new") == 0.8


def test_audits_raise_the_threshold_of_a_user_whose_hits_are_wrong():
    decision = Chain(min_similarity=0.8, audit=0.5).build()
    learn(decision, "strict", [(0.85 + n / 2000, False) for n in range(100)])
    learn(decision, "strict", [(0.95 + n / 4000, True) for n in range(100)])
    assert decision.threshold("strict") > 0.85


def test_outcomes_of_one_kind_move_nothing():
    decision = Chain(min_similarity=0.8, reach=0.3).build()
    learn(decision, "u", [(0.6, True)] * 50)
    assert decision.threshold("u") == 0.8


def test_an_observation_of_something_never_asked_is_ignored():
    decision = Chain().build()
    decision.observe(5, 0.7, True)
    decision.forget([5])
    assert decision.threshold("") == 0.8


def test_bad_parameters_are_refused():
    for wrong in ({"min_similarity": 2}, {"neighbours": 0}, {"beta": 0}, {"audit": 1.0}):
        with pytest.raises(RecipeError):
            Chain(**wrong)
