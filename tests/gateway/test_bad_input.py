"""Whatever comes in or comes back, the client gets a clear error, and nothing wrong is stored."""

from __future__ import annotations

import asyncio
import json
import socket

import anthropic
import httpx
import openai
import pytest
from servers import PROTOCOLS, usual, wait_until
from starlette.responses import JSONResponse, Response, StreamingResponse
from streams import chunk, delta, sse
from test_front import ASK, CHAT, anthropic_client, openai_client, post

STREAM = {**CHAT, "stream": True}
PATHS = [*PROTOCOLS, "/v1/embeddings"]


def message_of(answer, path):
    error = answer.json()["error"]
    assert error["type"]
    if path == "/v1/messages":
        assert answer.json()["type"] == "error"
    else:
        assert set(error) == {"message", "type", "param", "code"}
    return error["message"]


UNREADABLE = [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b"[]", "must be a JSON object"),
    (b'"text"', "must be a JSON object"),
    (b'{"model": "\xff"}', "not UTF-8"),
    (b'{"model": "m", "model": "n"}', "twice"),
    (b'{"model": "m", "temperature": NaN}', "NaN"),
    (b'{"model": "\\ud800"}', "lone surrogate"),
    (b'{"messages": []}', "'model' must be"),
    (b'{"model": 7}', "'model' must be"),
    (b'{"model": ""}', "'model' must be"),
    (b'{"model": "m", "stream": "yes"}', "'stream' must be"),
    (b'{"model": "m", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
]


def test_requests_that_cannot_be_read_are_refused_and_never_go_up(address, upstream):
    for path in PATHS:
        for body, words in UNREADABLE:
            answer = post(address, body, path)
            assert answer.status_code == 400
            assert words in message_of(answer, path)
    assert upstream.total == 0


def test_large_requests_are_refused(start, upstream):
    address, _ = start(max_body=1000)

    def pieces():
        yield from (b"x" * 100 for _ in range(20))

    for path in PATHS:
        answer = post(address, {**CHAT, "padding": "x" * 1000}, path)
        assert answer.status_code == 413
        assert "larger than 1000 bytes" in message_of(answer, path)
        assert httpx.post(address + path, content=pieces()).status_code == 413
    assert upstream.total == 0


def test_errors_are_the_clients_own_exceptions(start, upstream):
    address, _ = start(max_body=1000)
    with pytest.raises(openai.APIStatusError, match="larger than"):
        openai_client(address).chat.completions.create(model="m" * 1000, messages=ASK)
    with pytest.raises(anthropic.APIStatusError, match="larger than"):
        anthropic_client(address).messages.create(model="m" * 1000, max_tokens=1, messages=ASK)


def test_an_unknown_model_is_for_the_upstream_to_say(address, upstream):
    error = {"error": {"message": "no such model", "type": "x", "param": None, "code": "404"}}
    upstream.answer = lambda request, asked: JSONResponse(error, 404)
    for _ in range(2):
        with pytest.raises(openai.NotFoundError, match="no such model"):
            openai_client(address).chat.completions.create(model="m", messages=ASK)
    assert upstream.total == 2


@pytest.mark.parametrize("status", [200, 400, 503])
def test_errors_and_nonsense_of_the_upstream_pass_and_are_never_stored(address, upstream, status):
    bodies = [b'{"error": {"message": "boom"}}', b"<html>", b"", b"\xff", b"[]", b'{"data": [7]}']
    for number, body in enumerate(bodies):
        upstream.answer = lambda request, asked, body=body: Response(body, status, {"x-from": "up"})
        for path in PATHS:
            before = upstream.total
            for _ in range(2):
                ask = {**CHAT, "input": "x", "store": False, "seed": number}
                answer = post(address, ask, path)
                assert (answer.status_code, answer.content) == (status, body)
                assert answer.headers["x-from"] == "up"
            assert upstream.total == before + 2


def test_an_upstream_that_is_not_there_is_a_502():
    from servers import gateway_before

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with gateway_before(nobody) as (address, _):
            for path in PATHS:
                answer = post(address, {**CHAT, "input": "x"}, path)
                assert answer.status_code == 502
                assert "cannot be reached" in message_of(answer, path)
            with pytest.raises(openai.InternalServerError, match="cannot be reached"):
                openai_client(address).chat.completions.create(model="m", messages=ASK)
            assert httpx.get(f"{address}/v1/models").status_code == 502


@pytest.mark.parametrize("ask", [CHAT, STREAM])
def test_an_upstream_that_stays_silent_is_a_504(start, upstream, ask):
    async def sleep(request, asked):
        await asyncio.sleep(1.5)
        return usual("/v1/chat/completions", asked, 1)

    upstream.answer = sleep
    address, _ = start(read_seconds=0.2)
    answer = post(address, ask)
    assert answer.status_code == 504
    assert "in time" in message_of(answer, "/v1/chat/completions")


def broken_stream(*pieces, silent=False):
    async def body():
        for piece in pieces:
            yield piece
            await asyncio.sleep(0.01)
        if silent:
            await asyncio.sleep(5)
        raise ConnectionResetError("the upstream dies here")

    return StreamingResponse(body(), media_type="text/event-stream")


