"""A small model that completes patterns from its prompt, and a world of requests that need two.

Every request asks what two rules make of a number. The model knows none: it gets a part right when
its prompt tells that rule, and otherwise makes a guess that depends on the request alone. Past
requests that read nearly the same are worth little, since most of their answers name no rule; a
rule is told by answers to short questions that read differently.
"""

from __future__ import annotations

import itertools
import re
import zlib

import numpy as np

RULES = (
    "kestrel",
    "heron",
    "plover",
    "dunlin",
    "avocet",
    "curlew",
    "godwit",
    "whimbrel",
    "lapwing",
)
TOLD = re.compile(r"rule (\w+) adds (\d+)")
ASKED = re.compile(r"apply rule (\w+) and rule (\w+) to (\d+)")


def adds(rule: str) -> int:
    return 3 + RULES.index(rule)


def request(text: str) -> dict:
    return {"model": "small", "messages": [{"role": "user", "content": text}]}


def small_model(prompt: str) -> list[int]:
    """Both parts of the last question of the prompt, with the rules that the prompt tells."""
    *rules, start = ASKED.findall(prompt)[-1]
    told = {rule: int(number) for rule, number in TOLD.findall(prompt)}
    guess = {rule: zlib.crc32(f"{rule} {start}".encode()) % 20 for rule in rules}
    return [int(start) + told.get(rule, guess[rule]) for rule in rules]


def quality(prompt: str) -> float:
    """Share of the parts that are right."""
    *rules, start = ASKED.findall(prompt)[-1]
    right = [int(start) + adds(rule) for rule in rules]
    return sum(a == b for a, b in zip(small_model(prompt), right, strict=True)) / 2


def pool(seed: int) -> list[tuple[str, str]]:
    """Past queries with answers, shuffled: nine that tell a rule and forty look-alikes.

    Of the look-alikes every fourth happens to tell a rule, too.
    """
    rng = np.random.default_rng(seed)
    telling = [
        (f"what does rule {rule} do", f"rule {rule} adds {adds(rule)} to a number")
        for rule in RULES
    ]
    pairs = list(itertools.permutations(RULES, 2))
    alike = []
    for number, at in enumerate(rng.choice(len(pairs), 40, replace=False)):
        a, b = pairs[at]
        told = f"rule {a} adds {adds(a)}, so" if number % 4 == 0 else "the result was"
        alike.append((f"apply rule {a} and rule {b} to {rng.integers(90)}", f"{told} {number}"))
    together = telling + alike
    return [together[at] for at in rng.permutation(len(together))]


def asked(seed: int, count: int) -> list[str]:
    """Requests for two different rules each."""
    rng = np.random.default_rng([seed, 1])
    chosen = [rng.choice(len(RULES), 2, replace=False) for _ in range(count)]
    return [f"apply rule {RULES[a]} and rule {RULES[b]} to {rng.integers(90)}" for a, b in chosen]
