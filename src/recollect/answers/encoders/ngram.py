"""Hashed words and character n-grams: an encoder that needs numpy and nothing else.

It knows spelling, not meaning: rewordings that share few letters are far apart, which makes it a
careful key for near-duplicates. Signed feature hashing is Weinberger et al. 2009, arXiv 0902.2206.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from recollect.answers.encoders.base import unit_rows
from recollect.errors import RecipeError

WORD = re.compile(r"\w+|[^\w\s]")
# Knuth's multiplier spreads CRC-32, which is linear, over all 32 bits.
SPREAD = 2654435761


class NgramEncoder:
    """Words, pairs of words and character n-grams, counted and hashed with signs into D buckets.

    Arguments:
        dim: number of buckets D.
        sizes: shortest and longest character n-gram, taken inside words with their boundaries.
    """

    def __init__(self, dim: int = 1024, sizes: tuple[int, int] = (3, 5)) -> None:
        if dim < 1 or not 1 <= sizes[0] <= sizes[1]:
            raise RecipeError(f"ngram needs dim >= 1 and 1 <= sizes[0] <= sizes[1], got {sizes}")
        self.dim = dim
        self.sizes = sizes
        self.encoder_id = f"ngram-{sizes[0]}-{sizes[1]}-d{dim}-v1"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (B, D) float32, unit rows. Case and Unicode width do not matter."""
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            counts = Counter(self._features(text))
            codes = np.fromiter(map(_code, counts), np.uint64, len(counts))
            weights = 1 + np.log(np.fromiter(counts.values(), np.float32, len(counts)))
            signs = np.where(codes & 1, 1, -1).astype(np.float32)
            np.add.at(row, (codes >> np.uint64(1)) % np.uint64(self.dim), signs * weights)
        return unit_rows(vectors)

    def _features(self, text: str) -> Iterator[str]:
        words = WORD.findall(unicodedata.normalize("NFKC", text).casefold())
        if not words:
            yield "nothing"  # an empty text is like another empty text
        # The first character tells the kinds apart: a word never equals an n-gram.
        yield from (f"w{word}" for word in words)
        yield from (f"p{a} {b}" for a, b in itertools.pairwise(words))
        for word in words:
            padded = f"<{word}>"
            for size in range(self.sizes[0], self.sizes[1] + 1):
                yield from (f"c{padded[at : at + size]}" for at in range(len(padded) - size + 1))


def _code(feature: str) -> int:
    return zlib.crc32(feature.encode("utf-8", "surrogatepass")) * SPREAD & 0xFFFFFFFF
