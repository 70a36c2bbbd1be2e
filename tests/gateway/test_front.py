"""Hits, misses and flights through real sockets, with the official clients."""

from __future__ import annotations

import asyncio
import gzip
import json
from concurrent.futures import ThreadPoolExecutor

import anthropic
import httpx
import openai
import pytest
from servers import settle, usual, wait_until
from starlette.responses import JSONResponse, Response
from streams import assemble

from recollect.answers import ManualClock
from recollect.gateway.protocols import Chat

ASK = [{"role": "user", "content": "why?"}]
CHAT = {"model": "m", "messages": ASK}
HTTP = httpx.Client(timeout=30, limits=httpx.Limits(max_keepalive_connections=0))


def openai_client(address, key="alice"):
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=30)


def anthropic_client(address, key="alice"):
    return anthropic.Anthropic(base_url=address, api_key=key, max_retries=0, timeout=30)


def twice(ask):
    """What a miss gets, and what a hit gets."""
    first = ask()
    settle()
    return [first, ask()]


def post(address, document, path="/v1/chat/completions", key="alice", **headers):
    given = {"content-type": "application/json", **headers}
    if key:
        given.setdefault("authorization", f"Bearer {key}")
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    answer = HTTP.post(address + path, content=body, headers=given)
    settle()
    return answer


def test_a_hit_is_the_miss_byte_for_byte(address, upstream):
    first, second = post(address, CHAT), post(address, CHAT)
    assert first.content == second.content
    assert upstream.total == 1
    assert first.headers["x-recollect-cache"] == "miss"
    assert second.headers["x-recollect-cache"] == "hit"
    assert second.headers["x-recollect-tier"] == "exact"
    assert second.headers["x-recollect-usage"] == "stored"
    assert second.headers["age"] == "0"
    assert int(second.headers["x-recollect-entry"]) > 0
    assert "x-recollect-similarity" not in second.headers


def test_the_openai_client_reads_hits_and_misses_of_chat(address, upstream):
    client = openai_client(address)
    found = twice(lambda: client.chat.completions.create(model="m", messages=ASK, n=2))
    assert found[0] == found[1]
    assert len(found[0].choices) == 2
    options = {"include_usage": True}
    streams = twice(
        lambda: list(
            client.chat.completions.create(
                model="m", messages=ASK, stream=True, stream_options=options
            )
        )
    )
    texts = ["".join(c.choices[0].delta.content or "" for c in s if c.choices) for s in streams]
    assert texts[0] == texts[1] == "answer 2 to why? (0)"
    assert streams[0][-1].usage == streams[1][-1].usage
    assert streams[1][-1].usage.total_tokens == 12
    assert upstream.total == 2


def test_the_openai_client_reads_hits_and_misses_of_responses(address, upstream):
    client = openai_client(address)
    ask = {"model": "m", "input": "why?", "store": False}
    found = twice(lambda: client.responses.create(**ask))
    assert found[0].output_text == found[1].output_text == "answer 1 to why?"
    streams = twice(lambda: list(client.responses.create(**ask, stream=True)))
    assert [e.type for e in streams[0]] == [e.type for e in streams[1]]
    assert streams[0][-1].response == streams[1][-1].response
    assert upstream.total == 2


def test_responses_that_leave_an_object_at_the_provider_are_not_cached(address, upstream):
    client = openai_client(address)
    for more in ({}, {"store": True}, {"store": False, "previous_response_id": "r"}):
        for _ in range(2):
            raw = client.responses.with_raw_response.create(model="m", input="why?", **more)
            assert raw.headers["x-recollect-cache"] == "bypass"
            assert raw.headers["x-recollect-reason"]
    assert upstream.total == 6


def test_the_openai_client_reads_hits_and_misses_of_completions(address, upstream):
    client = openai_client(address)
    found = twice(lambda: client.completions.create(model="m", prompt="why?"))
    assert found[0] == found[1]
    streams = twice(lambda: list(client.completions.create(model="m", prompt="why?", stream=True)))
    texts = ["".join(chunk.choices[0].text for chunk in stream) for stream in streams]
    assert texts == ["answer 2 to why?"] * 2
    assert upstream.total == 2


