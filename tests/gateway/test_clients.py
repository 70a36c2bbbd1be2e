"""What the official clients' own helpers make of a miss they make of its replay: every shape."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest
from pydantic import BaseModel
from servers import settle
from streams import (
    CALLS,
    CHAT_DOCUMENTS,
    MESSAGE_DOCUMENTS,
    RESPONSE_DOCUMENTS,
    chat_document,
    choice,
    message,
)
from test_admin import kind
from test_front import ASK, CHAT, anthropic_client, openai_client, post, twice

from recollect.answers.entry import SCHEMA

EVERY_ENDING = frozenset({"stop", "length", "tool_calls", "refusal"})
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture
def keeping(start):
    """Address of a gateway that keeps answers however they ended."""
    return start(keep=EVERY_ENDING)[0]


def each(upstream, documents):
    """Have the upstream give each document in turn; its number and itself."""
    for number, document in enumerate(documents):
        upstream.answer = lambda request, asked, document=document: document
        yield number, document


def test_chat_documents_and_streams_of_every_shape(keeping, upstream):
    client = openai_client(keeping)
    for number, document in each(upstream, CHAT_DOCUMENTS):
        ask = {**CHAT, "seed": number, "tools": [TOOL]}
        first, second = twice(lambda ask=ask: client.chat.completions.create(**ask))
        assert first == second
        assert first.to_dict()["choices"] == document["choices"]

        def final(ask=ask):
            options = {"include_usage": True}
            with client.chat.completions.stream(**ask, stream_options=options) as events:
                events.until_done()
                return events.get_final_completion()

        if not any(one["finish_reason"] == "length" for one in document["choices"]):
            first, second = twice(final)  # the helper raises on answers that were cut off
            assert first == second
    assert upstream.total == 2 * len(CHAT_DOCUMENTS) - 1


def test_responses_of_every_shape(keeping, upstream):
    client = openai_client(keeping)
    for number, document in each(upstream, RESPONSE_DOCUMENTS):
        ask = {"model": "m", "input": f"why {number}?", "store": False}
        first, second = twice(lambda ask=ask: client.responses.create(**ask))
        assert first == second

        def final(ask=ask):
            with client.responses.stream(**ask) as events:
                kinds = [event.type for event in events]
                return kinds, events.get_final_response()

        if document["status"] == "completed":
            first, second = twice(final)
            assert first == second
            assert first[1].id == document["id"]


def test_messages_of_every_shape(keeping, upstream):
    client = anthropic_client(keeping)
    for number, document in each(upstream, MESSAGE_DOCUMENTS):
        ask = {"model": "claude", "max_tokens": 9 + number, "messages": ASK}
        first, second = twice(lambda ask=ask: client.messages.create(**ask))
        assert first == second
        assert first.to_dict()["content"] == document["content"]

        def final(ask=ask):
            with client.messages.stream(**ask) as events:
                return events.get_final_message()

        first, second = twice(final)
        assert first == second
        assert first.to_dict()["content"] == document["content"]
    assert upstream.total == 2 * len(MESSAGE_DOCUMENTS)


def test_parsed_answers_are_parsed_from_replays(keeping, upstream):
    class Capital(BaseModel):
        city: str

    text = json.dumps({"city": "Paris"})
    upstream.answer = lambda request, asked: chat_document(choice(content=text))
    client = openai_client(keeping)
    found = twice(lambda: client.chat.completions.parse(**CHAT, response_format=Capital))
    assert [one.choices[0].message.parsed for one in found] == [Capital(city="Paris")] * 2
    assert upstream.total == 1


def test_a_conversation_with_tools_hits_turn_by_turn(keeping, upstream):
    client = openai_client(keeping)
    call = chat_document(choice(finish="tool_calls", tool_calls=CALLS[:1]))
    upstream.answer = lambda request, asked: (
        chat_document(choice(content="3 is the sum")) if len(asked["messages"]) > 1 else call
    )

    def converse(result):
        first = client.chat.completions.create(**CHAT, tools=[TOOL]).choices[0].message
        settle()
        told = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": result}
        history = [*ASK, first.to_dict(), told]
        answer = client.chat.completions.create(model="m", messages=history, tools=[TOOL])
        settle()
        return answer.choices[0].message.content

    assert [converse("3"), converse("3")] == ["3 is the sum"] * 2
    assert upstream.total == 2
    converse("4")
    assert upstream.total == 3, "another result of the tool is another request"


def test_refusals_and_tool_calls_are_not_kept_unless_told_to(address, upstream):
    refused = chat_document(choice(refusal="no"))
    called = chat_document(choice(finish="tool_calls", tool_calls=CALLS))
    used = message(
        {"type": "tool_use", "id": "t", "name": "f", "input": {}}, stop_reason="tool_use"
    )
    for document, path in (
        (refused, "/v1/chat/completions"),
        (called, "/v1/chat/completions"),
        (used, "/v1/messages"),
    ):
        upstream.answer = lambda request, asked, document=document: document
        ask = {**CHAT, "max_tokens": 9}
        assert [kind(post(address, ask, path)) for _ in range(2)] == ["miss", "miss"]


def test_asynchronous_clients_share_flights_and_hits(address, upstream):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="alice") as client:
            asked = [client.chat.completions.create(**CHAT) for _ in range(8)]
            found = await asyncio.gather(*asked)
            stream = await client.chat.completions.create(**CHAT, stream=True)
            return found, [chunk async for chunk in stream]

    found, chunks = asyncio.run(ask())
    assert len({one.id for one in found}) == 1
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert upstream.total == 2


def test_quarantined_answers_serve_their_writer_until_others_got_the_same(start, upstream):
    address, _ = start(recipe="exact + quarantine", arguments={"confirmations": 1}, scope="global")
    upstream.answer = lambda request, asked: chat_document(choice(content="the same to all"))
    kinds = [kind(post(address, CHAT, key=key)) for key in ("eve", "eve", "alice", "bob")]
    assert kinds == ["miss", "hit", "miss", "hit"]


def test_a_store_of_a_newer_version_stops_the_start_with_one_line(tmp_path):
    import sqlite3

    from click.testing import CliRunner

    from recollect.answers import Answers
    from recollect.cli.common import Group
    from recollect.cli.gateway import gateway

    store = f"sqlite:///{tmp_path}/answers.db"
    Answers(store).close()
    with sqlite3.connect(tmp_path / "answers.db") as file:
        file.execute(
            "UPDATE answers_meta SET value = ? WHERE name = 'schema'", (b"%d" % (SCHEMA + 1),)
        )
    file.close()
    arguments = ["gateway", "--port", "0", "--upstream", "http://up", "--store", store]
    result = CliRunner().invoke(Group(commands={"gateway": gateway}), arguments)
    assert result.exit_code == 2
    assert "newer version" in result.output
    assert len(result.output.strip().splitlines()) == 1
