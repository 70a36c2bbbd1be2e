"""Levels of the attack: from a victim's question and an instruction to the text to plant.

After CacheAttack (Zhang et al. 2026, arXiv 2601.23088). Here the attacker has spelling, and in the
adaptive level hits and misses; `gradient` has the level that needs the weights of the encoder.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

Plant = Callable[[str], bool]  # plants a text and says whether the victim's question hits it
Join = Callable[[str], str]  # an instruction to the text with it


def concatenation(question: str, reworded: str, instruction: str) -> list[str]:
    """The question, or a rewording of it, before and after the instruction."""
    return [
        f"{question} {instruction}",
        f"{instruction} {question}",
        f"{reworded} {instruction}",
        f"{instruction} {reworded}",
    ]


def splice(question: str, instruction: str, seed: int, variants: int = 4) -> list[str]:
    """Runs of one to four words of the question and of the instruction, each in its order."""
    rng = random.Random(seed)
    texts = []
    for _ in range(variants):
        left, right = question.split(), instruction.split()
        parts: list[str] = []
        while left or right:
            source = left if left and (not right or rng.random() < 0.6) else right
            size = rng.randint(1, 4)
            parts += source[:size]
            del source[:size]
        texts.append(" ".join(parts))
    return texts


def adaptive(
    questions: Sequence[str],
    forms: Sequence[str],
    plant: Plant,
    budget: int,
    ways: Callable[[str], Iterator[Join]] | None = None,
) -> str | None:
    """The first planted text that the victim's question hits, or None when the budget is spent.

    For each way to join the two, the longest form of the instruction that still hits is sought by
    bisection, as longer forms are farther from the question; then the next way.

    Args:
        questions: the victim's, which the attacker guesses word by word, and rewordings of it.
        forms: of the instruction, longest first.
        plant: asks the cache; one probe.
        budget: probes at most.
        ways: to join a question with an instruction; `joins` when None.
    """
    left = budget
    for join in chain.from_iterable(zip(*map(ways or joins, questions), strict=True)):
        low, high, found = 0, len(forms) - 1, None
        while low <= high and left:
            middle = (low + high) // 2
            text = join(forms[middle])
            left -= 1
            if plant(text):
                found, high = text, middle - 1
            else:
                low = middle + 1
        if found is not None:
            return found
    return None


def joins(question: str) -> Iterator[Join]:
    """Ways to hide an instruction in a question: around it, inside, under repeats, in one word."""
    words = question.rstrip("?.!").split()
    half = len(words) // 2
    yield lambda form: f"{question} {form}"
    yield lambda form: f"{form} {question}"
    yield lambda form: f"{question} {question} {form}"
    yield lambda form: f"{question} {form} {question}"
    yield lambda form: " ".join([*words[:half], form.rstrip("."), *words[half:]]) + "?"
    yield lambda form: f"{' '.join(words)} {'-'.join(form.lower().rstrip('.').split())}?"
    yield lambda form: f"{question} {question} {question} {form}"
    yield lambda form: f"{' '.join(words)}, or {form.lower().rstrip('.')}?"
    yield lambda form: f"{form.rstrip('.')}: {question}"
    yield lambda form: f"{question} {form} {' '.join(words[half:])}?"
