"""Protocols: a replayed stream assembles to the very document, and broken streams to none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streams import (
    CHAT_DOCUMENTS,
    COMPLETION_DOCUMENTS,
    MESSAGE_DOCUMENTS,
    RESPONSE_DOCUMENTS,
    assemble,
    chat_document,
    choice,
    chunk,
    delta,
    message,
    response,
    said,
    sse,
    text_part,
    typed,
)

from recollect.gateway.protocols import Chat, Completions, Incomplete, Messages, Responses, Usage
from recollect.gateway.sse import SSEParser

WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
CASES = [
    (protocol, document)
    for protocol, found in (
        (Chat(), CHAT_DOCUMENTS),
        (Completions(), COMPLETION_DOCUMENTS),
        (Messages(), MESSAGE_DOCUMENTS),
        (Responses(), RESPONSE_DOCUMENTS),
    )
    for document in found
]
NAMES = [f"{protocol.name}-{number}" for number, (protocol, _) in enumerate(CASES)]


def events_of(protocol, document, request=WITH_USAGE):
    raw = b"".join(protocol.replay(document, request))
    return [event for event in SSEParser().feed(raw) if event.data != "[DONE]"]


@pytest.mark.parametrize(("protocol", "document"), CASES, ids=NAMES)
def test_replay_then_assembly_is_the_identity_on_documents(protocol, document):
    before = json.dumps(document)
    stream = b"".join(protocol.replay(document, WITH_USAGE))
    assert assemble(protocol, stream, step=37) == document
    assert json.dumps(document) == before, "replay changed the document it was given"


@pytest.mark.parametrize(("protocol", "document"), CASES, ids=NAMES)
def test_a_stream_cut_anywhere_gives_no_document(protocol, document):
    events = list(protocol.replay(document, WITH_USAGE))
    for end in range(len(events)):
        with pytest.raises(Incomplete):
            assemble(protocol, b"".join(events[:end]))


@pytest.mark.parametrize(("protocol", "document"), CASES, ids=NAMES)
def test_a_stream_cut_within_its_last_event_gives_no_document(protocol, document):
    stream = b"".join(protocol.replay(document, WITH_USAGE))
    with pytest.raises(Incomplete):
        assemble(protocol, stream[:-1])


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "content": st.text(max_size=600),
                "refusal": st.text(min_size=1, max_size=9),
                "reasoning_content": st.text(max_size=300),
            },
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_chat_text_survives(messages):
    document = chat_document(*(choice(i, **fields) for i, fields in enumerate(messages)))
    stream = b"".join(Chat().replay(document, WITH_USAGE))
    assert assemble(Chat(), stream, step=5) == document


def test_deltas_of_interleaved_choices_and_calls_join_by_index():
    call = {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}}
    first = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}
    stream = sse(
        chunk(delta(1, role="assistant", content="")),
        chunk(delta(0, role="assistant", content=None, tool_calls=[first])),
        chunk(delta(1, content="Hel"), delta(0, tool_calls=[call])),
        chunk(delta(0, tool_calls=[{"index": 0, "function": {"arguments": '{"x"'}}])),
        chunk(delta(0, tool_calls=[{"index": 0, "function": {"arguments": ":1}"}}])),
        chunk(delta(1, "stop", content="lo")),
        chunk(delta(0, "tool_calls")),
        chunk(usage={"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}),
    )
    document = assemble(Chat(), b": ping\n\n" + stream)
    zero, one = document["choices"]
    assert one["message"] == {"role": "assistant", "content": "Hello"}
    names = [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in
             zero["message"]["tool_calls"]]  # fmt: skip
    assert names == [("a", "f", '{"x":1}'), ("b", "g", "")]
    assert document["usage"]["total_tokens"] == 5
    assert document["object"] == "chat.completion"


def test_chat_replay_has_the_order_clients_rely_on():
    document = chat_document(choice(0, content="a" * 600), choice(1, content="b"))
    chunks = [json.loads(event.data) for event in events_of(Chat(), document)]
    assert [c["choices"][0]["delta"] for c in chunks[:2]] == [{"role": "assistant"}] * 2
    finishes = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]]
    assert finishes[-2:] == ["stop", "stop"]
    assert set(finishes[:-2]) == {None}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == document["usage"]
    assert all(c["usage"] is None for c in chunks[:-1])
    assert {c["id"] for c in chunks} == {"c1"}
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}


def test_usage_is_streamed_only_where_asked_for():
    document = CHAT_DOCUMENTS[0]
    chunks = [json.loads(event.data) for event in events_of(Chat(), document, {"stream": True})]
    assert all("usage" not in c and c["choices"] for c in chunks)
    without = {name: value for name, value in document.items() if name != "usage"}
    assert "usage" in Chat().replayable(without, WITH_USAGE)
    assert Chat().replayable(document, WITH_USAGE) == ""
    assert Chat().replayable(without, {"stream": True}) == ""


@pytest.mark.parametrize(
    ("protocol", "stream"),
    [
        (Chat(), sse(chunk(delta(0, "stop", content="x", mystery="y")))),
        (Chat(), sse(chunk(delta(0, "stop", content="x")), {"error": {"message": "boom"}})),
        (Chat(), sse(chunk(delta(0, content="x")))),
        (Chat(), sse()),
        (Chat(), b"data: {not json\n\n" + sse(chunk(delta(0, "stop")))),
        (Chat(), sse(chunk(delta(0, "stop", content="x"))) + sse(chunk(delta(0, content="y")))),
        (Completions(), sse({"error": {"message": "boom"}})),
        (Messages(), typed({"type": "message_stop"})),
        (Messages(), typed({"type": "error", "error": {"type": "overloaded_error"}})),
        (Messages(), typed({"type": "message_start", "message": message()}, {"type": "new"})),
        (Responses(), typed({"type": "response.failed", "response": response()})),
        (Responses(), typed({"type": "response.completed",
                             "response": response(said(text_part("never streamed")))})),
    ],
)  # fmt: skip
def test_streams_that_failed_or_are_not_understood_give_no_document(protocol, stream):
    with pytest.raises(Incomplete):
        assemble(protocol, stream)


def test_endings_are_named_alike_in_every_protocol():
    def ends(protocol, documents):
        return [protocol.endings(document) for document in documents]

    chat = ends(Chat(), CHAT_DOCUMENTS)
    assert chat[0] == {"stop"}
    assert chat[2] == {"stop", "length"}
    assert chat[3] == {"stop", "refusal"}
    assert chat[4] == {"tool_calls"}
    assert chat[7] == {"tool_calls"}
    assert ends(Messages(), MESSAGE_DOCUMENTS)[2:4] == [{"stop"}, {"tool_calls"}]
    responses = ends(Responses(), RESPONSE_DOCUMENTS)
    assert responses[2] == {"stop", "refusal"}
    assert responses[4] == {"stop", "tool_calls"}
    assert responses[5] == {"length"}
    assert Completions().endings({}) == {"unknown"}


def test_usage_counts_what_the_provider_had_cached():
    document = chat_document(usage={"prompt_tokens": 9, "completion_tokens": 2,
                                    "prompt_tokens_details": {"cached_tokens": 8}})  # fmt: skip
    assert Chat().usage(document) == Usage(9, 2, 8)
    assert Messages().usage(message()) == Usage(11, 4, 2)
    assert Responses().usage(response()) == Usage(3, 4, 1)
    assert Chat().usage({"usage": None}) is None
    assert Chat().usage({"usage": {"prompt_tokens": "many"}}) == Usage(0, 0, 0)


def test_response_events_count_upwards_and_say_their_type():
    for document in RESPONSE_DOCUMENTS:
        events = events_of(Responses(), document)
        data = [json.loads(event.data) for event in events]
        assert [d["sequence_number"] for d in data] == list(range(len(data)))
        assert [d["type"] for d in data] == [event.kind for event in events]
        assert data[0]["response"]["status"] == "in_progress"
        joined = "".join(d["delta"] for d in data if d["type"] == "response.output_text.delta")
        parts = [p for item in document["output"] for p in item.get("content") or ()]
        assert joined == "".join(p["text"] for p in parts if p["type"] == "output_text")


def test_broken_streams_are_told_in_the_clients_own_words():
    (chat,) = SSEParser().feed(Chat().broken("gone"))
    assert json.loads(chat.data)["error"]["message"] == "gone"
    (messages,) = SSEParser().feed(Messages().broken("gone"))
    assert (messages.kind, json.loads(messages.data)["error"]["type"]) == ("error", "api_error")
    (responses,) = SSEParser().feed(Responses().broken("gone"))
    assert json.loads(responses.data)["type"] == "error"
