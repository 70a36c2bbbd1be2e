"""The facts that needle tasks hide and ask for: `red_fox 49213`, asked as `assert red_fox`.

The zoo models learned to recall lines of this form, and any language model can copy them; the
wording is the zoo's, so that training and evaluation agree.
"""

from __future__ import annotations

import random

from recollect.evaluate.tasks.base import Question, Setting

_WORDS = [
    "amber",
    "basil",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "gamma",
    "hazel",
    "indigo",
    "jasper",
    "kelp",
    "lunar",
    "maple",
    "nectar",
    "olive",
    "pearl",
    "quartz",
    "raven",
    "sable",
    "tulip",
    "umber",
    "velvet",
    "willow",
    "zephyr",
]


def keys(rng: random.Random, count: int) -> list[str]:
    """So many different keys."""
    pairs = [f"{a}_{b}" for a in _WORDS for b in _WORDS if a != b]
    return rng.sample(pairs, count)


def value(rng: random.Random) -> str:
    """A value."""
    return f"{rng.randrange(10**5):05d}"


def line(key: str, value: str) -> str:
    """The line to hide."""
    return f"{key} {value}"


def question(key: str) -> str:
    """The start of a line that recalls a key."""
    return f"assert {key}"


def ask(setting: Setting, key: str, value: str) -> Question:
    """The question for one key."""
    return setting.question(
        f"\n{question(key)} ",
        value,
        chat=f"In the text above, one line gives the number of {key}.",
    )
