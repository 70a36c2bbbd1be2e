"""A text as a guard reads it: canonical words, their stems, numbers and names.

English only. Words of other languages pass as they are, so guards built on this see their numbers,
names, order and substitutions, but neither opposites nor negation.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from recollect.answers.verifiers.lexicon import NUMBERS, PHRASES, STOP

TOKEN = re.compile(
    r"[a-z_]+\d[\w.]*|\d+(?:[.,:/-]\d+)*(?:[a-z]+)?|[^\W\d]+(?:[-'][^\W\d]+)*|[+*/%=<>]"
)
SENTENCE = re.compile(r"(?:^|[.!?:]\s+|\n)\s*[\"'(]*")
SIGNS = {"+": "plus", "*": "times", "/": "divided"}


@dataclass(frozen=True)
class Words:
    """One text.

    Attributes:
        tokens: canonical words in order, stemmed.
        content: those of them that are not grammar, in order.
        numbers: written with digits, or as words where they count something, sorted.
        names: stems of capitalised words that do not open a sentence.
        digits: those of `numbers` that were written with digits.
    """

    tokens: tuple[str, ...]
    content: tuple[str, ...]
    numbers: tuple[str, ...]
    digits: tuple[str, ...]
    names: frozenset[str]


@lru_cache(maxsize=4096)
def read(text: str) -> Words:
    """The words of a text."""
    text = unicodedata.normalize("NFKC", text).replace("’", "'")
    lowered = text.lower()
    lowered = re.sub(r"\bcan't\b|\bcannot\b", "can not", lowered)
    lowered = re.sub(r"\bwon't\b", "will not", lowered)
    lowered = re.sub(r"n't\b", " not", lowered)
    lowered = re.sub(
        r"\b(is|are|was|do|does|did|ca|wo|has|have|would|should|could)nt\b", r"\1 not", lowered
    )
    lowered = re.sub(r"(?<=\d)(?=[ap]m\b)", " ", lowered)
    lowered = re.sub(r"'(?:s|re|ve|ll|d|m)\b", "", lowered)
    for phrase, word in PHRASES:
        lowered = re.sub(rf"\b{phrase}\b", word, lowered)
    raw = [SIGNS.get(token, token) for token in TOKEN.findall(lowered)]
    tokens = [NUMBERS.get(token) or (_plain(token) if token[0].isdigit() else token)
              for token in raw]  # fmt: skip
    numbers = sorted(token for token in tokens if any(c.isdigit() for c in token))
    return Words(
        tokens=tuple(stem(token) for token in tokens),
        content=tuple(stem(token) for token in tokens if token not in STOP),
        numbers=tuple(numbers),
        digits=tuple(sorted(map(_plain, (t for t in raw if any(c.isdigit() for c in t))))),
        names=_names(text),
    )


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """The word without the commonest endings; crude, but the same for both texts."""
    if len(word) < 4 or not word.isalpha():
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    for ending in ("ing", "ed"):
        root = word.removesuffix(ending)
        if root != word and len(root) >= 3 and re.search("[aeiouy]", root):
            if root[-1] == root[-2] and root[-1] not in "lsz":
                return root[:-1]
            return root.removesuffix("e")
    if word.endswith(("sses", "ches", "shes", "xes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    return word.removesuffix("e") if len(word) > 4 else word


def _plain(number: str) -> str:
    """1,000 is 1000; 3.11, 10:30 and 2024-05-01 stay as they are."""
    return re.sub(r"(?<=\d),(?=\d{3}\b)", "", number)


def _names(text: str) -> frozenset[str]:
    letters = [c for c in text if c.isalpha()]
    if letters and sum(c.isupper() for c in letters) > 0.5 * len(letters):
        return frozenset()  # a shouted text names nothing
    openings = {match.end() for match in SENTENCE.finditer(text)}
    return frozenset(
        stem(re.sub(r"'s$", "", match.group()).lower())
        for match in re.finditer(r"\b[A-Z][\w'-]*", text)
        if match.start() not in openings
        and match.group().lower() not in STOP
        and not re.match(r"I(?:'|$)", match.group())
    )