def test_the_anthropic_client_reads_hits_and_misses(address, upstream):
    client = anthropic_client(address)
    ask = {"model": "claude", "max_tokens": 9, "messages": ASK}
    found = twice(lambda: client.messages.create(**ask))
    assert found[0] == found[1]

    def stream():
        with client.messages.stream(**ask) as streamed:
            assert "".join(streamed.text_stream) == "answer 2 to why?"
            return streamed.get_final_message()

    finals = twice(stream)
    assert finals[0].content == finals[1].content
    assert finals[0].usage.output_tokens == finals[1].usage.output_tokens == 4
    assert upstream.total == 2


def test_a_replayed_stream_assembles_to_the_same_document_as_the_first(address, upstream):
    ask = {**CHAT, "stream": True, "stream_options": {"include_usage": True}, "n": 2}
    first, second = post(address, ask), post(address, ask)
    assert second.headers["x-recollect-cache"] == "hit"
    assert second.headers["content-type"].startswith("text/event-stream")
    assert assemble(Chat(), first.content) == assemble(Chat(), second.content)


def test_a_stream_stored_without_usage_does_not_answer_one_who_asks_for_it(address, upstream):
    plain = {**CHAT, "stream": True}
    asking = {**plain, "stream_options": {"include_usage": True}}
    post(address, plain)
    assert post(address, asking).headers["x-recollect-cache"] == "miss"
    assert post(address, asking).headers["x-recollect-cache"] == "hit"
    assert b'"usage"' not in post(address, plain).content.replace(b'"usage":null', b"")
    assert upstream.total == 2


@pytest.mark.parametrize("stream", [False, True])
def test_64_identical_misses_at_once_are_one_call(start, upstream, stream):
    address, gateway = start()
    upstream.gate.clear()
    ask = {**CHAT, "stream": stream}
    with ThreadPoolExecutor(64) as pool:
        asking = [pool.submit(post, address, ask) for _ in range(64)]
        wait_until(lambda: gateway.flights.travellers == 64)
        upstream.gate.set()
        answers = [asked.result() for asked in asking]
    assert upstream.total == 1
    assert len({answer.content for answer in answers}) == 1
    kinds = [answer.headers["x-recollect-cache"] for answer in answers]
    assert (kinds.count("miss"), kinds.count("shared")) == (1, 63)
    assert post(address, ask).headers["x-recollect-cache"] == "hit"


def test_a_failure_reaches_all_who_wait_and_is_not_kept(start, upstream):
    address, gateway = start()

    async def fail(request, asked):
        while not upstream.gate.is_set():
            await asyncio.sleep(0.005)
        error = {"error": {"message": "busy", "type": "x", "code": None, "param": None}}
        return JSONResponse(error, 429, headers={"retry-after": "7", "x-ratelimit-limit": "1"})

    upstream.gate.clear()
    upstream.answer = fail
    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(post, address, CHAT) for _ in range(8)]
        wait_until(lambda: gateway.flights.travellers == 8)
        upstream.gate.set()
        answers = [asked.result() for asked in asking]
    assert {answer.status_code for answer in answers} == {429}
    assert upstream.total == 1
    assert {answer.headers["retry-after"] for answer in answers} == {"7"}
    assert {answer.headers["x-ratelimit-limit"] for answer in answers} == {"1"}
    upstream.answer = None
    assert post(address, CHAT).headers["x-recollect-cache"] == "miss"


def test_callers_do_not_share_answers_or_flights(address, upstream):
    assert post(address, CHAT, key="alice").content != post(address, CHAT, key="bob").content
    upstream.gate.clear()
    other = {**CHAT, "seed": 1}
    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(post, address, other, key=key) for key in ("alice", "bob")]
        upstream.arrived.acquire()
        upstream.arrived.acquire()
        upstream.gate.set()
        assert len({asked.result().content for asked in asking}) == 2


