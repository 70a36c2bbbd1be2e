"""The training mixture: source text, repeated spans, and puzzles buried in source text.

Sequences are lists of token ids with one loss weight per token. Weight 0 means that nothing is to
be learned from a token: a random digit cannot be known where it is first stated.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import numpy as np

from recollect.zoo import corpus, needles

ANSWER = 4.0
"""Weight of the tokens of an answer; a token of ordinary text has 1."""

_ALIKE = 0.4  # share of single-fact puzzles whose keys share words, once there are hard ones
_HAY = 0.25  # share of the text around a puzzle that is learned: enough, and cheaper than all


class Weighted(NamedTuple):
    """Token ids and their loss weights, equally many."""

    ids: list[int]
    weights: list[float]


class Text(NamedTuple):
    """Tokens of one part of the corpus, and the positions at which its lines start."""

    ids: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, part: corpus.Part, tokenizer: Any) -> Text:
        """Tokenize one part of the corpus, an end token after each file."""
        encoded = tokenizer(list(corpus.documents(part)), add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        end = tokenizer.eos_token_id
        ids = np.concatenate([np.array([*one, end], dtype=np.int64) for one in encoded])
        newline = tokenizer.encode("\n", add_special_tokens=False)[0]
        starts = np.flatnonzero((ids == newline) | (ids == end)) + 1
        return cls(ids, starts[:-1])


class Mixture:
    """Makes batches of training sequences.

    Args:
        tokenizer: the zoo's tokenizer.
        text: source text to draw from.
        rng: the only source of randomness.
        part: the part of the keys to draw from.
    """

    def __init__(
        self, tokenizer: Any, text: Text, rng: random.Random, part: corpus.Part = "train"
    ) -> None:
        self.text, self.rng, self.part = text, rng, part
        self.start: int = tokenizer.bos_token_id
        self.vocabulary: int = tokenizer.vocab_size
        self._tokenizer = tokenizer.backend_tokenizer
        (self.newline,) = self._encode("\n")

    def batch(
        self, rows: int, length: int, shares: tuple[float, float, float], hard: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids and weights, both (rows, length).

        Args:
            rows: number of sequences.
            length: tokens of each.
            shares: of source text, of repeated spans, of puzzles.
            hard: share of the puzzles that have several values or chains of names. Above 0, some
                of the others have keys that are alike.
        """
        made = []
        for kind in self.rng.choices(("source", "repeats", "puzzle"), shares, k=rows):
            if kind == "puzzle":
                made.append(self.puzzle(length, hard))
            else:
                made.append(self.source(length) if kind == "source" else self.repeats(length))
        ids = np.array([one.ids for one in made], dtype=np.int64)
        return ids, np.array([one.weights for one in made], dtype=np.float32)

    def source(self, length: int) -> Weighted:
        """A piece of source text."""
        return Weighted([self.start, *self._lines(length - 1)], [1.0] * length)

    def repeats(self, length: int) -> Weighted:
        """A span of random tokens or of text, over and over, sometimes with text in between."""
        rng = self.rng
        span_length = rng.randrange(12, max(13, length // 2))
        if rng.random() < 0.6:
            alphabet = rng.choices(range(1, self.vocabulary), k=rng.choice((50, 500)))
            span, first_weight = rng.choices(alphabet, k=span_length), 0.0
        else:
            span, first_weight = self._lines(span_length), _HAY
        ids, weights = [self.start, *span], [0.0] + [first_weight] * span_length
        while len(ids) < length:
            if rng.random() < 0.3:
                between = self._lines(rng.randrange(1, max(2, length // 4)))
                ids += between
                weights += [_HAY] * len(between)
            ids += span
            weights += [1.0] * span_length
        return Weighted(ids[:length], weights[:length])

    def puzzle(self, length: int, hard: float = 0.0) -> Weighted:
        """A puzzle buried in source text, with as many of its asks at the end as there is room."""
        made = self._draw_puzzle(length, hard)
        planted = [self._encode(line) for line in made.planted]
        room = int(length * 0.8) - 1 - sum(map(len, planted))
        asked = Weighted([], [])
        for ask in made.asks:
            question, answer = self._encode(ask.question), self._encode(ask.answer)
            if len(asked.ids) + len(question) + len(answer) + 1 <= room:
                asked.ids.extend([*question, *answer, self.newline])
                asked.weights.extend([0.0] * len(question) + [ANSWER] * len(answer) + [1.0])
        hay = self._lines(length - 1 - len(asked.ids) - sum(map(len, planted)))
        buried = self._bury(planted, hay)
        ids = [self.start, *buried.ids, *asked.ids]
        return Weighted(ids, [0.0, *buried.weights, *asked.weights])

    def _draw_puzzle(self, length: int, hard: float) -> needles.Puzzle:
        rng = self.rng
        mark = "# " if rng.random() < 0.7 else ""
        most = min(40, length // 32)
        count = rng.randint(2, most) if rng.random() < 0.7 else min(8, most)
        draw = rng.random()
        if draw < hard / 2:
            return needles.multi_value(rng, max(2, count // 2), 2, self.part, mark)
        if draw < hard:
            return needles.variables(rng, max(1, count // 3), 1, self.part, mark)
        alike = hard > 0 and rng.random() < _ALIKE
        return needles.single(rng, count, self.part, mark, alike)

    def _bury(self, planted: list[list[int]], hay: list[int]) -> Weighted:
        """The planted lines in their order between lines of hay."""
        ends = [0, *(i + 1 for i, token in enumerate(hay) if token == self.newline)]
        cuts = sorted(self.rng.choice(ends) for _ in planted)
        ids: list[int] = []
        weights: list[float] = []
        before = 0
        for cut, line in zip([*cuts, len(hay)], [*planted, []], strict=True):
            ids += hay[before:cut] + line
            weights += [float(self.rng.random() < _HAY) for _ in range(cut - before)]
            weights += [0.0] * len(line)
            before = cut
        return Weighted(ids, weights)

    def _lines(self, count: int) -> list[int]:
        """`count` tokens of source text from the start of some line on, closed by a newline."""
        if count <= 0:
            return []
        starts = self.text.starts[: np.searchsorted(self.text.starts, len(self.text.ids) - count)]
        begin = int(starts[self.rng.randrange(len(starts))])
        taken: list[int] = self.text.ids[begin : begin + count].tolist()
        taken[-1] = self.newline
        return taken

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids
