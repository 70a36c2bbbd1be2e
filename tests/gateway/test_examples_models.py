"""A small model answers with a large one's past answers what it cannot answer alone."""

from __future__ import annotations

import pytest
from engines import FACTS, KNOWLEDGE, engine
from servers import gateway_before, serving, settle
from test_front import openai_client

from recollect.gateway.incontext import ExamplesConfig, Served

TOLD, ASKED = "note # ", "check: # "  # the same question in other words


@pytest.fixture(scope="module")
def engines():
    """Addresses of the small model and of the large one."""
    with serving(engine("small")) as small, serving(engine("large", KNOWLEDGE)) as large:
        yield {"small": small, "large": large}


def examples(small="small"):
    return ExamplesConfig(
        models=(Served(small, 1), Served("large", 8, strong=True)),
        encoder="ngram",
        replay_seconds=0,
        arguments={"cost_price": 10.0, "explore": False, "most": 1},
    )


def ask(address, model, name, wording):
    """The answer of a model to a question about a name, and the headers that came with it."""
    messages = [{"role": "user", "content": wording + name}]
    client = openai_client(address).with_options(timeout=120)  # models are slow on a busy machine
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=messages, max_tokens=16, temperature=0.0
    )
    settle()
    return raw.parse().choices[0].message.content, raw.headers


def right_answers(address, model, wording):
    return sum(FACTS[name] in ask(address, model, name, wording)[0] for name in FACTS)


def test_a_small_model_answers_with_past_answers_of_a_large_one(engines):
    settings = {
        "models": engines,
        "keep": frozenset({"stop", "length"}),
        "judge": lambda query, text: float(FACTS[query.split()[-1]] in text),
    }
    with gateway_before(engines["large"], examples=examples(), **settings) as (address, parts):
        assert right_answers(address, "small", ASKED) == 0
        assert right_answers(address, "large", TOLD) == len(FACTS)
        for name, number in FACTS.items():
            text, headers = ask(address, "auto", name, ASKED)
            assert number in text
            assert headers["x-recollect-model"] == "small"
            assert headers["x-recollect-examples"] == "1"
        [row] = parts.board.as_dict()["routed"]
        assert (row["requests"], row["rated"], row["quality"]) == (3, 3, 3.0)
