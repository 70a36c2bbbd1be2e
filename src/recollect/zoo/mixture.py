"""The training mixture: source text, repeated spans, and puzzles buried in source text.

Sequences are made as lists of token ids with one loss weight per token. Weight 0 means that the
token cannot be known (a random digit when it is first stated), so nothing is learned from it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from recollect.zoo import corpus, needles

ANSWER = 4.0  # weight of the digits of an answer; a token of ordinary text has 1


class Sequence_(NamedTuple):
    """Token ids and loss weights, of equal length."""

    ids: list[int]
    weights: list[float]


class Text(NamedTuple):
    """Tokens of one part of the corpus and where its lines begin."""

    ids: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, part: corpus.Part, tokenizer: Any) -> Text:
        """Tokenize one part of the corpus, files joined by the end token."""
        encoded = tokenizer(list(corpus.documents(part)), add_special_tokens=False)["input_ids"]
        ids = np.concatenate([np.asarray([*one, tokenizer.eos_token_id]) for one in encoded])
        newline = tokenizer.encode("\n", add_special_tokens=False)[0]
        starts = np.flatnonzero((ids == newline) | (ids == tokenizer.eos_token_id)) + 1
        return cls(ids.astype(np.int64), starts)


class Mixture:
    """Makes batches of training sequences.

    Args:
        tokenizer: the zoo's tokenizer.
        text: the corpus to draw from.
        part: the part of the keys to draw from.
        rng: source of all randomness.
    """

    def __init__(
        self, tokenizer: Any, text: Text, rng: random.Random, part: corpus.Part = "train"
    ) -> None:
        self.tokenizer, self.text, self.part, self.rng = tokenizer, text, part, rng
        self.newline = self._encode("\n")

    def batch(
        self, rows: int, length: int, shares: tuple[float, float, float], hard: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids and weights, both (rows, length).

        Args:
            shares: of source text, repeated spans, puzzles.
            hard: share of the puzzles with several values or chains of names.
        """
        made = []
        for _ in range(rows):
            kind = self.rng.choices((self.source, self.repeats, self.puzzle), shares)[0]
            made.append(self.puzzle(length, hard) if kind == self.puzzle else kind(length))
        ids = np.array([one.ids for one in made], dtype=np.int64)
        weights = np.array([one.weights for one in made], dtype=np.float32)
        return ids, weights

    def source(self, length: int) -> Sequence_:
        """A piece of source text."""
        ids = [self.tokenizer.bos_token_id, *self._lines(length - 1)]
        return Sequence_(ids, [1.0] * length)

    def repeats(self, length: int) -> Sequence_:
        """A span of random tokens or of text, again and again; weight on what can be known."""
        rng, ids, weights = self.rng, [self.tokenizer.bos_token_id], [0.0]
        span_length = rng.randrange(12, max(13, length // 2))
        if rng.random() < 0.6:
            alphabet = rng.choices(range(1, self.tokenizer.vocab_size), k=rng.choice((50, 500)))
            span, first = rng.choices(alphabet, k=span_length), 0.0
        else:
            span, first = self._lines(span_length), 0.25
        known = False
        while len(ids) < length:
            ids += span
            weights += [1.0 if known else first] * len(span)
            known = True
            if rng.random() < 0.3:
                between = self._lines(rng.randrange(1, max(2, length // 4)))
                ids += between
                weights += [0.25] * len(between)
        return Sequence_(ids[:length], weights[:length])

    def puzzle(self, length: int, hard: float = 0.0) -> Sequence_:
        """A puzzle buried in source text, everything asked at the end, some things also before."""
        rng = self.rng
        mark = "# " if rng.random() < 0.7 else ""
        most = min(40, length // 32)
        count = rng.randint(2, most) if rng.random() < 0.7 else min(8, most)
        draw = rng.random()
        if draw < hard / 2:
            made = needles.multi_value(rng, max(2, count // 2), 2, self.part, mark)
        elif draw < hard:
            made = needles.variables(rng, max(1, count // 3), 1, self.part, mark)
        else:
            made = needles.single(rng, count, self.part, mark)
        planted = [(self._encode(line), 0.0) for line in made.planted]
        asked = [self._asked(one) for one in made.asks]
        tail: list[Sequence_] = []
        room = int(length * 0.8) - sum(len(ids) for ids, _ in planted) - 1
        for one in asked:
            if sum(len(t.ids) for t in tail) + len(one.ids) < room:
                tail.append(one)
        end = [token for t in tail for token in t.ids]
        end_weights = [weight for t in tail for weight in t.weights]
        hay_length = length - 1 - len(end) - sum(len(ids) for ids, _ in planted)
        hay = self._lines(hay_length)
        ids, weights = [self.tokenizer.bos_token_id], [0.0]
        for piece, is_hay in self._interleave([p for p, _ in planted], hay):
            ids += piece
            # A quarter of the hay is enough to learn text from, and costs less.
            weights += (
                [1.0 if rng.random() < 0.25 else 0.0 for _ in piece] if is_hay else [0.0] * len(piece)
            )
        return Sequence_(ids + end, weights + end_weights)

    def _interleave(
        self, planted: Sequence[list[int]], hay: list[int]
    ) -> list[tuple[list[int], bool]]:
        """Pieces of hay and planted lines between them, cut where lines of hay end."""
        ends = [i + 1 for i, token in enumerate(hay) if token == self.newline[0]] or [0]
        cuts = sorted(self.rng.choice(ends) for _ in planted)
        pieces, before = [], 0
        for cut, line in zip(cuts, planted, strict=True):
            pieces += [(hay[before:cut], True), (list(line), False)]
            before = cut
        return [*pieces, (hay[before:], True)]

    def _asked(self, one: needles.Ask) -> Sequence_:
        question, answer = self._encode(one.question), self._encode(one.answer)
        ids = [*question, *answer, *self.newline]
        return Sequence_(ids, [0.0] * len(question) + [ANSWER] * len(answer) + [1.0])

    def _lines(self, count: int) -> list[int]:
        """So many tokens of source text, from the start of a line, the last line complete."""
        if count <= 0:
            return []
        starts = self.text.starts
        limit = len(starts) - count - 2
        begin = int(starts[self.rng.randrange(max(1, limit))])
        taken = self.text.ids[begin : begin + count].tolist()
        taken[-1] = self.newline[0]
        return taken

    def _encode(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer._tokenizer.encode(text, add_special_tokens=False).ids
        return found
