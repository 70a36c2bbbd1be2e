"""What an example is: one past request of a partition with an answer worth learning from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recollect.answers.backends.base import scope_key

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
        key: of the request it comes from (hex), for a purge.
        writer: keyed digest of whose request that was.
    """

    id: int
    partition: tuple[str, ...]
    query: str
    response: str
    model: str
    created_at: float
    key: str = ""
    writer: str = ""

    @property
    def scope_key(self) -> str:
        """Digest of the scope it belongs to, users named inside requests left aside."""
        return scope_key(self.partition)

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
