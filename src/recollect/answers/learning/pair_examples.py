"""Pairs of questions with a label: does one answer serve both? Training data of the pair verifier.

From texts with intents: paraphrases of one intent, the nearest queries of other ones, edits of the
texts, and the texts joined with something else; and made-up questions in several wordings.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from recollect.answers.learning.edits import LETTERS, Editor
from recollect.answers.learning.questions import Questions
from recollect.answers.learning.vocabulary import AFTER, BEFORE, FILLERS
from recollect.answers.verifiers.lexicon import STOP
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
    """Two texts, whether one answer serves both, where the pair is from, and of which intents."""

    first: str
    second: str
    same: bool
    kind: str
    intents: frozenset[str] = frozenset()


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

    intent_same: int = 11000
    intent_different: int = 5000
    edit_same: int = 5000
    edit_different: int = 8000
    question_same: int = 4000
    question_different: int = 6000
    joined: int = 4000
    planted: int = 6000

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
        "planted": source.planted,
    }
    found: list[PairExample] = []
    for (kind, make), count in zip(kinds.items(), vars(mixture).values(), strict=True):
        while count:
            source.touched.clear()
            pair = make()
            if pair is not None:
                intents = frozenset(source.touched)
                found.append(PairExample(*pair, kind.endswith("same"), kind, intents))
                count -= 1
    source.random.shuffle(found)
    return found


class _Source:
    """Draws one pair of a kind; None where the draw was no good.

    `touched` are the intents of all texts that were drawn since it was emptied.
    """

    def __init__(self, corpora: Sequence[Corpus], seed: int, part: str | None) -> None:
        self.random = random.Random(seed)
        self.editor, self.questions = Editor(seed + 1, part), Questions(seed + 2, part)
        self.corpora = corpora
        self.touched: set[str] = set()

    def intent_same(self) -> tuple[str, str] | None:
        """Near queries of one intent whose numbers do not contradict."""
        corpus, at = self._draw()
        other = self._near(corpus, at)
        return (corpus.texts[at], self._maybe_reworded(other, 0.2)) if other else None

    def intent_different(self) -> tuple[str, str] | None:
        """A query and one of the nearest of other intents."""
        corpus, at = self._draw()
        other = corpus.intents != corpus.intents[at]
        cosines = np.where(other, corpus.vectors @ corpus.vectors[at], -1)
        nearest = self.random.choice(np.argpartition(-cosines, 5)[:5])
        self.touched.add(corpus.intents[nearest])
        return corpus.texts[at], corpus.texts[nearest]

    def edit_same(self) -> tuple[str, str] | None:
        """A text and itself after up to four benign edits."""
        text = self._text()
        other = self.editor.benign(text, self.random.randint(1, 4))
        return (text, other) if other else None

    def edit_different(self) -> tuple[str, str] | None:
        """A text, and a wording of it with one thing changed that decides."""
        text, wording = self._wordings()
        other = self.editor.contrasting(wording)
        if other is None:
            return None
        gone = set(read(wording).tokens) - set(read(other).tokens)
        return (text, other) if gone <= set(read(text).tokens) else None

    def question_same(self) -> tuple[str, str]:
        """Two wordings of a made-up question."""
        one, other = self.questions.same()
        return one, self._maybe_reworded(other, 0.3)

    def question_different(self) -> tuple[str, str]:
        """Two made-up questions that differ in a slot."""
        one, other = self.questions.different()
        return one, self._maybe_reworded(other, 0.3)

    def joined(self) -> tuple[str, str]:
        """A text, and a wording of it with something else in it."""
        text, wording = self._wordings()
        return text, self.editor.joined(wording, self._payload())

    def planted(self) -> tuple[str, str] | None:
        """A text, and a wording of it with one to three words that have nothing to do with it."""
        text, wording = self._wordings()
        draw = self.random.random()
        if draw < 0.75:
            words = self.random.sample(self._words, 1 if draw < 0.5 else 2)
        elif draw < 0.85:
            words = self.random.choice(MATTERS).split()
        else:
            other = self._text().split()
            start = self.random.randrange(len(other))
            words = other[start : start + 3]
        known = {*read(text).content, *read(wording).content}
        new = [word for word in read(" ".join(words)).content if word not in known]
        return (text, self.editor.planted(wording, words)) if new else None

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

    def _draw(self) -> tuple[Corpus, int]:
        """A text, of larger data sets more often."""
        corpus = self.random.choices(self.corpora, [len(c.texts) ** 0.5 for c in self.corpora])[0]
        at = self.random.randrange(len(corpus.texts))
        self.touched.add(corpus.intents[at])
        return corpus, at

    def _near(self, corpus: Corpus, at: int) -> str | None:
        """A near query of the same intent whose numbers do not contradict, if there is one."""
        if not corpus.shared[at]:
            return None
        alike = np.flatnonzero(corpus.intents == corpus.intents[at])
        cosines = corpus.vectors[alike] @ corpus.vectors[at]
        least = self.random.choice((0.8, 0.8, 0.65))
        near = alike[(cosines >= least) & (alike != at)]
        if not len(near):
            return None
        other = corpus.texts[self.random.choice(near)]
        return other if read(corpus.texts[at]).digits == read(other).digits else None

    def _text(self) -> str:
        if self.random.random() < 0.3:
            return self.random.choice(self.questions.same())
        corpus, at = self._draw()
        return corpus.texts[at]

    def _wordings(self) -> tuple[str, str]:
        """A text twice: in wordings of two people, or the same, half of them edited."""
        draw = self.random.random()
        if draw < 0.2:
            return self.questions.same()
        corpus, at = self._draw()
        text = corpus.texts[at]
        other = self._near(corpus, at) if draw < 0.6 else None
        return text, other or self._maybe_reworded(text, 0.5)

    def _maybe_reworded(self, text: str, chance: float) -> str:
        if self.random.random() >= chance:
            return text
        return self.editor.benign(text, self.random.randint(1, 2)) or text

    @cached_property
    def _words(self) -> list[str]:
        """Words that say something, of all texts and of what made-up questions are filled with."""
        texts = [text for corpus in self.corpora for text in corpus.texts]
        words = {w for text in [*texts, *self.questions.fillings()]
                 for w in re.findall("[a-z]{4,}", text.lower())}  # fmt: skip
        return sorted(words - STOP - {*FILLERS, *" ".join([*BEFORE, *AFTER]).split()})
