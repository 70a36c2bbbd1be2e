"""`Answers`: what a lookup serves and withholds, what a store keeps, what a purge removes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest

from recollect.answers import Answers, Ledger, ManualClock, SystemClock
from recollect.answers.backends.memory import MemoryBackend
from recollect.answers.decision import Admission, Check, Decision, Lifetime, Outcome, Verdict
from recollect.answers.documents import answer_text, has_tool_calls, same_answer
from recollect.answers.identity import SemanticRules
from recollect.answers.wishes import wishes
from recollect.errors import RecipeError, StoreError


def ask(text, *before, **fields):
    return {"model": "m", "messages": [*before, {"role": "user", "content": text}], **fields}


def say(text, **message):
    message = {"role": "assistant", "content": text, **message}
    return {"choices": [{"finish_reason": "stop", "message": message}]}


CALL = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


# The exact tier -----------------------------------------------------------------------------


def test_a_stored_answer_is_served_byte_for_byte(backend, clock):
    answers = Answers(backend, clock=clock)
    body = '{"choices":  [{"message": {"content": "Paris \u00e9"}}]}'.encode()
    miss = answers.lookup(ask("France?"), scope_id="alice")
    assert (miss.hit, miss.reason, miss.response) == (False, "not stored", b"")
    assert answers.store(miss.ticket, body, cost_seconds=2.0, cost_tokens=7)
    clock.advance(30)
    hit = answers.lookup(ask("France?"), scope_id="alice")
    assert (hit.hit, hit.tier, hit.similarity, hit.age) == (True, "exact", 1.0, 30.0)
    assert hit.response == body
    assert hit.document["choices"][0]["message"]["content"] == "Paris é"
    stats = answers.stats()
    assert (stats["lookups"], stats["hits_exact"], stats["misses"], stats["entries"]) == (
        2,
        1,
        1,
        1,
    )
    assert (stats["saved_seconds"], stats["saved_tokens"]) == (2.0, 7)


def test_other_scopes_models_and_tools_miss(clock):
    answers = Answers(clock=clock)
    answers.store(ask("hi"), say("hello"), scope_id="alice")
    assert answers.lookup(ask("hi"), scope_id="alice").hit
    for request, scope in [
        (ask("hi"), "bob"),
        (ask("hi "), "alice"),
        (ask("hi", model="n"), "alice"),
        (ask("hi", tools=[{"type": "function"}]), "alice"),
        (ask("hi", {"role": "system", "content": "Be rude."}), "alice"),
        (ask("hi", user="eve"), "alice"),
    ]:
        assert not answers.lookup(request, scope_id=scope).hit


def test_without_scope_id_nothing_is_read_or_written():
    answers = Answers()
    lookup = answers.lookup(ask("hi"))
    assert lookup.reason == "no scope id"
    assert answers.store(lookup, say("hello")).reason == "no scope id"
    assert answers.stats()["entries"] == 0
    everyone = Answers(scope="global")
    assert everyone.store(ask("hi"), say("hello"))
    assert everyone.lookup(ask("hi"), scope_id="anyone").hit


def test_an_answer_expires_exactly_at_its_time(backend, clock):
    answers = Answers(backend, clock=clock, ttl=60)
    answers.store(ask("hi"), say("hello"), scope_id="alice")
    clock.advance(59.999)
    assert answers.lookup(ask("hi"), scope_id="alice").hit
    clock.advance(0.001)
    assert answers.lookup(ask("hi"), scope_id="alice").reason == "expired"


def test_hits_do_not_extend_a_life(clock):
    answers = Answers(clock=clock, ttl=60)
    answers.store(ask("hi"), say("hello"), scope_id="alice")
    for _ in range(6):
        assert answers.lookup(ask("hi"), scope_id="alice").hit
        clock.advance(10)
    assert not answers.lookup(ask("hi"), scope_id="alice").hit


def test_what_was_written_in_the_future_is_not_served(clock):
    answers = Answers(clock=clock, ttl=60)
    answers.store(ask("hi"), say("hello"), scope_id="alice")
    clock.advance(-3600)
    assert answers.lookup(ask("hi"), scope_id="alice").reason == "written in the future"


def test_the_system_clock_goes_on_when_the_wall_clock_is_set_back(monkeypatch):
    wall, ticks = [1000.0], [50.0]
    monkeypatch.setattr("time.time", lambda: wall[0])
    monkeypatch.setattr("time.monotonic", lambda: ticks[0])
    clock = SystemClock()
    assert clock.now() == 1000.0
    wall[0], ticks[0] = 400.0, 60.0
    assert clock.now() == 1010.0
    wall[0], ticks[0] = 2000.0, 61.0
    assert clock.now() == 2000.0


def test_a_new_epoch_leaves_all_answers_behind():
    backend = MemoryBackend()
    Answers(backend, secret=b"s").store(ask("hi"), say("hello"), scope_id="alice")
    assert Answers(backend, secret=b"s").lookup(ask("hi"), scope_id="alice").hit
    for change in ({"epoch": 1}, {"resolved_model": "r2"}, {"policy": "p"}, {"secret": b"t"}):
        other = Answers(backend, **{"secret": b"s", **change})
        assert not other.lookup(ask("hi"), scope_id="alice").hit


@pytest.mark.parametrize(
    ("headers", "hit", "stored"),
    [
        ({}, True, True),
        ({"Cache-Control": "no-cache"}, False, True),
        ({"cache-control": "private, no-store"}, False, False),
        ({"Cache-Control": "max-age=10"}, True, True),
        ({"Cache-Control": "max-age=9"}, False, True),
        ({"Cache-Control": "max-age=soon"}, False, True),
        ({"X-Recollect-Cache": "bypass"}, False, False),
        ({"X-Recollect-Cache": "exact"}, True, True),
    ],
    ids=str,
)
def test_callers_may_refuse_reuse(clock, headers, hit, stored):
    answers = Answers(clock=clock)
    answers.store(ask("hi"), say("hello"), scope_id="alice")
    clock.advance(10)
    lookup = answers.lookup(ask("hi"), scope_id="alice", headers=headers)
    assert lookup.hit is hit
    assert bool(answers.store(lookup, say("hello"))) is stored
    assert wishes(headers).semantic is (headers.get("X-Recollect-Cache") != "exact")


@pytest.mark.parametrize(
    "request_", [b'{"a":1,"a":2}', b"\xff", "[]", {"model": "m", "x": float("nan")}, {1: 2}]
)
def test_a_request_that_cannot_be_read_is_a_miss_and_is_not_stored(request_):
    answers = Answers()
    lookup = answers.lookup(request_, scope_id="alice")
    assert not lookup.hit
    assert lookup.ticket is None
    assert not answers.store(request_, say("x"), scope_id="alice")
    assert not answers.store(lookup, say("x"))
    assert answers.stats()["unreadable"] == 1


def test_an_answer_json_cannot_say_is_not_stored():
    answers = Answers()
    assert "not storable" in answers.store(ask("hi"), {"x": {1, 2}}, scope_id="a").reason
    assert not answers.store(ask("hi"), say("x"), scope_id="a", facts={"x": object()})
    with pytest.raises(TypeError):
        answers.store(ask("hi"), say("x"), scoop_id="a")


def test_tool_calls_stay_with_their_user():
    answers = Answers(scope="team")
    answers.store(ask("hi"), say(None, tool_calls=CALL), scope_id="team", user="alice")
    assert answers.lookup(ask("hi"), scope_id="team", user="alice").hit
    other = answers.lookup(ask("hi"), scope_id="team", user="bob")
    assert other.reason == "the answer has another user's tool calls"


def test_embeddings_and_other_protocols_are_cached():
    answers = Answers()
    request = {"model": "e", "input": "a"}
    assert answers.store(request, {"data": []}, protocol="embeddings", scope_id="a")
    one = answers.lookup({**request, "input": ["a"]}, protocol="embeddings", scope_id="a")
    assert one.hit
    assert not answers.lookup(request, protocol="completions", scope_id="a").hit


# Room, purge, ledger ------------------------------------------------------------------------


def test_the_least_used_leave_when_it_is_full(backend, clock):
    answers = Answers(backend, clock=clock, capacity=3)
    for text in "abc":
        answers.store(ask(text), say(text), scope_id="alice")
        clock.advance(1)
    assert answers.lookup(ask("a"), scope_id="alice").hit
    clock.advance(1)
    answers.store(ask("d"), say("d"), scope_id="alice")
    hits = [answers.lookup(ask(text), scope_id="alice").hit for text in "abcd"]
    assert hits == [True, False, True, True]


@dataclass(frozen=True)
class ByCategory:
    """Lifetimes for the tests: `private` is never cached, `small` has half of the capacity."""

    def lifetime(self, category, load):
        if category == "private":
            return Lifetime(60, cacheable=False)
        return Lifetime(60 * (1 + load), quota=0.5 if category == "small" else 1.0)


def test_a_category_at_its_quota_evicts_its_own(backend, clock):
    answers = Answers(backend, clock=clock, capacity=4, lifetimes=ByCategory())
    answers.store(ask("x"), say("x"), scope_id="a", category="large")
    for text in "abc":
        clock.advance(1)
        answers.store(ask(text), say(text), scope_id="a", category="small")
    hits = [answers.lookup(ask(text), scope_id="a").hit for text in "xabc"]
    assert hits == [True, False, True, True]


def test_a_category_that_is_not_cached_is_neither_read_nor_written(clock):
    answers = Answers(clock=clock, lifetimes=ByCategory())
    answers.store(ask("x"), say("x"), scope_id="a")
    lookup = answers.lookup(ask("x"), scope_id="a", category="private")
    assert lookup.reason == "category 'private' is not cached"
    assert not answers.store(lookup, say("x"))
    assert not answers.store(ask("y"), say("y"), scope_id="a", category="private")


def test_an_overloaded_model_stretches_a_category_s_time(clock):
    answers = Answers(clock=clock, lifetimes=ByCategory())
    answers.store(ask("x"), say("x"), scope_id="a", category="chat")
    clock.advance(60)
    assert answers.lookup(ask("x"), scope_id="a").reason == "expired for its category"
    assert answers.lookup(ask("x"), scope_id="a", load=0.5).hit
    clock.advance(60)
    assert not answers.lookup(ask("x"), scope_id="a", load=1.0).hit


@pytest.mark.parametrize(
    ("criteria", "left"),
    [
        ({"scope": "alice"}, "cd"),
        ({"writer": "bob"}, "ab"),
        ({"before": 1_000_002.0}, "cd"),
        ({"scope": "bob", "before": 1_000_003.0}, "abd"),
        ({"scope": "nobody"}, "abcd"),
        ({"everything": True}, ""),
    ],
    ids=str,
)
def test_purge_removes_what_matches_and_nothing_else(backend, clock, criteria, left):
    answers = Answers(backend, clock=clock)
    for text, who in [("a", "alice"), ("b", "alice"), ("c", "bob"), ("d", "bob")]:
        answers.store(ask(text), say(text), scope_id=who)
        clock.advance(1)
    planned = answers.purge(**criteria)
    assert planned.dry_run
    assert len(planned) == 4 - len(left)
    assert answers.stats()["entries"] == 4
    assert answers.purge(**criteria, dry_run=False).ids == planned.ids
    for text, who in [("a", "alice"), ("b", "alice"), ("c", "bob"), ("d", "bob")]:
        assert answers.lookup(ask(text), scope_id=who).hit is (text in left)


def test_purge_by_scope_reaches_users_named_inside_requests():
    answers = Answers()
    answers.store(ask("x", user="eve"), say("x"), scope_id="alice")
    assert len(answers.purge(scope="alice")) == 1


def test_purge_by_key_reaches_every_partition():
    answers = Answers()
    for who in ("alice", "bob"):
        stored = answers.store(ask("x"), say("x"), scope_id=who)
    key = answers.lookup(ask("x"), scope_id="alice").entry.exact_fp.hex()
    assert stored.id in answers.purge(key=key).ids
    assert len(answers.purge(key=key, dry_run=False)) == 2
    assert answers.stats()["entries"] == 0


def test_a_purge_says_what_it_needs():
    answers = Answers()
    with pytest.raises(RecipeError, match="say what to purge"):
        answers.purge()
    with pytest.raises(RecipeError, match="say what to purge"):
        answers.purge(everything=True, scope="x")
    with pytest.raises(RecipeError, match="is no key"):
        answers.purge(key="xyz")


def test_sweep_gives_back_the_room_of_what_expired(backend, clock):
    answers = Answers(backend, clock=clock, ttl=60)
    answers.store(ask("x"), say("x"), scope_id="alice")
    clock.advance(30)
    answers.store(ask("y"), say("y"), scope_id="alice")
    clock.advance(30)
    assert answers.sweep() == 1
    assert answers.stats()["entries"] == 1


def test_every_write_hit_and_deletion_is_in_the_ledger(clock, tmp_path):
    path = tmp_path / "ledger"
    with Answers(clock=clock, ledger=str(path)) as answers:
        answers.store(ask("secret words"), say("more secret words"), scope_id="alice")
        answers.lookup(ask("secret words"), scope_id="alice")
        answers.purge(scope="alice", dry_run=False)
    events = list(Ledger(path))
    assert [event["event"] for event in events] == ["write", "hit", "delete"]
    assert events[2]["by"] == "purge"
    assert Ledger(path).verify().broken_at is None
    assert "secret" not in path.read_text()
    assert "alice" not in path.read_text()


def test_a_ledger_that_fails_is_counted_and_stops_nothing():
    class Full(Ledger):
        def append(self, event, at, **facts):
            raise StoreError("disk full")

    answers = Answers(ledger=Full())
    assert answers.store(ask("x"), say("x"), scope_id="alice")
    assert answers.stats()["ledger_failures"] == 1


# The semantic tier, with stages small enough to see through -----------------------------------

WORDS = ["red", "green", "blue", "sky", "sea"]


class Counting:
    """An encoder of five words; texts with the same words are the same."""

    encoder_id, dim = "counting", len(WORDS)

    def encode(self, texts):
        rows = np.array([[text.split().count(word) for word in WORDS] for text in texts], float)
        return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)).astype("f4")


@dataclass(frozen=True)
class AtLeast:
    """Hits, or explores, the nearest candidate at a similarity."""

    similarity: float = 0.9
    verdict: Verdict = Verdict.HIT

    def decide(self, candidates, context):
        if not candidates or candidates[0].similarity < self.similarity:
            return Decision(Verdict.MISS, None, "nothing near enough")
        return Decision(self.verdict, candidates[0].entry_id, "near")


class Learning(AtLeast):
    """The same, noting what it is told."""

    def observe(self, entry_id, similarity, correct):
        self.__dict__.setdefault("seen", []).append((entry_id, similarity, correct))

    def forget(self, entry_ids):
        self.__dict__.setdefault("gone", []).extend(entry_ids)


def semantic(backend="memory", clock=None, **arguments):
    given = {"encoder": Counting(), "decision": AtLeast(), "secret": b"s", **arguments}
    return Answers(backend, clock=clock or ManualClock(1_000_000.0), **given)


def test_a_similar_request_is_answered(backend, clock):
    answers = semantic(backend, clock)
    answers.store(ask("red sky"), say("morning"), scope_id="a")
    hit = answers.lookup(ask("sky red"), scope_id="a")
    assert (hit.hit, hit.tier, hit.reason) == (True, "semantic", "near")
    assert hit.similarity == pytest.approx(1.0)
    far = answers.lookup(ask("green sea"), scope_id="a")
    assert (far.hit, far.reason) == (False, "nothing near enough")
    assert answers.stats()["hits_semantic"] == 1


@pytest.mark.parametrize(
    ("request_", "arguments"),
    [
        (ask("sky red"), {"scope_id": "b"}),
        (ask("sky red", model="n"), {"scope_id": "a"}),
        (ask("sky red", {"role": "system", "content": "Rhyme."}), {"scope_id": "a"}),
        (ask("sky red", seed=1), {"scope_id": "a"}),
        (ask("sky red", n=2), {"scope_id": "a"}),
        (ask("sky red", user="eve"), {"scope_id": "a"}),
        (ask("sky red"), {"scope_id": "a", "headers": {"x-recollect-cache": "exact"}}),
        (ask("sky red"), {"scope_id": "a", "protocol": "messages"}),
        (ask("sky red", stream=True), {"scope_id": "a"}),
    ],
)
def test_similarity_never_crosses_what_must_be_equal(request_, arguments):
    answers = semantic(decision=AtLeast(-1.0))
    answers.store(ask("red sky"), say("morning"), scope_id="a")
    assert answers.lookup(ask("sky red"), scope_id="a").hit
    assert not answers.lookup(request_, **arguments).hit


def test_the_index_is_rebuilt_from_the_store(tmp_path, clock):
    url = f"sqlite:///{tmp_path}/answers.db"
    with semantic(url, clock) as answers:
        stored = answers.store(ask("red sky"), say("morning"), scope_id="a")
        answers.observe(stored.id, 0.95, True)
    decision = Learning()
    with semantic(url, clock, decision=decision) as answers:
        assert answers.lookup(ask("sky red"), scope_id="a").hit
        assert decision.seen == [(stored.id, 0.95, True)]


def test_vectors_of_another_encoder_are_not_compared(tmp_path, clock):
    class Other(Counting):
        encoder_id = "other"

    url = f"sqlite:///{tmp_path}/answers.db"
    with semantic(url, clock) as answers:
        answers.store(ask("red sky"), say("morning"), scope_id="a")
    with semantic(url, clock, encoder=Other()) as answers:
        assert not answers.lookup(ask("sky red"), scope_id="a").hit
        assert answers.lookup(ask("red sky"), scope_id="a").tier == "exact"


def test_what_another_process_wrote_is_found_after_a_refresh(tmp_path, clock):
    url = f"sqlite:///{tmp_path}/answers.db"
    with semantic(url, clock) as one, semantic(url, clock) as two:
        one.store(ask("red sky"), say("morning"), scope_id="a")
        assert not two.lookup(ask("sky red"), scope_id="a").hit
        assert two.refresh() == 1
        assert two.lookup(ask("sky red"), scope_id="a").hit
        one.purge(everything=True, dry_run=False)
        assert two.lookup(ask("sky red"), scope_id="a").reason == "the entry is gone"
        assert two.lookup(ask("sky red"), scope_id="a").reason == "nothing near enough"


def test_an_expired_neighbour_gives_way_to_one_behind_it(clock):
    answers = semantic(clock=clock, ttl=60)
    for number in range(12):
        answers.store(ask("red sky", max_tokens=5), say(str(number)), scope_id="a")
        answers.store(ask(f"red sky {number}", max_tokens=5), say("old"), scope_id="a")
    clock.advance(30)
    answers.store(ask("red sky sky", max_tokens=5), say("new"), scope_id="a")
    clock.advance(30)
    hit = answers.lookup(ask("sky red", max_tokens=5), scope_id="a")
    assert answer_text(hit.document) == "new"


def test_answers_with_tool_calls_are_not_served_to_similar_requests():
    for allowed in (False, True):
        answers = semantic(serve_tool_calls=allowed)
        answers.store(ask("red sky"), say(None, tool_calls=CALL), scope_id="a")
        assert answers.lookup(ask("red sky"), scope_id="a").hit
        assert answers.lookup(ask("sky red"), scope_id="a").hit is allowed


class NotGreen:
    """A verifier that rejects answers about green, and forgets nothing."""

    def check(self, query, candidate, answer):
        green = "green" in (answer or "")
        return Check(Outcome.REJECT if green else Outcome.ABSTAIN, "it is green")


def test_a_rejected_hit_gives_way_to_the_next_or_is_a_miss():
    answers = semantic(verifier=NotGreen())
    answers.store(ask("red sky"), say("green"), scope_id="a")
    miss = answers.lookup(ask("sky red"), scope_id="a")
    assert (miss.hit, miss.ticket.explored) == (False, None)
    assert answers.stats()["verifier_rejections"] == 1
    answers.store(ask("red sky sky"), say("blue"), scope_id="a")
    hit = answers.lookup(ask("sky red"), scope_id="a")
    assert answer_text(hit.document) == "blue"


def test_exploring_compares_the_model_s_answer_and_keeps_one_entry():
    decision = Learning(verdict=Verdict.EXPLORE)
    answers = semantic(decision=decision)
    first = answers.store(ask("red sky"), say("Morning red."), scope_id="a")
    lookup = answers.lookup(ask("sky red"), scope_id="a")
    assert not lookup.hit
    same = answers.store(lookup, say("morning  red."))
    assert (same.id, answers.stats()["entries"]) == (first.id, 1)
    lookup = answers.lookup(ask("red red sky sky"), scope_id="a")
    other = answers.store(lookup, say("evening"))
    assert other.id != first.id
    assert [seen[2] for seen in decision.seen] == [True, False]
    assert [seen.correct for seen in answers._backend.observations(first.id)] == [True, False]
    answers.purge(everything=True, dry_run=False)
    assert sorted(decision.gone) == [first.id, other.id]


def test_a_follow_up_hits_only_under_its_own_previous_turn():
    """The oracle of MeanCache: A, then 'its types'; asked under A it hits, under B or none not."""
    answers = semantic(rules=SemanticRules(chained=True))

    def turn(text, conversation, *before):
        lookup = answers.lookup(ask(text, *before), scope_id="a", conversation=conversation)
        if not lookup.hit:
            answers.store(lookup, say(f"about {text}"))
        return lookup.hit

    def after(text):
        return {"role": "user", "content": text}, {"role": "assistant", "content": f"on {text}"}

    assert not turn("red", "one")
    assert not turn("sea", "one", *after("red"))
    assert turn("red red", "two")
    assert turn("sea sea", "two", *after("red red"))
    assert not turn("blue", "three")
    assert not turn("sea sea", "three", *after("blue"))
    assert not turn("sea sea sea", None, *after("red"))
    assert not turn("sea sea sea", "four")
    red = answers.lookup(ask("red"), scope_id="a").entry.id
    before = answers.stats()["entries"]
    answers._delete([red], 0.0, by="test")
    assert answers.stats()["entries"] == before - 2  # what continued it is out of reach: gone


# Admission ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quarantine:
    """Admits as quarantined; a write that a peer's answer equals promotes the peer."""

    def admit(self, write):
        if write.facts.get("status", 200) != 200:
            return Admission(False, reason="not 200")
        agreeing = [
            peer.id
            for peer, _ in write.peers
            if same_answer(_text(peer), answer_text(write.document))
        ]
        if agreeing:
            return Admission(False, reason="confirmed", promote=tuple(agreeing))
        return Admission(True, status="quarantined", ttl=30)


