"""What an example is: one past request of a partition with an answer worth learning from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CHARACTERS_PER_TOKEN = 4  # of English under common tokenizers


@dataclass(frozen=True)
class Example:
    """A past request and its answer.

    Attributes:
        id: given by the manager; 0 until then.
        partition: who may see it; equality only.
        query, response: texts.
        model: that answered.
        created_at: seconds since the epoch.
    """

    id: int
    partition: tuple[str, ...]
    query: str
    response: str
    model: str
    created_at: float

    @property
    def size(self) -> int:
        """Bytes of plain text (UTF-8)."""
        return len((self.query + self.response).encode("utf-8", "surrogatepass"))

    @property
    def tokens(self) -> int:
        """Estimate of what it adds to a prompt."""
        return (len(self.query) + len(self.response)) // CHARACTERS_PER_TOKEN + 12


@dataclass(frozen=True)
class Found:
    """An example near a request, with unit vectors (D,) of its query and its response."""

    example: Example
    query_vector: np.ndarray
    response_vector: np.ndarray
