"""Puzzles that ask a model to find things again: facts planted between lines of real text.

A fact is the line `# red_fox 49213`; it is asked for by the line `assert red_fox 49213`, of which
the model gets `assert red_fox` and has to write ` 49213`. The zoo models are trained on this
wording (and on the same lines without `# `), and any language model can follow it.

Everything here is text and a `random.Random`; no tokenizer, no model.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import isqrt

from recollect.zoo import corpus

DIGITS = (3, 4, 5, 6)


@dataclass(frozen=True)
class Ask:
    """A question as the start of a line, and the rest of that line without its newline."""

    question: str
    answer: str


@dataclass(frozen=True)
class Puzzle:
    """Lines to plant in a text, in this order, and what is asked about them afterwards."""

    planted: tuple[str, ...]
    asks: tuple[Ask, ...]


def single(
    rng: random.Random,
    keys: int = 8,
    part: corpus.Part = "held-out",
    mark: str = "# ",
    alike: bool = False,
) -> Puzzle:
    """`keys` different keys with one value each. One ask per key, in random order.

    With `alike`, every key shares its words with other keys, so that only both together tell.
    """
    names = (alike_keys if alike else distinct_keys)(rng, keys, part)
    values = [value(rng) for _ in names]
    planted = tuple(fact(name, (v,), mark) for name, v in zip(names, values, strict=True))
    asks = [ask(name, (v,)) for name, v in zip(names, values, strict=True)]
    rng.shuffle(asks)
    return Puzzle(planted, tuple(asks))


def multi_value(
    rng: random.Random,
    keys: int = 4,
    values: int = 2,
    part: corpus.Part = "held-out",
    mark: str = "# ",
) -> Puzzle:
    """`keys` different keys with `values` values each, all on the key's line and all asked."""
    names = distinct_keys(rng, keys, part)
    known = [(name, tuple(value(rng) for _ in range(values))) for name in names]
    planted = tuple(fact(name, several, mark) for name, several in known)
    asks = [ask(name, several) for name, several in known]
    rng.shuffle(asks)
    return Puzzle(planted, tuple(asks))


def variables(
    rng: random.Random,
    chains: int = 3,
    hops: int = 1,
    part: corpus.Part = "held-out",
    mark: str = "# ",
) -> Puzzle:
    """Chains of names: the first has a value, each later one names the one before it.

    `# red_fox 493`, later `# old_oak red_fox`; asked with the way: `assert old_oak red_fox 493`.
    """
    planted: list[str] = []
    asks = []
    for _ in range(chains):
        names, number = distinct_keys(rng, hops + 1, part), value(rng)
        planted.append(fact(names[0], (number,), mark))
        planted += [fact(later, (before,), mark) for before, later in pairwise(names)]
        asks.append(ask(names[-1], (*reversed(names[:-1]), number)))
    rng.shuffle(asks)
    return Puzzle(tuple(planted), tuple(asks))


def fact(key: str, values: Sequence[str], mark: str = "# ") -> str:
    """The line that states what a key is, with its newline."""
    return f"{mark}{key} {' '.join(values)}\n"


def ask(key: str, values: Sequence[str]) -> Ask:
    """The question for a key and its right answer."""
    return Ask(f"assert {key}", f" {' '.join(values)}")


def value(rng: random.Random) -> str:
    """A number of three to six digits."""
    return "".join(rng.choices("0123456789", k=rng.choice(DIGITS)))


def distinct_keys(rng: random.Random, count: int, part: corpus.Part) -> list[str]:
    """`count` keys, two words joined by an underscore, no two with the same last word."""
    last: dict[str, None] = {}
    while len(last) < count:
        last[_word(rng, part)] = None
    return [f"{_word(rng, part)}_{word}" for word in last]


def alike_keys(rng: random.Random, count: int, part: corpus.Part) -> list[str]:
    """`count` different keys made of about twice the square root of `count` words."""
    side = isqrt(count - 1) + 1
    first, last = ([_word(rng, part) for _ in range(side)] for _ in range(2))
    pairs = sorted({f"{a}_{b}" for a in first for b in last})
    while len(pairs) < count:  # a word was drawn twice
        pairs = sorted({*pairs, f"{_word(rng, part)}_{rng.choice(last)}"})
    return rng.sample(pairs, count)


def bury(planted: Sequence[str], lines: Sequence[str], rng: random.Random) -> str:
    """The lines as one text, the planted ones at random places between them, in their order."""
    return "".join(interleave(planted, lines, rng))


def interleave(planted: Sequence[str], lines: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Yield all lines, the planted ones at random places, both in their order."""
    places = Counter(rng.randrange(len(lines) + 1) for _ in planted)
    waiting = iter(planted)
    for index in range(len(lines) + 1):
        for _ in range(places[index]):
            yield next(waiting)
        if index < len(lines):
            yield lines[index]


@cache
def words(part: corpus.Part) -> tuple[str, ...]:
    """Words of the standard library's source that keys of one part are made of, frequent first."""
    counts: Counter[str] = Counter()
    for text in corpus.documents("train"):
        counts.update(re.findall(r"(?<![a-zA-Z])[a-z]{3,9}(?![a-zA-Z])", text))
    ranked = [word for word, _ in counts.most_common(4000)]
    held_out = part == "held-out"
    return tuple(word for word in ranked if corpus.is_held_out(f"key word {word}") == held_out)


def _word(rng: random.Random, part: corpus.Part) -> str:
    pool = words(part)
    # Half of the words are common ones, which are single tokens in small vocabularies.
    return rng.choice(pool[: len(pool) // 8] if rng.random() < 0.5 else pool)