def _text(entry):
    return answer_text(json.loads(entry.response))


@pytest.mark.parametrize("second", ["red sky", "sky red"])
def test_quarantine_serves_the_writer_until_others_confirm(backend, clock, second):
    answers = semantic(backend, clock, scope="team", admission=Quarantine())
    alice, bob = ({"scope_id": "t", "user": user} for user in ("alice", "bob"))
    assert answers.store(ask("red sky"), say("morning"), **alice).status == "quarantined"
    assert answers.lookup(ask("red sky"), **alice).hit
    assert answers.lookup(ask("sky red"), **alice).tier == "semantic"
    assert not answers.lookup(ask("red sky"), **bob).hit
    miss = answers.lookup(ask(second), **bob)
    assert not miss.hit
    assert answers.store(miss, say("Morning")).reason == "confirmed"
    assert answers.stats()["promoted"] == 1
    for text in ("red sky", "sky red"):
        assert answers.lookup(ask(text), **bob).hit
        assert answers.lookup(ask(text), scope_id="t", user="carol").hit
    assert not answers.lookup(ask("red sky"), scope_id="other", user="bob").hit


def test_admission_refuses_and_shortens(clock):
    answers = Answers(clock=clock, admission=Quarantine())
    refused = answers.store(ask("red"), say("x"), scope_id="a", facts={"status": 500})
    assert refused.reason == "not 200"
    answers.store(ask("red"), say("x"), scope_id="a")
    clock.advance(30)
    assert answers.lookup(ask("red"), scope_id="a").reason == "expired"


