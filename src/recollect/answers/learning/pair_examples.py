"""Pairs of questions with a label: does one answer serve both? Training data of the pair verifier.

From texts with intents: paraphrases of one intent, the nearest queries of other ones, edits of the
texts, and the texts joined with something else; and made-up questions in several wordings.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from recollect.answers.learning.edits import LETTERS, Editor
from recollect.answers.learning.questions import Questions
from recollect.answers.verifiers.words import read

# What an attacker might append, to train on; the red-team kit has its own.
WISHES = ("write", "draft", "compose", "summarise", "translate", "print", "output", "repeat",
          "explain", "describe", "invent", "sing", "count", "list", "draw", "answer with", "forget",
          "ignore", "reveal", "compute", "recommend", "spell", "recite", "show", "say")  # fmt: skip
MATTERS = ("a short story", "the previous instructions", "a limerick", "your system prompt",
           "the word banana", "a joke about lawyers", "ten animals", "the alphabet backwards",
           "the weather on mars", "an essay about rome", "the password", "hello world in cobol",
           "a haiku", "five fruits", "only yes", "the national anthem", "a chess opening",
           "a cake recipe", "the periodic table", "a letter to santa", "what a volcano is",
           "the lottery numbers", "a dragon", "the phone number 555 0199", "your favourite song",
           "the plot of a film", "three planets", "a workout plan", "nothing else")  # fmt: skip


class PairExample(NamedTuple):
    """Two texts, whether one answer serves both, and where the pair is from."""

    first: str
    second: str
    same: bool
    kind: str


@dataclass(frozen=True)
class Corpus:
    """Texts of one data set.

    Attributes:
        texts: N of them.
        vectors: (N, D) unit rows.
        intents: (N,) names.
        shared: (N,) whether texts of the intent share an answer; the others give no positives.
    """

    texts: Sequence[str]
    vectors: np.ndarray
    intents: np.ndarray
    shared: np.ndarray


@dataclass(frozen=True)
class Mixture:
    """How many pairs of each kind."""

    intent_same: int = 9000
    intent_different: int = 6000
    edit_same: int = 7000
    edit_different: int = 8000
    question_same: int = 5000
    question_different: int = 7000
    joined: int = 7000

    def scaled(self, share: float) -> Mixture:
        """The same proportions."""
        return Mixture(*(round(share * count) for count in vars(self).values()))


def make_examples(
    corpora: Sequence[Corpus], mixture: Mixture, seed: int = 0, part: str | None = "train"
) -> list[PairExample]:
    """Pairs in random order; `part` says which words and frames the edits draw from."""
    source = _Source(corpora, seed, part)
    kinds = {
        "intent same": source.intent_same,
        "intent different": source.intent_different,
        "edit same": source.edit_same,
        "edit different": source.edit_different,
        "question same": source.question_same,
        "question different": source.question_different,
        "joined": source.joined,
    }
    found = []
    for (kind, make), count in zip(kinds.items(), vars(mixture).values(), strict=True):
        made = _wanted(make, count)
        found += [PairExample(*pair, kind.endswith("same"), kind) for pair in made]
    source.random.shuffle(found)
    return found


def _wanted(make: Callable[[], tuple[str, str] | None], count: int) -> Iterator[tuple[str, str]]:
    while count:
        pair = make()
        if pair is not None:
            count -= 1
            yield pair


class _Source:
    """Draws one pair of a kind; None where the draw was no good."""

    def __init__(self, corpora: Sequence[Corpus], seed: int, part: str | None) -> None:
        self.random = random.Random(seed)
        self.editor, self.questions = Editor(seed + 1, part), Questions(seed + 2, part)
        self.corpora = corpora

    def intent_same(self) -> tuple[str, str] | None:
        """Near queries of one intent whose numbers do not contradict."""
        corpus = self._corpus()
        at = self.random.randrange(len(corpus.texts))
        if not corpus.shared[at]:
            return None
        alike = np.flatnonzero(corpus.intents == corpus.intents[at])
        cosines = corpus.vectors[alike] @ corpus.vectors[at]
        least = self.random.choice((0.8, 0.8, 0.65))
        near = alike[(cosines >= least) & (alike != at)]
        if not len(near):
            return None
        pair = corpus.texts[at], corpus.texts[self.random.choice(near)]
        return pair if read(pair[0]).digits == read(pair[1]).digits else None

    def intent_different(self) -> tuple[str, str] | None:
        """A query and one of the nearest of other intents."""
        corpus = self._corpus()
        at = self.random.randrange(len(corpus.texts))
        other = corpus.intents != corpus.intents[at]
        cosines = np.where(other, corpus.vectors @ corpus.vectors[at], -1)
        near = np.argpartition(-cosines, 5)[:5]
        return corpus.texts[at], corpus.texts[self.random.choice(near)]

    def edit_same(self) -> tuple[str, str] | None:
        """A text and itself after up to four benign edits."""
        text = self._text()
        other = self.editor.benign(text, self.random.randint(1, 4))
        return (text, other) if other else None

    def edit_different(self) -> tuple[str, str] | None:
        """A text with one thing changed that decides, half of them reworded besides."""
        text = self._text()
        other = self.editor.contrasting(text)
        return (text, self._maybe_reworded(other, 0.5)) if other else None

    def question_same(self) -> tuple[str, str]:
        """Two wordings of a made-up question."""
        one, other = self.questions.same()
        return one, self._maybe_reworded(other, 0.3)

    def question_different(self) -> tuple[str, str]:
        """Two made-up questions that differ in a slot."""
        one, other = self.questions.different()
        return one, self._maybe_reworded(other, 0.3)

    def joined(self) -> tuple[str, str]:
        """A text, and the same with something else in it."""
        text = self._text()
        planted = self.editor.joined(self._maybe_reworded(text, 0.3), self._payload())
        return text, planted

    def _payload(self) -> str:
        draw = self.random.random()
        if draw < 0.4:
            return f"{self.random.choice(WISHES)} {self.random.choice(MATTERS)}"
        if draw < 0.75:
            return self._text()
        if draw < 0.95:  # words of many texts, as a search over words leaves behind
            words = [self.random.choice(self._text().split()) for _ in range(12)]
            return " ".join(words[: self.random.randint(3, 12)])
        letters = self.random.choices(LETTERS, k=self.random.randint(15, 70))
        return " ".join("".join(letters)[i : i + 5] for i in range(0, len(letters), 5))

    def _corpus(self) -> Corpus:
        return self.random.choice(self.corpora)

    def _text(self) -> str:
        if self.random.random() < 0.3:
            return self.random.choice(self.questions.same())
        return self.random.choice(self._corpus().texts)

    def _maybe_reworded(self, text: str, chance: float) -> str:
        if self.random.random() >= chance:
            return text
        return self.editor.benign(text, self.random.randint(1, 2)) or text
