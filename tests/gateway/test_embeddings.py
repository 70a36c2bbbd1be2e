"""Embeddings are cached by item: only what is missing goes up, and comes back in its place."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import settle, wait_until
from starlette.responses import JSONResponse
from test_front import openai_client, post

from recollect.errors import GatewayError
from recollect.gateway import documents
from recollect.gateway.protocols.embeddings import join_documents, share_out, split_document

PATH = "/v1/embeddings"


def embed(address, *texts, **more):
    answer = post(address, {"model": "e", "input": list(texts), **more}, PATH)
    assert answer.status_code == 200
    return answer


def vectors(answer):
    data = answer.json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    return [item["embedding"] for item in data]


def test_only_what_is_missing_goes_up_and_order_is_kept(address, upstream):
    first = vectors(embed(address, "a", "bb"))
    answer = embed(address, "ccc", "bb", "dddd", "a", "bb")
    assert json.loads(upstream.bodies[1])["input"] == ["ccc", "dddd"]
    second = vectors(answer)
    assert [second[3], second[1], second[4]] == [first[0], first[1], first[1]]
    assert [v[0] for v in second] == [2, 1, 2, 1, 1]
    assert [v[3] for v in second] == [3, 2, 4, 1, 2]
    assert answer.json()["usage"] == {"prompt_tokens": 11, "total_tokens": 11}
    assert answer.headers["x-recollect-items"] == "stored=3, fetched=2"
    again = embed(address, "ccc", "bb", "dddd", "a", "bb")
    assert again.headers["x-recollect-cache"] == "hit"
    assert again.content == answer.content
    assert upstream.total == 2


def test_one_item_is_replayed_byte_for_byte(address, upstream):
    answers = [post(address, {"model": "e", "input": "a"}, PATH) for _ in range(2)]
    assert answers[0].content == answers[1].content
    assert b"1e-07" in answers[1].content, "a number was spelt anew"
    assert upstream.total == 1


def test_model_dimensions_and_format_keep_items_apart(address, upstream):
    embed(address, "a")
    for more in ({"model": "other"}, {"dimensions": 4}, {"encoding_format": "base64"}):
        assert embed(address, "a", **more).headers["x-recollect-cache"] == "miss"
    assert upstream.total == 4


def test_token_ids_are_one_item(address, upstream):
    ask = {"model": "e", "input": [1, 2, 3]}
    assert len(vectors(post(address, ask, PATH))) == 1
    assert post(address, ask, PATH).headers["x-recollect-cache"] == "hit"
    lists = vectors(post(address, {**ask, "input": [[1, 2, 3], [4]]}, PATH))
    assert lists[0][0] == 1
    assert json.loads(upstream.bodies[1])["input"] == [[4]]


def test_the_openai_client_reads_merged_embeddings(address, upstream):
    client = openai_client(address)
    client.embeddings.create(model="e", input=["a"], encoding_format="float")
    settle()
    found = client.embeddings.create(model="e", input=["b", "a"], encoding_format="float")
    assert [item.embedding[0] for item in found.data] == [2.0, 1.0]
    assert found.usage.prompt_tokens == 4


def test_identical_items_at_once_are_one_call(start, upstream):
    address, gateway = start()
    upstream.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(post, address, {"model": "e", "input": ["a", str(i)]}, PATH)
                  for i in range(8)]  # fmt: skip
        wait_until(lambda: len(gateway.calls) == 8)
        upstream.gate.set()
        answers = [asked.result() for asked in asking]
    wanted = [text for body in upstream.bodies for text in json.loads(body)["input"]]
    assert sorted(wanted) == sorted(["a", *map(str, range(8))])
    assert len({json.dumps(vectors(answer)[0]) for answer in answers}) == 1


def test_a_failure_reaches_all_who_wait_for_an_item_and_is_not_kept(address, upstream):
    embed(address, "a")
    error = {"error": {"message": "busy", "type": "x", "code": None, "param": None}}
    upstream.answer = lambda request, asked: JSONResponse(error, 503, {"retry-after": "3"})
    failed = post(address, {"model": "e", "input": ["a", "b"]}, PATH)
    assert (failed.status_code, failed.json(), failed.headers["retry-after"]) == (503, error, "3")
    upstream.answer = None
    assert vectors(embed(address, "a", "b"))[1][0] == 3


def test_vectors_that_do_not_fit_the_question_are_an_error_not_a_shift(address, upstream):
    embed(address, "a")
    short = {"object": "list", "model": "e", "data": [
        {"object": "embedding", "index": 0, "embedding": [1]}]}  # fmt: skip
    upstream.answer = lambda request, asked: JSONResponse(short)
    assert post(address, {"model": "e", "input": ["a", "b", "c"]}, PATH).status_code == 502
    upstream.answer = None
    assert vectors(embed(address, "b"))[0][0] == 3


NUMBERS = ["0.10", "1e-07", "-0", "1E+2", "12345678901234567890", "0.1000000000000000055"]


@given(st.permutations(range(len(NUMBERS))))
def test_splitting_and_joining_keep_every_digit(order):
    items = [f'{{"embedding": [{NUMBERS[i]}], "index": {i}, "object":"embedding"}}' for i in order]
    body = f'{{"data" : [ {" , ".join(items)} ],\n"model":"e","usage":{{"prompt_tokens":11}}}}'
    parts = split_document(body.encode(), [1] * len(NUMBERS))
    joined = documents.members(join_documents(parts).decode())
    found = [documents.members(item)["embedding"] for item in documents.elements(joined["data"])]
    assert found == [f"[{number}]" for number in NUMBERS]
    assert json.loads(joined["usage"])["prompt_tokens"] == 11


@pytest.mark.parametrize(
    "data", ["[]", "7", "null", '[{"index":0}]', '[{"index":1,"embedding":[]}]']
)
def test_documents_without_the_vectors_are_refused(data):
    with pytest.raises(GatewayError):
        split_document(f'{{"data":{data}}}'.encode(), [1])


@given(st.integers(0, 10**6), st.lists(st.integers(0, 10**4), min_size=1, max_size=20))
def test_shares_sum_to_the_whole(total, sizes):
    shares = share_out(total, sizes)
    assert sum(shares) == total
    assert len(shares) == len(sizes)
    assert all(share >= 0 for share in shares)
