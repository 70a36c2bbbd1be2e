"""LangChain and LiteLLM cache through their own packages: their calls, our answers."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

import numpy as np
import pytest

from recollect.answers import Answers
from recollect.answers.decision import Decision, Verdict

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # nothing is fetched


class Letters:
    """An encoder of letter counts: texts of the same letters are the same."""

    encoder_id, dim = "letters", 26

    def encode(self, texts):
        rows = np.array([[t.lower().count(chr(97 + i)) for i in range(26)] for t in texts], float)
        return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)).astype("f4")


@dataclass(frozen=True)
class Nearest:
    def decide(self, candidates, context):
        if not candidates or candidates[0].similarity < 0.99:
            return Decision(Verdict.MISS, None, "nothing near")
        return Decision(Verdict.HIT, candidates[0].entry_id, "near")


# LangChain ----------------------------------------------------------------------------------


def chat_model(cache, **fields):
    pytest.importorskip("langchain_core")
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage
    from langchain_core.outputs import ChatGeneration, ChatResult

    class Model(BaseChatModel):
        calls: list = []  # noqa: RUF012  (pydantic copies it)
        answer: str = "an answer"
        tool_calls: list = []  # noqa: RUF012
        temperature: float = 0.0

        @property
        def _llm_type(self):
            return "test"

        @property
        def _identifying_params(self):
            return {"temperature": self.temperature}

        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            self.calls.append(messages)
            message = AIMessage(
                f"{self.answer} {len(self.calls)}",
                tool_calls=self.tool_calls,
                usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
                response_metadata={"lc": 1, "type": "secret", "id": ["PATH"]},
            )
            return ChatResult(generations=[ChatGeneration(message=message)])

    return Model(cache=cache, **fields)


@pytest.fixture
def langchain():
    pytest.importorskip("langchain_core")
    from recollect.answers.integrations.langchain import LangChainCache

    return LangChainCache


def test_langchain_calls_are_cached(langchain):
    answers = Answers()
    model = chat_model(langchain(answers, "alice"))
    first, second = model.invoke("hi"), model.invoke("hi")
    assert len(model.calls) == 1
    assert second.content == first.content == "an answer 1"
    assert second.response_metadata["id"] == ["PATH"]
    assert (answers.stats()["hits_exact"], answers.stats()["entries"]) == (1, 1)
    assert model.invoke([("system", "Be rude."), ("human", "hi")]).content == "an answer 2"


def test_langchain_s_async_calls_share_the_same_answers(langchain):
    model = chat_model(langchain(Answers(), "alice"))
    first = asyncio.run(model.ainvoke("hi"))
    assert asyncio.run(model.ainvoke("hi")).content == model.invoke("hi").content == first.content
    assert len(model.calls) == 1


def test_langchain_configurations_and_users_do_not_mix(langchain):
    answers = Answers()
    one = chat_model(langchain(answers, "alice"))
    one.invoke("hi")
    other = chat_model(langchain(answers, "alice"), temperature=0.5)
    other.invoke("hi")
    bob = chat_model(langchain(answers, "bob"))
    bob.invoke("hi")
    one.invoke("hi", stop=["x"])
    assert [len(model.calls) for model in (one, other, bob)] == [2, 1, 1]


def test_langchain_answers_similar_prompts(langchain):
    answers = Answers(encoder=Letters(), decision=Nearest())
    model = chat_model(langchain(answers, "alice"))
    assert model.invoke("a red sea").content == "an answer 1"
    assert model.invoke("a sea red").content == "an answer 1"
    assert model.invoke([("system", "Rhyme."), ("human", "a sea red")]).content == "an answer 2"
    assert chat_model(langchain(answers, "bob")).invoke("a sea red").content == "an answer 1"
    assert answers.stats()["hits_semantic"] == 1


def test_langchain_tool_calls_come_back_whole_and_only_exactly(langchain):
    answers = Answers(encoder=Letters(), decision=Nearest())
    calls = [{"name": "f", "args": {"x": 1}, "id": "c1", "type": "tool_call"}]
    model = chat_model(langchain(answers, "alice"), tool_calls=calls)
    assert model.invoke("a red sea").tool_calls == calls
    assert model.invoke("a red sea").tool_calls == calls
    assert len(model.calls) == 1
    model.invoke("a sea red")
    assert len(model.calls) == 2


def test_langchain_text_models_are_cached(langchain):
    from langchain_core.language_models import FakeListLLM

    model = FakeListLLM(responses=["one", "two"], cache=langchain(Answers(), "alice"))
    assert [model.invoke("hi"), model.invoke("hi"), model.invoke("ho")] == ["one", "one", "two"]


def test_langchain_clear_removes_one_user_s_answers(langchain):
    answers = Answers()
    alice, bob = langchain(answers, "alice"), langchain(answers, "bob")
    for cache in (alice, bob):
        chat_model(cache).invoke("hi")
    alice.clear()
    assert answers.stats()["entries"] == 1
    asyncio.run(bob.aclear())
    assert answers.stats()["entries"] == 0


# LiteLLM ------------------------------------------------------------------------------------


@pytest.fixture
def litellm_cache():
    litellm = pytest.importorskip("litellm")
    from recollect.answers.integrations.litellm import install

    flag = litellm.enable_caching_on_provider_specific_optional_params
    yield install
    litellm.cache = None
    litellm.enable_caching_on_provider_specific_optional_params = flag


def complete(text, answer, **arguments):
    import litellm

    messages = [{"role": "user", "content": text}]
    done = litellm.completion("openai/m", messages, mock_response=answer, **arguments)
    return done.choices[0].message.content


async def acomplete(answers, text, answer, **arguments):
    """LiteLLM stores in a task of its own: wait until something is stored."""
    import litellm

    messages = [{"role": "user", "content": text}]
    done = await litellm.acompletion("openai/m", messages, mock_response=answer, **arguments)
    for _ in range(1000):
        if answers.stats()["stored"]:
            break
        await asyncio.sleep(0.01)
    return done.choices[0].message.content


def test_litellm_calls_are_cached(litellm_cache):
    answers = Answers()
    litellm_cache(answers, "alice")
    assert complete("hi", "one", caching=True) == "one"
    assert complete("hi", "two", caching=True) == "one"
    assert complete("ho", "two", caching=True) == "two"
    assert complete("hi", "three", caching=True, temperature=0.5) == "three"
    assert complete("hi", "four", caching=True, extra_body={"guided_json": "{}"}) == "four"
    assert answers.stats()["hits_exact"] == 1


def test_litellm_s_async_calls_are_cached(litellm_cache):
    answers = Answers()
    litellm_cache(answers, "alice")

    async def run():
        first = await acomplete(answers, "hi", "one", caching=True)
        return first, await acomplete(answers, "hi", "two", caching=True)

    assert asyncio.run(run()) == ("one", "one")
    assert complete("hi", "three", caching=True) == "one"


def test_litellm_owners_do_not_mix(litellm_cache):
    litellm_cache(Answers())
    for owner, answer in [({"user_api_key": "k1"}, "one"), ({"user_api_key": "k2"}, "two")]:
        assert complete("hi", answer, caching=True, metadata=owner) == answer
        assert complete("hi", "other", caching=True, metadata=owner) == answer
    team = {"user_api_key": "k1", "user_api_key_team_id": "t"}
    assert complete("hi", "three", caching=True, metadata=team) == "three"
    assert complete("hi", "four", caching=True) == "four"  # nobody's: not cached at all
    assert complete("hi", "five", caching=True) == "five"


def test_litellm_s_times_are_kept(litellm_cache, clock):
    answers = Answers(clock=clock)
    cache = litellm_cache(answers, "alice")
    complete("hi", "one", caching=True, cache={"ttl": 10})
    complete("ho", "two", caching=True)
    clock.advance(10)
    assert complete("hi", "three", caching=True) == "three"
    assert complete("ho", "four", caching=True) == "two"
    assert asyncio.run(cache.ping())


def test_litellm_s_pipelines_store_every_item(litellm_cache):
    cache = litellm_cache(Answers(), "alice")

    async def run():
        pairs = [("k1", {"response": {"embedding": [1]}}), ("k2", {"response": "x"})]
        await cache.async_set_cache_pipeline(pairs, input=["a", "b"])
        return [await cache.async_get_cache(key) for key in ("k1", "k2", "k3")]

    found = asyncio.run(run())
    assert found == [{"response": {"embedding": [1]}}, {"response": "x"}, None]