HALF = sse(chunk(delta(0, role="assistant", content="Hel")), done=False)


@pytest.mark.parametrize("silent", [False, True])
def test_a_stream_that_breaks_ends_in_an_error_and_is_not_stored(start, upstream, silent):
    address, _ = start(read_seconds=0.3)
    upstream.answer = lambda request, asked: broken_stream(HALF, b'data: {"id', silent=silent)
    for _ in range(2):
        answer = post(address, STREAM)
        assert answer.headers["x-recollect-cache"] == "miss"
        assert answer.content.startswith(HALF)
        assert b'{"id"}' not in answer.content, "half an event was passed on"
        last = answer.content.removeprefix(HALF)
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"]
        assert b"[DONE]" not in answer.content
    with pytest.raises(openai.APIError, match=r"broke|in time"):
        list(openai_client(address).chat.completions.create(**STREAM))
    assert upstream.total == 3


def test_a_messages_stream_that_breaks_ends_in_an_error(address, upstream):
    first = next(iter(PROTOCOLS["/v1/messages"].replay(usual("/v1/messages", CHAT, 1), STREAM)))
    upstream.answer = lambda request, asked: broken_stream(first)
    with pytest.raises(anthropic.APIError, match="broke"):
        list(anthropic_client(address).messages.create(**STREAM, max_tokens=9))


FIT_TO_PASS_ONLY = [
    HALF,  # ends without finish_reason and [DONE]
    sse(chunk(delta(0, "stop", content="x")), done=False),
    sse(chunk(delta(0, "length", content="x"))),
    sse(chunk(delta(0, "content_filter", content="x"))),
    sse(chunk(delta(0, "stop", refusal="no"))),
    sse(chunk(delta(0, content="x")), {"error": {"message": "boom"}}),
    sse(chunk(delta(0, "stop", content="x", thought="?"))),
    b"data: \xff\xfe\n\n" + HALF,
    b"data: {half\n\ndata: [DONE]\n\n",
    b"no events at all",
    b"",
]


def test_streams_that_must_not_be_kept_pass_unchanged(address, upstream):
    for number, stream in enumerate(FIT_TO_PASS_ONLY):

        async def body(stream=stream):
            for start in range(0, len(stream), 7):
                yield stream[start : start + 7]

        upstream.answer = lambda request, asked, body=body: StreamingResponse(
            body(), media_type="text/event-stream"
        )
        for _ in range(2):
            answer = post(address, {**STREAM, "seed": number})
            assert answer.content == stream
            assert answer.headers["x-recollect-cache"] == "miss"
    assert upstream.total == 2 * len(FIT_TO_PASS_ONLY)


@pytest.mark.parametrize("finish", ["length", "content_filter", "tool_calls"])
def test_answers_that_ended_otherwise_are_kept_where_the_policy_says_so(start, upstream, finish):
    def answer(request, asked):
        document = usual("/v1/chat/completions", asked, upstream.total)
        document["choices"][0]["finish_reason"] = finish
        return document

    upstream.answer = answer
    strict, _ = start()
    lenient, _ = start(keep=frozenset({"stop", finish}))
    kinds = [
        [post(a, CHAT).headers["x-recollect-cache"] for _ in range(2)] for a in (strict, lenient)
    ]
    assert kinds == [["miss", "miss"], ["miss", "hit"]]


def test_one_who_leaves_takes_nobody_along_and_the_last_ends_the_call(start, upstream):
    address, gateway = start()
    upstream.gate.clear()
    headers = {"authorization": "Bearer alice"}
    url = f"{address}/v1/chat/completions"
    with (
        httpx.Client(timeout=30) as leader,
        httpx.Client(timeout=30) as follower,
        leader.stream("POST", url, json=STREAM, headers=headers) as first,
    ):
        pieces = first.iter_bytes()
        next(pieces)
        with follower.stream("POST", url, json=STREAM, headers=headers) as second:
            assert second.headers["x-recollect-cache"] == "shared"
            pieces.close()
            first.close()
            wait_until(lambda: gateway.flights.travellers == 1)
            upstream.gate.set()
            body = second.read()
    assert b"answer 1" in body
    assert body.endswith(b"data: [DONE]\n\n")
    assert post(address, STREAM).headers["x-recollect-cache"] == "hit"
    assert upstream.total == 1

    upstream.gate.clear()
    with httpx.stream("POST", url, json={**STREAM, "seed": 1}, headers=headers) as alone:
        next(alone.iter_bytes())
    wait_until(lambda: len(gateway.flights) == 0)
    wait_until(lambda: upstream.cancelled == 1)
    upstream.gate.set()
    assert post(address, {**STREAM, "seed": 1}).headers["x-recollect-cache"] == "miss"


def test_a_document_nobody_waits_for_is_given_up(start, upstream):
    address, gateway = start()
    upstream.gate.clear()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{address}/v1/chat/completions", json=CHAT, timeout=0.3,
                   headers={"authorization": "Bearer alice"})  # fmt: skip
    wait_until(lambda: len(gateway.flights) == 0)
    upstream.gate.set()
    assert post(address, CHAT).headers["x-recollect-cache"] == "miss"
    assert upstream.total == 2
