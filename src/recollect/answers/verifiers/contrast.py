"""Contrast guard: two questions alike in wording that differ in what decides the answer.

It compares numbers, names, negation, opposites, exclusive words, roles, direction, substitutions
and what one text asks on top; a rule that finds a difference says so. Pure Python.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import NamedTuple

from recollect.answers.decision import Candidate, Check, Outcome
from recollect.answers.verifiers.lexicon import (
    EXCLUSIVE,
    MANNER,
    NEGATIONS,
    OPPOSITES,
    SYNONYMS,
    sides,
)
from recollect.answers.verifiers.words import Words, read, stem
from recollect.errors import RecipeError

SENTENCE_END = re.compile(r"(?<=[.?!])\s+|\n+")


class Difference(NamedTuple):
    """What differs, by the rule that found it."""

    rule: str
    detail: str


@dataclass(frozen=True)
class Contrast:
    """Stage ``verifier``: rejects a candidate whose query differs in a word that decides.

    Attributes:
        substitution: share of equal words from which on a replaced content word is a difference.
        addition: share of equal words from which on an added content word is a difference.
        surplus: content words in a row that a text may have beyond the other where it has most
            content of the other, one less before and after it all: more is a second question.
        longest: words of a text that is compared; longer ones must be the same word for word, as
            aligning takes the square of the length.
        only: rules that look at words alone, by name: ``number``, ``name``, ``negation``,
            ``opposite``, ``exclusive``, ``role``. If given, no others are asked, nothing is
            aligned, and texts may have any length.
    """

    substitution: float = 0.6
    addition: float = 0.75
    surplus: int = 2
    longest: int = 500
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = next((name for name in self.only if name not in RULES), None)
        if unknown is not None:
            raise RecipeError(f"no rule is called '{unknown}'; there are: {', '.join(RULES)}")

    def check(self, query: str, candidate: Candidate, answer: str | None = None) -> Check:
        """Reject with the first difference found; otherwise accept."""
        for difference in self.differences(query, candidate.query):
            return Check(Outcome.REJECT, f"{difference.rule}: {difference.detail}")
        return Check(Outcome.ACCEPT, "no contrast")

    def differences(self, one: str, other: str) -> Iterator[Difference]:
        """All differences of two texts, in the order of the rules; symmetric."""
        one, other = sorted((one, other))  # aligning words depends on which comes first
        a, b = read(one), read(other)
        if a.tokens == b.tokens:
            return
        if not self.only and max(len(a.tokens), len(b.tokens)) > self.longest:
            yield Difference("length", "too long to compare word by word")
            return
        for rule in self.only or RULES:
            detail = RULES[rule](a, b)
            if detail:
                yield Difference(rule, detail)
        if self.only:
            return
        yield from self._edits(a, b)
        sentence = _stray(one, b) or _stray(other, a)
        if sentence:
            yield Difference("stray", sentence)

    def _edits(self, a: Words, b: Words) -> Iterator[Difference]:
        equal, changes = aligned(a, b)
        if equal >= 0.5:
            if len(_denials(a)) % 2 != len(_denials(b)) % 2:
                yield Difference("negation", "one is negated")
            if manner := MANNERS(a, b):
                yield Difference("manner", manner)
        replaced = [(gone, new) for gone, new in changes if gone and new and not _alike(gone, new)]
        if equal >= self.substitution and replaced:
            gone, new = replaced[0]
            yield Difference("substitution", f"{' '.join(gone)} / {' '.join(new)}")
        one_sided = [gone or new for gone, new in changes if not (gone and new)]
        short, long = sorted((len(a.tokens), len(b.tokens)))
        verbatim = round(equal * long) == short
        if (equal >= self.addition or verbatim) and one_sided and not replaced:
            yield Difference("addition", " ".join(one_sided[0]))
        for runs in (_surplus(a, b), _surplus(b, a)):
            inside = [run for run in runs[1:-1] if len(run) > self.surplus]
            around = [run for run in (*runs[:1], *runs[-1:]) if len(run) >= self.surplus]
            for run in (*around, *inside):
                yield Difference("surplus", " ".join(run))


def _table(text: str) -> dict[str, frozenset[tuple[int, int]]]:
    found: dict[str, set[tuple[int, int]]] = {}
    for group, parts in enumerate(sides(text)):
        for side, words in enumerate(parts):
            for word in words:
                found.setdefault(stem(word), set()).add((group, side))
    return {word: frozenset(places) for word, places in found.items()}


def _exclusive(text: str) -> Callable[[Words, Words], str]:
    table = _table(text)

    def compare(a: Words, b: Words) -> str:
        one, other = _named(table, a), _named(table, b)
        for group in one.keys() & other.keys():
            if one[group].keys() != other[group].keys():
                left = next(iter(one[group].values()))
                right = next(iter(other[group].values()))
                if left != right:
                    return f"{left} / {right}"
        return ""

    return compare


def _named(table: dict[str, frozenset[tuple[int, int]]], text: Words) -> dict[int, dict[int, str]]:
    """Of each group the sides that a text names, with the word that does."""
    found: dict[int, dict[int, str]] = {}
    for token in text.tokens:
        for group, side in table.get(token, ()):
            found.setdefault(group, {}).setdefault(side, token)
    return found


def _numbers(a: Words, b: Words) -> str:
    if a.numbers == b.numbers:
        return ""
    gone = Counter(a.numbers) - Counter(b.numbers)
    new = Counter(b.numbers) - Counter(a.numbers)
    if not (gone and new) and not any(number in a.digits + b.digits for number in gone | new):
        return ""  # "two accounts" may be left unsaid, "account 2" may not
    return f"{', '.join(gone) or 'none'} / {', '.join(new) or 'none'}"


def _names(a: Words, b: Words) -> str:
    gone, new = a.names - set(b.tokens), b.names - set(a.tokens)
    return f"{min(gone)} / {min(new)}" if gone and new else ""


def _negation(a: Words, b: Words) -> str:
    """A word that one text denies and the other asserts; elsewhere a denial is only told."""
    one, other = _denials(a), _denials(b)
    if len(one) % 2 == len(other) % 2:
        return ""
    for text, denied, theirs in ((b, one, other), (a, other, one)):
        for words in denied:
            asserted = [w for w in words if w in text.content and not any(w in d for d in theirs)]
            if asserted:
                return f"'{asserted[0]}' is negated in one"
    return ""


def _denials(text: Words) -> list[tuple[str, ...]]:
    """For each negation the content words it is about: the next two within four words."""
    return [
        tuple(word for word in text.tokens[at + 1 : at + 5] if word in text.content)[:2]
        for at, token in enumerate(text.tokens)
        if token in NEGATIONS
    ]


def _roles(a: Words, b: Words) -> str:
    """Two words that changed places around a third, or the two ends of a from … to."""
    one, other = _triples(a), _triples(b)
    if ("by" in a.tokens) == ("by" in b.tokens):
        for left, pivot, right in one:
            if (right, pivot, left) in other and left != right:
                return f"{left} and {right} changed places"
    ends, other_ends = _ends(a), _ends(b)
    for origin, goal in ends:
        if origin != goal and (goal, origin) in other_ends:
            return f"from {origin} to {goal} or back"
    if Counter(a.tokens) == Counter(b.tokens) and a.content != b.content:
        return "the same words in another order"
    return ""


def _triples(text: Words) -> set[tuple[str, str, str]]:
    words = text.content
    return set(zip(words, words[1:], words[2:], strict=False))


def _ends(text: Words) -> set[tuple[str, str]]:
    """(origin, goal) of `from X … to Y`, `to Y … from X`, `X to Y`, `X in Y`, `X over Y` …"""
    line = " ".join(text.tokens)
    found = {(m[1], m[2]) for m in re.finditer(r"from (\S+) (?:\S+ ){0,2}?to (\S+)", line)}
    found |= {(m[2], m[1]) for m in re.finditer(r"to (\S+) (?:\S+ ){0,2}?from (\S+)", line)}
    links = r"(?:to|into|in|over|than|without|before|after|against|for|and not)"
    found |= {
        (m[1], m[2]) for m in re.finditer(rf"(?=\b(\S+) {links} (?:the |a |an )?(\S+))", line)
    }
    return found


def _surplus(short: Words, long: Words) -> list[list[str]]:
    """Runs of content words of `long` that `short` has not, or not so often, in order.

    The first run is before, the last one after all that they share; any may be empty. None at
    all unless `long` has three quarters of the content of `short`.
    """
    known = set(short.content)
    if not known or len(known & set(long.content)) < 0.75 * len(known):
        return []
    unused = Counter(short.content)
    runs: list[list[str]] = [[]]
    for word in long.content:
        if unused[word] > 0:
            unused[word] -= 1
            runs.append([])
        else:
            runs[-1].append(word)
    return runs


def _stray(text: str, other: Words) -> str:
    """A sentence of several that shares no content word with the other text."""
    sentences = [part for part in SENTENCE_END.split(text) if part.strip()]
    known = set(other.content)
    for sentence in sentences if len(sentences) > 1 else ():
        content = set(read(sentence).content)
        if content and not content & known:
            return sentence
    return ""


def _alike(gone: list[str], new: list[str]) -> bool:
    return len(gone) == len(new) == 1 and bool(
        SAME.get(gone[0], frozenset()) & SAME.get(new[0], frozenset())
    )


def aligned(a: Words, b: Words) -> tuple[float, list[tuple[list[str], list[str]]]]:
    """The share of equal words in the longer text, and what changed, content words only."""
    matcher = SequenceMatcher(None, a.tokens, b.tokens, autojunk=False)
    in_content = set(a.content) | set(b.content)
    shared = set(a.tokens) & set(b.tokens)
    equal, changes = 0, []
    for kind, i, j, k, n in matcher.get_opcodes():
        if kind == "equal":
            equal += j - i
            continue
        gone = [token for token in a.tokens[i:j] if token in in_content - shared]
        new = [token for token in b.tokens[k:n] if token in in_content - shared]
        if gone or new:
            changes.append((gone, new))
    return equal / max(len(a.tokens), len(b.tokens), 1), changes


RULES: dict[str, Callable[[Words, Words], str]] = {
    "number": _numbers,
    "name": _names,
    "negation": _negation,
    "opposite": _exclusive(OPPOSITES),
    "exclusive": _exclusive(EXCLUSIVE),
    "role": _roles,
}
MANNERS = _exclusive(MANNER)
SAME = _table(SYNONYMS + OPPOSITES)
