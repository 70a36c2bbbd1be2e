"""Identity: what may share an answer and what never; canonical JSON underneath."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import mutate, random_request, what_counts

from recollect.answers.canonical import _write, canonical, parse
from recollect.answers.identity import (
    DROPPED,
    PROTOCOLS,
    SemanticRules,
    identify,
    keyed,
    split_embeddings,
)
from recollect.errors import RecipeError

CHAT = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Capital of France?"},
    ],
    "temperature": 0.2,
}


def of(request, **arguments):
    return identify(request, **{"scope_id": "alice", "secret": b"k", **arguments})


def changed(**fields):
    return {**CHAT, **fields}


def asking(text, *before):
    return changed(messages=[*before, {"role": "user", "content": text}])


# No false equality --------------------------------------------------------------------------


def assert_no_false_equality(count):
    """Every pair among all requests and mutations is compared, through one dictionary."""
    rng = random.Random(7)
    seen: dict = {}
    equal = 0
    for number in range(count):
        if number % 10 == 0:
            protocol = rng.choice(PROTOCOLS)
            request = random_request(rng, protocol)
        else:
            request = mutate(rng, request)
        identity = of(request, protocol=protocol)
        key = (identity.partition, identity.exact_fp)
        counts = what_counts(request, protocol)
        equal += key in seen
        assert seen.setdefault(key, counts) == counts
    assert len(set(seen.values())) == len(seen)  # and no false difference
    assert equal > count / 20  # the mutations did meet


def test_no_false_equality_among_20000_mutations():
    assert_no_false_equality(20_000)


@pytest.mark.slow
def test_no_false_equality_among_100000_mutations():
    assert_no_false_equality(100_000)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_cannot_change_the_answer_is_left_out(protocol):
    request = {"model": "m", "messages": [], "input": "x", "prompt": "x"}
    base = of(request, protocol=protocol)
    for name in DROPPED[protocol] - {"user", "safety_identifier", "metadata"}:
        other = of({**request, name: "anything"}, protocol=protocol)
        assert (other.partition, other.exact_fp) == (base.partition, base.exact_fp), name


@pytest.mark.parametrize(
    "arguments",
    [
        {"scope_id": "bob"},
        {"scope": "team"},
        {"secret": b"other"},
        {"resolved_model": "m-2024"},
        {"policy": "p2"},
        {"epoch": 1},
        {"wire": "stream"},
        {"protocol": "messages"},
    ],
    ids=str,
)
def test_partitions_differ_by(arguments):
    assert of(CHAT, **arguments).partition != of(CHAT).partition


def test_the_model_is_in_the_partition():
    other = of(changed(model="n"))
    assert other.partition != of(CHAT).partition
    assert other.exact_fp != of(CHAT).exact_fp
    assert other.compat_fp == of(CHAT).compat_fp


def test_streams_and_bodies_are_apart_unless_one_document_serves_both():
    stream = changed(stream=True)
    assert of(stream).partition != of(CHAT).partition
    assert of(stream, wire="body") == of(CHAT)
    assert of(changed(stream=False)) == of(CHAT)
    assert of(changed(stream="yes")).exact_fp != of(CHAT).exact_fp


def test_headers_that_change_answers_are_in_the_key():
    beta = of(CHAT, headers={"Anthropic-Beta": "x", "X-Request-Id": "1"})
    assert beta.exact_fp != of(CHAT).exact_fp
    assert beta.compat_fp != of(CHAT).compat_fp
    assert of(CHAT, headers={"X-Request-Id": "2", "Authorization": "k"}) == of(CHAT)


def test_users_named_in_the_body_narrow_the_scope_and_never_widen_it():
    assert of(changed(user="eve")).partition != of(CHAT).partition
    assert of(changed(user="eve"), scope_id="bob").partition != of(changed(user="eve")).partition
    assert of(changed(safety_identifier="eve")).partition != of(changed(user="eve")).partition
    messages = {"model": "m", "messages": CHAT["messages"], "metadata": {"user_id": "eve"}}
    bare = {**messages, "metadata": {}}
    assert of(messages, protocol="messages").partition != of(bare, protocol="messages").partition
    assert of(changed(user="eve"), scope="team").partition == of(CHAT, scope="team").partition


def test_without_a_scope_id_nothing_is_cached():
    identity = identify(CHAT)
    assert not identity.cacheable
    assert not identity.semantic_safe
    assert identity.reason == "no scope id"
    assert not identify(changed(user="eve")).cacheable
    assert identify(CHAT, scope="global").cacheable


def test_names_do_not_run_together():
    assert keyed(b"k", "ab", "c") != keyed(b"k", "a", "bc")
    assert keyed(b"k", "a") != keyed(b"l", "a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"protocol": "chats"}, "unknown protocol"), ({"scope": "world"}, "unknown scope")],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(RecipeError, match=message):
        of(CHAT, **arguments)


# Compatibility ------------------------------------------------------------------------------


def test_compatible_requests_differ_in_the_last_user_text_only():
    one, two = of(asking("A?")), of(asking("B?"))
    assert one.compat_fp == two.compat_fp
    assert one.exact_fp != two.exact_fp
    assert (one.query, two.query) == ("A?", "B?")
    assert one.semantic_safe


@pytest.mark.parametrize(
    "other",
    [
        asking("A?", {"role": "system", "content": "Answer in French."}),
        asking("A?", {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}),
        {**asking("A?"), "temperature": 0.3},
        {**asking("A?"), "seed": 1},
        {**asking("A?"), "response_format": {"type": "json_object"}},
        {**asking("A?"), "unknown": 1},
        changed(messages=[{"role": "user", "content": "A?", "name": "x"}]),
    ],
    ids=lambda request: json.dumps(request)[-60:],
)
def test_everything_but_the_text_must_be_the_same_to_compare(other):
    assert of(other).compat_fp != of(asking("A?")).compat_fp


def test_text_parts_are_text():
    parts = [{"type": "text", "text": "A?"}, {"type": "text", "text": "B?"}]
    identity = of(asking(parts))
    assert identity.semantic_safe
    assert identity.query == "A?\nB?"


IMAGE = {"type": "image_url", "image_url": {"url": "x"}}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (asking([{"type": "text", "text": "What is it?"}, IMAGE]), "not only text"),
        (changed(messages=[{"role": "assistant", "content": "x"}]), "not the user's"),
        (changed(messages=[]), "messages is empty"),
        (changed(messages="hello"), "messages is empty"),
        (changed(n=2), "several answers"),
        (changed(logprobs=True), "logprobs"),
        (changed(tools=[TOOL]), "tools are offered"),
        (changed(temperature=1.5), "temperature above"),
        (changed(modalities=["text", "audio"]), "not only text"),
        (asking("Q", *[{"role": "user", "content": "x"}] * 9), "more than 8 earlier"),
        (asking("Q", {"role": "tool", "content": "r"}), "tool results"),
        (asking("Q", {"role": "user", "content": [IMAGE]}), "media"),
    ],
)
def test_exact_tier_only(request_, reason):
    identity = of(request_)
    assert identity.cacheable
    assert not identity.semantic_safe
    assert reason in identity.reason


def test_rules_widen_what_may_be_similar():
    rules = SemanticRules(allow_tools=True, max_temperature=2)
    assert of(changed(tools=[TOOL], temperature=1.5), rules=rules).semantic_safe


def test_chained_conversations_compare_without_their_earlier_turns():
    first = asking("Q", {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"})
    other = asking("Q", {"role": "user", "content": "z"}, {"role": "assistant", "content": "w"})
    assert of(first).compat_fp != of(other).compat_fp
    rules = SemanticRules(chained=True)
    assert of(first, rules=rules).compat_fp == of(other, rules=rules).compat_fp
    assert of(first, rules=rules).exact_fp != of(other, rules=rules).exact_fp
    assert of(first, rules=rules).follow_up
    assert not of(asking("Q"), rules=rules).follow_up


@pytest.mark.parametrize(
    ("protocol", "fields"),
    [
        ("responses", {"previous_response_id": "r", "store": False}),
        ("responses", {"conversation": "c", "store": False}),
        ("responses", {"background": True, "store": False}),
        ("responses", {"tools": [{"type": "web_search"}], "store": False}),
        ("responses", {}),
        ("responses", {"store": True}),
        ("chat", {"web_search_options": {"x": 1}}),
        ("messages", {"container": "c"}),
        ("messages", {"mcp_servers": [{"url": "x"}]}),
        ("messages", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
    ],
)
def test_hidden_state_is_never_cached(protocol, fields):
    request = {"model": "m", "input": "x", "messages": CHAT["messages"], **fields}
    assert not of(request, protocol=protocol).cacheable


def test_responses_without_state_are_cached():
    request = {"model": "m", "input": "Capital of France?", "store": False}
    identity = of(request, protocol="responses")
    assert identity.cacheable
    assert identity.semantic_safe
    assert identity.query == "Capital of France?"
    items = {**request, "input": [{"role": "user", "content": "Capital of France?"}]}
    assert of(items, protocol="responses").compat_fp == identity.compat_fp
    assert of({"model": "m", "input": "x"}, protocol="responses", owns_state=True).cacheable


def test_tools_of_the_caller_are_cached_exactly():
    own = {"name": "f", "input_schema": {}}
    assert of({**CHAT, "tools": [own]}, protocol="messages").cacheable
    assert of(changed(tools=[TOOL])).cacheable
    assert not of(changed(tools=["x"])).cacheable


def test_embeddings_are_identified_item_by_item():
    request = {"model": "e", "input": ["a", "b"], "dimensions": 8}
    items = [of(item, protocol="embeddings") for item in split_embeddings(request)]
    assert items[0].exact_fp == of({**request, "input": "a"}, protocol="embeddings").exact_fp
    assert items[0].exact_fp == of({**request, "input": ["a"]}, protocol="embeddings").exact_fp
    assert items[0].exact_fp != items[1].exact_fp
    assert not items[0].semantic_safe
    assert [r["input"] for r in split_embeddings({"input": [1, 2]})] == [[1, 2]]
    assert [r["input"] for r in split_embeddings({"input": [[1], [2]]})] == [[1], [2]]
    other = {**request, "encoding_format": "base64", "input": "a"}
    assert of(other, protocol="embeddings").exact_fp != items[0].exact_fp


def test_completions_compare_their_prompt():
    one = of({"model": "m", "prompt": "a"}, protocol="completions")
    two = of({"model": "m", "prompt": "b"}, protocol="completions")
    assert one.semantic_safe
    assert one.compat_fp == two.compat_fp
    assert not of({"model": "m", "prompt": ["a"]}, protocol="completions").semantic_safe
    echo = of({"model": "m", "prompt": "a", "best_of": 3}, protocol="completions")
    assert not echo.semantic_safe


# Canonical JSON -----------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab\u00e9"), inner),
    max_leaves=12,
)


@given(JSON)
def test_the_fast_and_the_slow_writer_agree(value):
    slow: list[str] = []
    _write(value, slow)
    assert canonical(value) == "".join(slow).encode()


@given(st.dictionaries(st.text("ab"), JSON))
def test_canonical_text_reads_back_as_the_value(value):
    text = canonical(value)
    assert canonical(parse(text)) == text
    assert json.loads(text) == value


@pytest.mark.parametrize(
    "literal", ["1", "1.0", "1.00", "1e0", "1E0", "10e-1", "0.1e1", "-0", "-0.0", "0", "1e400"]
)
def test_number_literals_are_kept(literal):
    text = f'{{"x":{literal}}}'
    assert canonical(parse(text)).decode() == text


def test_a_parsed_request_and_its_text_are_the_same():
    assert of(json.dumps(CHAT)) == of(CHAT) == of(json.dumps(CHAT, indent=3).encode())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a":1,"a":2}', 'key "a" twice'),
        (b'{"a":{"b":1,"b":1}}', 'key "b" twice'),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":-Infinity}', "Infinity"),
        (b'{"a":"\xff"}', "not UTF-8"),
        (b'{"a":', "not JSON"),
        (b"", "not JSON"),
        (b"[1]", "JSON object"),
        (b'"x"', "JSON object"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"a":' + b"[" * 100_000, "nested too deeply"),
        (b'{"a":' + b"9" * 5000 + b"}", "not JSON"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_parsers_disagree_about_is_refused(text, message):
    with pytest.raises(RecipeError, match=message):
        parse(text)


def deep():
    value: list = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "NaN"),
        ([float("inf")], "infinity"),
        ({"a": float("-inf"), "b": {1, 2}}, "NaN|set"),
        ({1: "x"}, "not a string"),
        ({True: "x", "true": "y"}, "not a string"),
        ("\ud800", "surrogate"),
        (b"bytes", "bytes"),
        (object(), "object"),
        (deep(), "nested too deeply"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_cannot_say_is_refused(value, message):
    with pytest.raises(RecipeError, match=message):
        canonical(value)
