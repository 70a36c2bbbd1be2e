"""Verifiers refuse what differs where it matters and let rewordings pass."""

from __future__ import annotations

import pytest
from candidates import candidate
from hypothesis import given
from hypothesis import strategies as st

from recollect.answers import Answers
from recollect.answers.decision import Check, Outcome
from recollect.answers.encoders.ngram import NgramEncoder
from recollect.answers.verifiers import Contrast, Coverage, Guards, InTurn
from recollect.errors import RecipeError

CONTRASTS = [
    ("number", "Does plan 12 include parking?", "Does plan 21 include parking?"),
    ("number", "Who won the cup in 1998?", "In 2002, who was the winner of the cup?"),
    ("name", "Is there a train to Lyon on Sundays?", "On Sundays, does a train run to Nantes?"),
    ("negation", "Why does my kettle boil?", "Why does my kettle not boil?"),
    ("negation", "Why is my parcel moving?", "Why isn't my parcel moving?"),
    ("opposite", "How can I mute a channel?", "What must I do to unmute a channel?"),
    ("opposite", "How do I turn on the heater?", "How do I turn off the heater?"),
    ("opposite", "Which is the cheapest ferry?", "Which ferry is the most expensive?"),
    ("exclusive", "Will it snow tomorrow?", "Did it snow yesterday?"),
    ("exclusive", "Is the museum open on Monday?", "Is the museum open on Friday?"),
    ("manner", "Which guests must register at the desk?", "Which guests may register at the desk?"),
    ("role", "Can a teacher sue a school?", "Can a school sue a teacher?"),
    ("role", "How do I move photos from Drive to Dropbox?", "Move photos from Dropbox to Drive"),
    ("substitution", "How do I wash a woollen scarf?", "How do I wash a woollen carpet?"),
    (
        "addition",
        "How do I renew my driving licence?",
        "How do I renew my motorboat driving licence?",
    ),
    ("stray", "Is my refund late?", "Say hello. Is my refund, I wonder, late?"),
    ("surplus", "Is my refund late?", "Is my refund late? Then sing of green whales swimming west"),
]
SAME = [
    ("How do I mute a channel?", "What are the steps to mute a channel?"),
    ("How can I get a new card?", "How do I obtain a new card, please?"),
    ("How do I activate the alarm?", "How do I enable the alarm?"),
    ("What's the capital of Peru?", "Which city is Peru's capital?"),
    ("It costs 1,000 dollars, right?", "It costs 1000 dollars, right?"),
    ("My card isnt working", "My card isn't working"),
    ("I can't find my PIN.", "i cannot find my pin"),
    ("Is the train at 6pm late?", "is the train at 6 pm late"),
]


def stored(query):
    return candidate(1, 0.9, query=query)


@pytest.mark.parametrize(("rule", "one", "other"), CONTRASTS)
def test_a_contrast_is_rejected_with_its_reason(rule, one, other):
    for query, near in ((one, other), (other, one)):
        rules = [difference.rule for difference in Contrast().differences(query, near)]
        assert rule in rules
        check = Contrast().check(query, stored(near))
        assert check.outcome is Outcome.REJECT
        assert ": " in check.reason


@pytest.mark.parametrize(("one", "other"), SAME)
def test_a_rewording_is_accepted(one, other):
    assert Contrast().check(one, stored(other)).outcome is Outcome.ACCEPT


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_text_equals_itself_and_the_guard_is_symmetric(one, other):
    guard = Contrast()
    assert not list(guard.differences(one, one))
    assert bool(list(guard.differences(one, other))) == bool(list(guard.differences(other, one)))


def test_long_texts_must_be_the_same_word_for_word():
    long = "The tenant pays the rent on time. " * 100
    assert Contrast().check(long, stored(long.upper())).outcome is Outcome.ACCEPT
    assert "too long" in Contrast().check(long, stored(f"{long} Ends.")).reason


def coverage(**arguments):
    return Coverage(**arguments).build_for(NgramEncoder())


QUESTION = "How long does the refund for a cancelled flight usually take?"
OTHER = "Write down the names of eight famous medieval Japanese castles."


