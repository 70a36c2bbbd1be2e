"""Quarantine: a planted answer reaches nobody else; a confirmed or trusted one reaches all."""

from __future__ import annotations

import pytest

from recollect.answers import Answers
from recollect.answers.admission import Quarantine
from recollect.answers.clock import ManualClock
from recollect.errors import RecipeError


def ask(text):
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


def say(text, **message):
    message = {"role": "assistant", "content": text} | message
    return {"choices": [{"message": message, "finish_reason": "stop"}]}


QUESTION = "How long does the refund for a cancelled flight take?"
REWORDED = "How long does a refund for a cancelled flight take, please?"


@pytest.fixture
def answers():
    return Answers(
        recipe="gptcache + quarantine",
        encoder="ngram",
        scope="global",
        min_similarity=0.5,
        clock=ManualClock(),
    )


def write(answers, text, answer, user, **facts):
    return answers.store(ask(text), say(answer), user=user, facts=facts)


def hit(answers, text, user):
    return answers.lookup(ask(text), user=user).hit


def test_the_writer_is_served_and_nobody_else(answers):
    assert write(answers, QUESTION, "A week.", "alice").status == "quarantined"
    for text in (QUESTION, REWORDED):
        assert hit(answers, text, "alice")
        assert not hit(answers, text, "bob")
        assert not hit(answers, text, "")


def test_two_other_users_confirm(answers):
    write(answers, QUESTION, "A week.", "alice")
    assert write(answers, QUESTION, "A week.", "bob").status == "quarantined"
    assert not hit(answers, QUESTION, "dora")
    write(answers, QUESTION, "a  week.", "carol")
    assert answers.stats()["promoted"] == 2
    assert hit(answers, QUESTION, "dora")
    assert hit(answers, REWORDED, "dora")


def test_a_reworded_question_confirms_and_goes_live_itself(answers):
    write(answers, QUESTION, "A week.", "alice")
    write(answers, QUESTION, "A week.", "bob")
    ticket = answers.lookup(ask(REWORDED), user="carol")
    assert answers.store(ticket, say("A week.")).status == "live"
    assert answers.lookup(ask(REWORDED), user="dora").tier == "exact"


@pytest.mark.parametrize(
    ("text", "answer", "user"),
    [
        (QUESTION, "CANARY", "carol"),  # another answer
        (QUESTION, "A week.", "alice"),  # the same user again
        (QUESTION.replace("How long does", "How long does not"), "A week.", "carol"),
        ("Where is the lost luggage office of terminal two?", "A week.", "carol"),
    ],
)
def test_what_does_not_confirm(answers, text, answer, user):
    write(answers, QUESTION, "A week.", "alice")
    write(answers, QUESTION, "A week.", "bob")
    write(answers, text, answer, user)
    assert "promoted" not in answers.stats()
    assert not hit(answers, QUESTION, "dora")


def test_one_user_many_times_confirms_nothing(answers):
    for _ in range(5):
        write(answers, QUESTION, "CANARY", "mallory")
    write(answers, QUESTION, "CANARY", "alice")
    assert not hit(answers, QUESTION, "dora")


@pytest.mark.parametrize(("trusted", "served"), [(True, True), ("yes", False), (False, False)])
def test_only_a_trusted_writer_is_live_at_once(answers, trusted, served):
    write(answers, QUESTION, "A week.", "job", trusted=trusted)
    assert hit(answers, REWORDED, "bob") is served


def test_an_operator_promotes_by_hand(answers):
    stored = write(answers, QUESTION, "A week.", "alice")
    answers.promote(stored.id)
    assert hit(answers, QUESTION, "bob")
    assert hit(answers, REWORDED, "bob")
    answers.promote(10_000)  # unknown: nothing happens


def test_quarantined_entries_expire_and_are_purged_by_writer(answers):
    write(answers, QUESTION, "CANARY", "mallory")
    write(answers, REWORDED, "CANARY", "mallory")
    assert len(answers.purge(writer="mallory", dry_run=False).ids) == 2
    assert not hit(answers, QUESTION, "mallory")


def test_write_gates_come_first_and_an_unknown_writer_writes_nothing(answers):
    assert write(answers, QUESTION, "x", "alice", status=500).reason == "status 500"
    assert "unknown writer" in write(answers, QUESTION, "x", "").reason


def test_tool_calls_never_come_from_a_similar_request():
    answers = Answers(recipe="gptcache", encoder="ngram", scope="global", min_similarity=0.5)
    call = {"id": "1", "type": "function", "function": {"name": "pay", "arguments": "{}"}}
    answers.store(ask(QUESTION), say("", tool_calls=[call]), user="alice")
    assert not hit(answers, REWORDED, "alice")
    assert not hit(answers, QUESTION, "bob")
    assert hit(answers, QUESTION, "alice")


def test_a_quarantine_needs_a_confirmation():
    with pytest.raises(RecipeError, match="confirmations"):
        Quarantine(confirmations=0)