def ending(reason, **message):
    return {"choices": [{"finish_reason": reason, "message": {"content": "x", **message}}]}


@pytest.mark.parametrize(
    ("document", "facts", "reason"),
    [
        (ending("stop"), {}, ""),
        (ending("stop"), {"status": 204}, ""),
        (ending("stop"), {"status": 500}, "status 500"),
        (ending("stop"), {"status": 304}, "status 304"),
        (ending("stop"), {"complete": False}, "incomplete"),
        (ending("stop"), {"personalised": True}, "personal"),
        ({"error": {"message": "overloaded"}}, {}, "an error"),
        ({"error": {"message": "overloaded"}}, {"complete": True}, "an error"),
        (ending("length"), {}, "ended with 'length'"),
        (ending("content_filter"), {}, "content_filter"),
        (ending("tool_calls"), {}, "tool_calls"),
        (ending(None), {}, "ended with None"),
        (ending("length"), {"complete": True}, ""),
        (ending("stop", refusal="No."), {}, "refused"),
        ({"type": "message", "stop_reason": "end_turn", "content": []}, {}, ""),
        ({"type": "message", "stop_reason": "max_tokens", "content": []}, {}, "max_tokens"),
        ({"object": "response", "status": "completed", "output": []}, {}, ""),
        ({"object": "response", "status": "incomplete", "output": []}, {}, "incomplete"),
        ({"output": [{"content": [{"type": "refusal"}]}]}, {}, "refused"),
        ({"data": [{"embedding": [1.0]}]}, {}, ""),
        (ending("stop", content="x" * (1 << 20)), {}, "larger than"),
    ],
)
def test_what_is_no_answer_is_not_stored(document, facts, reason):
    stored = Answers().store(ask("x"), document, scope_id="a", facts=facts)
    assert bool(stored) is not bool(reason)
    assert reason in stored.reason


