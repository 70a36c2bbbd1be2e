"""Recipes of answers: each composes, builds, and serves what it should through `Answers`."""

import json

import pytest

from recollect.answers import Answers, ManualClock
from recollect.answers.catalogue import TextEncoder
from recollect.answers.decisions import Centroids, Pooled, Verified
from recollect.answers.decisions.category import Categories, CategoryRule
from recollect.answers.encoders import NgramEncoder
from recollect.errors import RecipeError
from recollect.recipe import compose, find, recipes

RULES = {"faq": CategoryRule(0.5, ttl=60.0), "personal": CategoryRule(cacheable=False)}


def ask(text, *history):
    messages = [*history, {"role": "user", "content": text}]
    return {"model": "m", "messages": messages, "temperature": 0}


def say(text):
    message = {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


def said(lookup):
    return json.loads(lookup.response)["choices"][0]["message"]["content"]


def cache(recipe, **arguments):
    return Answers(recipe=recipe, encoder="ngram", clock=ManualClock(1000.0), **arguments)


def fill(answers, text, reply, **asked):
    lookup = answers.lookup(ask(text), scope_id="u", **asked)
    assert not lookup.hit
    return answers.store(lookup, say(reply))


@pytest.mark.parametrize("recipe", recipes("answers"), ids=lambda recipe: recipe.name)
def test_every_recipe_serves_the_same_request_again_unless_its_category_forbids(recipe):
    answers = cache(recipe.name) if recipe.fallback else Answers(recipe=recipe.name)
    stored = fill(answers, "how do I reset my password", "like this", category="faq")
    assert stored, stored.reason
    again = answers.lookup(ask("how do I reset my password"), scope_id="u", category="faq")
    assert (again.tier, said(again)) == ("exact", "like this")
    other = answers.lookup(ask("how do I reset my password"), scope_id="v", category="faq")
    assert not other.hit


def test_the_encoder_of_a_recipe_is_minilm_until_another_is_asked_for():
    assert find("vcache").fallback["encoder"] == TextEncoder("minilm")
    assert compose("vcache(text_encoder='ngram')").stages["encoder"].build().dim == 1024


def test_a_reworded_question_hits_by_similarity():
    answers = cache("gptcache")
    fill(answers, "how do I reset my password", "like this")
    lookup = answers.lookup(ask("how do I reset my password please"), scope_id="u")
    assert (lookup.tier, said(lookup)) == ("semantic", "like this")
    assert not answers.lookup(ask("what is the weather"), scope_id="u").hit


def test_category_cache_never_keeps_what_a_category_forbids():
    answers = cache("category-cache", categories=RULES)
    assert not fill(answers, "what is my balance", "42", category="personal")
    assert not fill(answers, "hello there", "hi", category="unheard of")
    fill(answers, "how do I reset my password", "like this", category="faq")
    near = ask("how can I reset my password")
    assert answers.lookup(near, scope_id="u", category="faq").tier == "semantic"
    assert not answers.lookup(near, scope_id="u", category="personal").hit


def test_nearer_entries_of_another_category_do_not_hide_the_right_one():
    rules = {"faq": CategoryRule(0.3), "code": CategoryRule(1.0)}
    answers = cache("category-cache", categories=rules)
    fill(answers, "reset password", "right", category="faq")
    for n in range(12):
        fill(answers, f"how do I reset my password {n}", f"wrong {n}", category="code")
    lookup = answers.lookup(ask("how do I reset my password"), scope_id="u", category="faq")
    assert said(lookup) == "right"


def test_a_classifier_gives_the_category_that_the_caller_does_not():
    encoder = NgramEncoder()
    topics = encoder.encode(["reset my password", "my account balance"])
    classifier = Centroids(topics, ("faq", "personal"), encoder.encoder_id, 0.1)
    answers = cache("category-cache", categories=RULES, classifier=classifier)
    assert fill(answers, "how do I reset my password", "like this")
    assert not fill(answers, "what is my account balance", "42")


def test_category_cache_and_vcache_compose_where_they_do_not_conflict():
    both = compose("category-cache + vcache")
    assert both.stages["decision"] == Verified()
    assert isinstance(both.stages["lifetimes"], Categories)
    answers = cache("category-cache + vcache(delta=0.05)", categories=RULES)
    assert not fill(answers, "what is my balance", "42", category="personal")
    fill(answers, "how do I reset my password", "like this", category="faq")
    lookup = answers.lookup(ask("how can I reset my password"), scope_id="u", category="faq")
    assert not lookup.hit
    assert lookup.reason == "too few observations of the entry"


def test_two_decisions_do_not_compose():
    with pytest.raises(RecipeError, match="'vcache' and 'meancache' both decide the decision"):
        compose("vcache + meancache")


def test_vcache_learns_from_explorations_and_keeps_one_entry_per_answer():
    answers = cache("vcache", delta=0.2)
    fill(answers, "how do I reset my password", "like this")
    endings = ["please", "now", "today", "again", "quickly", "here"] * 6
    tiers = []
    for n, ending in enumerate(endings):
        lookup = answers.lookup(ask(f"how do I reset my password {ending}" + "!" * n), scope_id="u")
        tiers.append(lookup.tier)
        if not lookup.hit:
            answers.store(lookup, say("like this"))
    assert tiers[:4] == [""] * 4
    assert "semantic" in tiers
    assert answers.stats()["entries"] == 1


def test_pooled_keeps_paraphrases_as_keys_of_the_same_answer():
    answers = cache(compose("pooled"), decision=Pooled(delta=0.3, patience=10))
    fill(answers, "how do I reset my password", "like this")
    second = answers.lookup(ask("how can I reset my password"), scope_id="u")
    answers.store(second, say("like this"))
    third = answers.lookup(ask("how could I reset the password"), scope_id="u")
    assert third.ticket.rivals == ()
    answers.store(third, say("something else"))
    fourth = answers.lookup(ask("how could I reset my password"), scope_id="u")
    assert len(fourth.ticket.rivals) == 1
    entries = {entry.query: entry for entry in answers._backend.scan()}
    first = entries["how do I reset my password"].id
    assert entries["how can I reset my password"].facts == {"same_answer_as": first}
    assert entries["how could I reset the password"].facts == {}


def test_a_caller_cannot_claim_that_answers_are_equal():
    answers = cache("pooled")
    lookup = answers.lookup(ask("hello world"), scope_id="u")
    answers.store(lookup, say("hi"), facts={"same_answer_as": 1, "kept": True})
    [entry] = answers._backend.scan()
    assert entry.facts == {"kept": True}


def test_meancache_serves_a_follow_up_under_its_own_first_turn_only():
    answers = cache("meancache", min_similarity=0.7)

    def turn(conversation, text, reply, *history):
        request = ask(text, *history)
        lookup = answers.lookup(request, scope_id="u", conversation=conversation)
        if not lookup.hit:
            answers.store(lookup, say(reply))
        return lookup

    def history(text, reply):
        return {"role": "user", "content": text}, {"role": "assistant", "content": reply}

    inflation = history("Can you explain the concept of inflation?", "It is ...")
    rocks = history("Tell me about volcanic rocks and where they form", "They are ...")
    turn("a", inflation[0]["content"], "It is ...")
    turn("a", "What are its types?", "demand-pull and cost-push", *inflation)
    turn("b", rocks[0]["content"], "They are ...")
    assert not turn("b", "What are its types?", "basalt", *rocks).hit
    assert (
        turn(
            "c",
            "Can you explain the concept of inflation",
            "",
        ).tier
        == "semantic"
    )
    followed = turn("c", "What are its types", "", *inflation)
    assert (followed.tier, said(followed)) == ("semantic", "demand-pull and cost-push")
    assert not turn("d", "What are its types", "x", *inflation).hit