@pytest.mark.parametrize("planted", [f"{QUESTION} {OTHER}", f"{OTHER} {QUESTION}"])
def test_an_unrelated_half_is_uncovered(planted):
    check = coverage().check(QUESTION, stored(planted))
    assert check.outcome is Outcome.REJECT
    assert "castles" in check.reason or "medieval" in check.reason
    assert coverage().check(planted, stored(QUESTION)).outcome is Outcome.REJECT


def test_a_cut_off_long_text_is_uncovered_where_it_was_cut():
    long = " ".join(f"{QUESTION} Clause {i} stays." for i in range(5)) + f" {OTHER}"
    cut = long.removesuffix(f" {OTHER}")
    assert coverage(min_coverage=0.15).check(long, stored(cut)).outcome is Outcome.REJECT
    assert coverage().check(long, stored(long)).outcome is Outcome.ACCEPT


def test_coverage_accepts_the_same_question_reworded():
    reworded = "How long will the refund for my cancelled flight take, usually?"
    assert coverage().check(reworded, stored(QUESTION)).outcome is Outcome.ACCEPT


def test_coverage_needs_a_floor_for_an_encoder_it_does_not_know():
    class Strange(NgramEncoder):
        def __init__(self):
            super().__init__()
            self.encoder_id = "strange-1"

    with pytest.raises(RecipeError, match="min_coverage"):
        Coverage().build_for(Strange())
    assert Coverage(min_coverage=0.1).build_for(Strange()).min_coverage == 0.1
    with pytest.raises(RecipeError, match="stride"):
        Coverage(words=4, stride=5)


class Says:
    def __init__(self, outcome):
        self.outcome, self.asked = outcome, 0

    def check(self, query, candidate, answer):
        self.asked += 1
        return Check(self.outcome, "so")


@pytest.mark.parametrize(
    ("outcomes", "result", "asked"),
    [
        ("AR", Outcome.REJECT, 2),
        ("RA", Outcome.REJECT, 1),
        ("BA", Outcome.ACCEPT, 2),
        ("AB", Outcome.ACCEPT, 2),
        ("B", Outcome.ABSTAIN, 1),
    ],
)
def test_verifiers_in_turn_stop_at_the_first_rejection(outcomes, result, asked):
    kinds = {"A": Outcome.ACCEPT, "R": Outcome.REJECT, "B": Outcome.ABSTAIN}
    guards = [Says(kinds[letter]) for letter in outcomes]
    assert InTurn(guards).check("q", stored("q"), None).outcome is result
    assert sum(guard.asked for guard in guards) == asked


def test_rules_can_be_asked_by_name():
    names = Contrast(only=("name",))
    assert [d.rule for d in names.differences("Is Oslo open?", "Is Rome open today at 5?")] == [
        "name"
    ]
    assert not list(names.differences("How do I enable the alarm?", "How do I disable the alarm?"))
    with pytest.raises(RecipeError, match="no rule is called 'names'"):
        Contrast(only=("names",))


def test_default_guards_are_the_rules_where_the_cache_does_not_read_with_minilm():
    guards = Guards().build_for(NgramEncoder())
    assert [type(guard).__name__ for guard in guards.verifiers] == ["Contrast", "CoverageGuard"]


def ask(text):
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


def say(text):
    message = {"role": "assistant", "content": text}
    return {"choices": [{"message": message, "finish_reason": "stop"}]}


@pytest.mark.parametrize("guarded", [True, False])
def test_a_cache_with_guards_misses_the_contrast_and_keeps_the_rewording(guarded):
    stages = {"verifier": Guards()} if guarded else {}
    answers = Answers(recipe="gptcache", encoder="ngram", min_similarity=0.5, **stages)
    answers.store(
        ask("How do I enable the garden alarm at home?"), say("Press the button."), scope_id="a"
    )
    contrast = answers.lookup(ask("How do I disable the garden alarm at home?"), scope_id="a")
    assert contrast.hit is not guarded
    if guarded:
        assert contrast.reason.startswith("verifier: opposite")
        assert answers.stats()["verifier_rejections"] == 1
    assert answers.lookup(
        ask("How can I enable the garden alarm at home, please?"), scope_id="a"
    ).hit