def test_a_caller_may_shorten_a_life(clock):
    answers = Answers(clock=clock, ttl=60)
    answers.store(ask("x"), say("x"), scope_id="a", facts={"ttl": 10})
    answers.store(ask("y"), say("y"), scope_id="a", ttl=20)
    clock.advance(10)
    assert [answers.lookup(ask(text), scope_id="a").hit for text in "xy"] == [False, True]
    clock.advance(10)
    assert not answers.lookup(ask("y"), scope_id="a").hit
    assert not answers.store(ask("z"), say("z"), scope_id="a", ttl=0)


# Making one -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scope": "world"}, "unknown scope"),
        ({"ttl": 0}, "ttl > 0"),
        ({"capacity": 0}, "capacity >= 1"),
        ({"recipe": "exakt"}, "unknown recipe"),
        ({"recipe": "snapkv"}, "no recipe for answers"),
        ({"min_similarity": 0.9}, "no argument"),
        ({"encoder": "ngram"}, "needs a recipe that decides"),
        ({"encoder": "word2vec", "decision": AtLeast()}, "unknown encoder"),
        ({"backend": "mysql://x"}, "unknown backend"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(RecipeError, match=message):
        Answers(**arguments)


def test_a_recipe_may_be_given_by_name():
    with Answers(recipe="gptcache", encoder=Counting(), min_similarity=0.7, scope="global") as a:
        a.store(ask("red sky"), say("x"))
        assert a.lookup(ask("sky red")).tier == "semantic"
        assert not a.lookup(ask("red sea")).hit  # cosine 0.5


@pytest.mark.parametrize("module", ["recollect", "recollect.answers"])
def test_importing_loads_nothing_but_the_standard_library(module):
    code = (
        f"import sys; before = set(sys.modules); import {module}; "
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(loaded - sys.stdlib_module_names), 'sqlite3' in loaded, 'asyncio' in loaded)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['recollect'] False False"


def test_the_exact_tier_and_the_ngram_mode_load_no_torch():
    code = (
        "import sys; from recollect.answers import Answers; "
        "a = Answers(scope='global'); a.store({}, b'{}'); "
        "b = Answers(recipe='gptcache', encoder='ngram', scope='global'); b.lookup({}); "
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Documents --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (say("hello"), "hello"),
        ({"choices": [{"text": "hello"}]}, "hello"),
        ({"type": "message", "content": [{"type": "text", "text": "hello"}]}, "hello"),
        (
            {
                "output": [
                    {"type": "message", "content": [{"type": "output_text", "text": "hello"}]}
                ]
            },
            "hello",
        ),
        (say(None, tool_calls=CALL), None),
        ({"data": [{"embedding": [1]}]}, None),
        ({"choices": "x", "output": 3}, None),
        ({}, None),
    ],
)
def test_the_text_of_an_answer(document, text):
    assert answer_text(document) == text


@pytest.mark.parametrize(
    "document",
    [
        say(None, tool_calls=CALL),
        say("x", function_call={"name": "f"}),
        {"output": [{"type": "function_call", "name": "f"}]},
        {"type": "message", "content": [{"type": "tool_use", "name": "f"}]},
    ],
)
def test_tool_calls_are_noticed(document):
    assert has_tool_calls(document)
    assert not has_tool_calls(say("x"))
    assert not has_tool_calls({"type": "message", "content": [{"type": "text", "text": "x"}]})
