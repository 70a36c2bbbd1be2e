"""What an encoder is, and the short names of those that come with the package.

Similarities of different encoders are not comparable: `encoder_id` and `dim` are part of the
identity of every index and of every calibrated threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from recollect.errors import RecipeError

NAMES = ("ngram", "minilm", "onnx:FILE")


@runtime_checkable
class Encoder(Protocol):
    """Texts in, unit vectors out; the same text always gives the same vector."""

    @property
    def encoder_id(self) -> str:
        """Name and version of the weights; changes whenever a vector could."""

    @property
    def dim(self) -> int:
        """Width D of the vectors."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (B, D) float32 of `texts`, each of length one."""


def make_encoder(name: str) -> Encoder:
    """The encoder called ``ngram`` (numpy only) or ``minilm`` (needs the extra ``answers``).

    ``onnx:FILE`` is an ONNX file with its tokenizer.json beside it (needs the extra ``onnx``).
    Raises RecipeError for another name, HostError where weights or a runtime are missing.
    """
    if name == "ngram":
        from recollect.answers.encoders.ngram import NgramEncoder

        return NgramEncoder()
    if name == "minilm":
        from recollect.answers.encoders.minilm import MiniLMEncoder

        return MiniLMEncoder()
    if name.startswith("onnx:"):
        from recollect.answers.encoders.onnx import OnnxEncoder

        return OnnxEncoder(name.removeprefix("onnx:"))
    raise RecipeError(f"unknown encoder '{name}'; there are: {', '.join(NAMES)}")


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows of (B, D) scaled to length one, float32; a row of zeros stays zero."""
    vectors = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)