def test_a_caller_without_a_name_is_not_cached(address, upstream):
    for _ in range(2):
        answer = post(address, CHAT, key=None)
        assert answer.headers["x-recollect-cache"] == "bypass"
        assert "scope" in answer.headers["x-recollect-reason"]
    assert upstream.total == 2


def test_answers_expire_at_their_time_however_often_they_are_hit(start, upstream):
    clock = ManualClock(1_000_000.0)
    address, _ = start(clock=clock, arguments={"ttl": 100.0})
    post(address, CHAT)
    for _ in range(3):
        clock.advance(33)
        assert post(address, CHAT).headers["x-recollect-cache"] == "hit"
    clock.advance(1)
    assert post(address, CHAT).headers["x-recollect-cache"] == "miss"


def test_a_client_may_ask_for_a_shorter_time(start, upstream):
    clock = ManualClock(1_000_000.0)
    address, _ = start(clock=clock)
    post(address, CHAT, **{"x-recollect-ttl": "10"})
    clock.advance(9)
    assert post(address, CHAT).headers["x-recollect-cache"] == "hit"
    clock.advance(1)
    assert post(address, CHAT).headers["x-recollect-cache"] == "miss"


def test_cache_control_is_obeyed(start, upstream):
    clock = ManualClock(1_000_000.0)
    address, _ = start(clock=clock)

    def kind(control, **more):
        return post(address, {**CHAT, **more}, **{"cache-control": control})

    assert kind("no-store").headers["x-recollect-cache"] == "miss"
    assert kind("only-if-cached").status_code == 504
    assert kind("").headers["x-recollect-cache"] == "miss"
    assert kind("only-if-cached").headers["x-recollect-cache"] == "hit"
    assert kind("no-cache").headers["x-recollect-cache"] == "miss"
    assert kind("").content == post(address, CHAT).content
    clock.advance(10)
    assert kind("max-age=10").headers["age"] == "10"
    assert kind("max-age=9").headers["x-recollect-cache"] == "miss"
    calls = upstream.total
    assert post(address, CHAT, **{"x-recollect-cache": "bypass"}).status_code == 200
    assert upstream.total == calls + 1
    assert post(address, CHAT, **{"x-recollect-ttl": "soon"}).status_code == 400


def test_what_goes_up_is_what_came_in(address, upstream):
    body = b'{ "messages":[{"content":"why?", "role":"user"}],\n "model":"m","top_p":1.0 }'
    sent = {
        "openai-organization": "org", "openai-project": "proj", "accept-encoding": "gzip, br",
        "user-agent": "mine/1", "x-custom": "kept", "x-recollect-category": "own",
    }  # fmt: skip
    post(address, body, **sent)
    assert upstream.bodies == [body]
    (got,) = upstream.headers
    for name, value in sent.items():
        assert got.get(name) == (None if name.startswith("x-recollect") else value)
    assert got["authorization"] == "Bearer alice"
    assert "accept" not in got or got["accept"] == "*/*"


def test_headers_of_the_upstream_come_down(address, upstream):
    assert post(address, CHAT).headers["x-request-id"] == "r1"


def test_compressed_answers_pass_as_they_are_and_are_stored(address, upstream):
    document = json.dumps(usual("/v1/chat/completions", CHAT, 1)).encode()
    packed = gzip.compress(document)
    upstream.answer = lambda request, asked: Response(
        packed, media_type="application/json", headers={"content-encoding": "gzip"}
    )
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=CHAT,
                      headers={"authorization": "Bearer alice"}) as answer:  # fmt: skip
        assert b"".join(answer.iter_raw()) == packed
    hit = post(address, CHAT)
    assert hit.headers["x-recollect-cache"] == "hit"
    assert hit.content == document
    assert "content-encoding" not in hit.headers


def test_models_and_all_else_pass_through(address, upstream):
    assert [model.id for model in openai_client(address).models.list()] == ["m"]
    blob = bytes(range(256)) * 1000
    found = httpx.post(f"{address}/v1/files?x=1", content=blob)
    assert found.content == blob
    assert httpx.get(f"{address}/v1/nothing").status_code == 404
