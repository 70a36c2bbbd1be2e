"""Real text that every user has: standard-library files that the zoo models never saw."""

from __future__ import annotations

import functools
import random

from recollect.errors import StoreError
from recollect.zoo import corpus


@functools.cache
def files() -> tuple[str, ...]:
    """Texts of the held-out files, the same order everywhere."""
    texts = tuple(text for text in corpus.documents("held-out") if text.count("\n") >= 40)
    if not texts:
        raise StoreError("this Python has no readable standard library; tasks need its source")
    return texts


def lines(rng: random.Random) -> list[str]:
    """Lines (with their ends) of files in random order, from a random place on."""
    order = rng.sample(range(len(files())), len(files()))
    found: list[str] = []
    for index in order:
        found += [line for line in files()[index].splitlines(keepends=True) if line.strip()]
    start = rng.randrange(max(1, len(found) // 2))
    return found[start:]
