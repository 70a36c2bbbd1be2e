"""Random requests and random changes to them, and what of them an answer may depend on."""

from __future__ import annotations

import copy
import random
import string

from recollect.answers.identity import DROPPED

TEXTS = [
    "",
    "hi",
    "Hi",
    "hi ",
    "é",
    "e\u0301",
    "1",
    "null",
    "\u2028",
    "a,b",
    'a"b',
    "<query>",
    "\x00",
]
LEAVES = [None, True, False, 0, 1, -1, 2, 0.0, 1.0, 0.5, 1e300, *TEXTS, [], {}, [[]], {"": ""}]
NAMES = [
    "temperature", "top_p", "seed", "n", "stop", "max_tokens", "tools", "tool_choice", "logprobs",
    "response_format", "logit_bias", "reasoning_effort", "frequency_penalty", "modalities",
    "system", "instructions", "suffix", "dimensions", "encoding_format", "thinking", "stream",
    "user", "metadata", "store", "service_tier", "stream_options", "request_id", "new_field",
    "prompt_cache_key", "safety_identifier", "model",
]  # fmt: skip


def random_request(rng: random.Random, protocol: str) -> dict:
    """A request of a protocol with a few of everything."""
    turns = [
        {"role": rng.choice(["system", "user", "assistant", "tool"]), "content": _content(rng)}
        for _ in range(rng.randint(1, 3))
    ]
    body = {
        "chat": {"messages": turns},
        "messages": {"messages": turns, "max_tokens": 5},
        "responses": {"input": rng.choice([turns, "hello"]), "store": False},
        "completions": {"prompt": rng.choice(["hello", ["a", "b"], [1, 2]])},
        "embeddings": {"input": rng.choice(["hello", ["a", "b"], [1, 2], [[1], [2]]])},
    }[protocol]
    extra = {name: rng.choice(LEAVES) for name in rng.sample(NAMES, rng.randint(0, 4))}
    return {**copy.deepcopy(extra), "model": rng.choice(["m", "n"]), **body}


def mutate(rng: random.Random, request: dict) -> dict:
    """A copy with one change somewhere, which may turn out to be none."""
    changed = copy.deepcopy(request)
    if rng.random() < 0.3:
        changed[rng.choice(NAMES)] = copy.deepcopy(rng.choice(LEAVES))
        return changed
    place = rng.choice(list(_containers(changed)))
    if isinstance(place, dict):
        _change_object(rng, place)
    else:
        _change_list(rng, place)
    return changed


def tagged(value):
    """A hashable value, equal for equal JSON: types count, the order of keys does not."""
    if isinstance(value, dict):
        return "object", frozenset((key, tagged(item)) for key, item in value.items())
    if isinstance(value, list):
        return "array", tuple(tagged(item) for item in value)
    return type(value).__name__, value


def what_counts(request: dict, protocol: str):
    """The part of a request that an answer may depend on, as the documentation lists it."""
    kept = {name: value for name, value in request.items() if name not in DROPPED[protocol]}
    stream = request.get("stream")
    if stream is None or isinstance(stream, bool):
        kept["stream"] = stream is True
    if protocol == "messages":
        metadata = request.get("metadata")
        kept["user of"] = metadata.get("user_id") if isinstance(metadata, dict) else None
    else:
        kept["user of"] = [request.get("user"), request.get("safety_identifier")]
    given = kept.get("input")
    one_item = isinstance(given, list) and len(given) == 1 and not isinstance(given[0], int)
    if protocol == "embeddings" and one_item:
        kept["input"] = given[0]
    return protocol, tagged(kept)


def _content(rng: random.Random):
    parts = [{"type": "text", "text": rng.choice(TEXTS)}, {"type": "image_url", "url": "x"}]
    return rng.choice([rng.choice(TEXTS), parts[:1], parts])


def _containers(value):
    yield value
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, dict | list):
            yield from _containers(item)


def _change_object(rng: random.Random, place: dict) -> None:
    kind = rng.randrange(4)
    if kind == 0 or not place:
        place[rng.choice([*NAMES, *string.ascii_lowercase])] = copy.deepcopy(rng.choice(LEAVES))
    elif kind == 1:
        del place[rng.choice(list(place))]
    elif kind == 2:
        place[rng.choice(list(place))] = copy.deepcopy(rng.choice(LEAVES))
    else:  # the same fields in another order: no change at all
        items = list(place.items())
        rng.shuffle(items)
        place.clear()
        place.update(items)


def _change_list(rng: random.Random, place: list) -> None:
    kind = rng.randrange(3)
    if kind == 0 or not place:
        place.insert(rng.randint(0, len(place)), copy.deepcopy(rng.choice(LEAVES)))
    elif kind == 1:
        del place[rng.randrange(len(place))]
    else:
        place.reverse()
