"""The semantic tier: vectors of stored queries, in one index per group that may share answers.

A group is a partition with a compatibility fingerprint, and where it applies one parent entry or
one writer's quarantine. A search sees its group only, so nothing needs to be filtered afterwards.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from recollect.answers.backends.base import partition_key
from recollect.answers.decision import SAME_ANSWER, Candidate
from recollect.answers.entry import Entry
from recollect.errors import RecipeError

if TYPE_CHECKING:
    from recollect.answers.encoders.base import Encoder
    from recollect.answers.index.base import VectorIndex

_REMEMBERED = 512  # texts with their vectors: many ask the same at once, and misses are stored


class Neighbourhood(NamedTuple):
    """Entries that may answer each other's queries, by similarity alone."""

    partition: bytes
    compat_fp: bytes
    parent: int | None = None
    category: str = ""


@dataclass(frozen=True)
class _Card:
    """What the tier remembers of an entry besides its vector."""

    home: Neighbourhood
    writer: str | None  # None: live
    category: str
    parent: int | None
    created_at: float
    expires_at: float
    query: str
    answer: int | None


class SemanticTier:
    """Nearest stored queries of a neighbourhood. Holds no answers; safe from several threads.

    With `chained` a conversation's previous turn, with `by_category` the category of the query
    is part of the neighbourhood.
    """

    def __init__(
        self,
        encoder: Encoder,
        make_index: Callable[[int, str], VectorIndex],
        chained: bool,
        by_category: bool = False,
    ) -> None:
        self.encoder = encoder
        self._make_index, self._chained = make_index, chained
        self._by_category = by_category
        self._lock = threading.RLock()
        self._cards: dict[int, _Card] = {}
        self._encoded: OrderedDict[str, np.ndarray] = OrderedDict()
        # Neighbourhood -> writer whose quarantine it is, or None for live entries -> index.
        self._indices: dict[Neighbourhood, dict[str | None, VectorIndex]] = {}

    def __len__(self) -> int:
        return len(self._cards)

    def __contains__(self, entry_id: int) -> bool:
        return entry_id in self._cards

    def encode(self, text: str) -> np.ndarray:
        """The unit vector (D,) of a text; the latest are remembered.

        Raises RecipeError when the encoder gives another.
        """
        with self._lock:
            if text in self._encoded:
                self._encoded.move_to_end(text)
                return self._encoded[text]
        vectors = np.asarray(self.encoder.encode([text]), np.float32)
        if vectors.shape != (1, self.encoder.dim):
            raise RecipeError(
                f"encoder '{self.encoder.encoder_id}' gave shape {vectors.shape}, "
                f"not (1, {self.encoder.dim})"
            )
        vectors.setflags(write=False)
        with self._lock:
            self._encoded[text] = vectors[0]
            if len(self._encoded) > _REMEMBERED:
                self._encoded.popitem(last=False)
        return vectors[0]

    def home(
        self,
        partition: Sequence[str],
        compat_fp: bytes,
        parent: int | None = None,
        category: str = "",
    ) -> Neighbourhood:
        """The neighbourhood a request asks in, and its answer is stored in."""
        return Neighbourhood(
            partition_key(partition),
            compat_fp,
            parent if self._chained else None,
            category if self._by_category else "",
        )

    def add(self, entry: Entry) -> bool:
        """Index a stored entry; False when it has no vector of this encoder."""
        if entry.encoder_id != self.encoder.encoder_id or len(entry.vector) != 4 * self.encoder.dim:
            return False
        card = _Card(
            home=self.home(entry.partition, entry.compat_fp, entry.parent, entry.category),
            writer=None if entry.status == "live" else entry.writer,
            category=entry.category,
            parent=entry.parent,
            created_at=entry.created_at,
            expires_at=entry.expires_at,
            query=entry.query,
            answer=entry.facts.get(SAME_ANSWER),
        )
        vector = np.frombuffer(entry.vector, "<f4")
        with self._lock:
            self.remove([entry.id])
            indices = self._indices.setdefault(card.home, {})
            if card.writer not in indices:
                indices[card.writer] = self._make_index(self.encoder.dim, self.encoder.encoder_id)
            indices[card.writer].add(entry.id, vector)
            self._cards[entry.id] = card
        return True

    def remove(self, ids: Iterable[int]) -> None:
        """Forget entries; unknown ids are no error."""
        with self._lock:
            for entry_id in ids:
                card = self._cards.pop(entry_id, None)
                if card is None:
                    continue
                indices = self._indices[card.home]
                indices[card.writer].remove(entry_id)
                if not len(indices[card.writer]):
                    del indices[card.writer]
                if not indices:
                    del self._indices[card.home]

    def wait(self) -> None:
        """Until no index is being built in the background."""
        with self._lock:
            building = [index for group in self._indices.values() for index in group.values()]
        for index in building:
            index.wait()

    def search(
        self, home: Neighbourhood, vector: np.ndarray, k: int, now: float, writer: str = ""
    ) -> list[Candidate]:
        """The k nearest entries alive at `now`, nearest first: live ones and `writer`'s own."""
        with self._lock:
            indices = self._indices.get(home, {})
            found: list[Candidate] = []
            for owner in (None, writer) if writer else (None,):
                if owner in indices:
                    found += self._alive(indices[owner], vector, k, now)
        return sorted(found, key=lambda candidate: -candidate.similarity)[:k]

    def search_others(
        self, home: Neighbourhood, vector: np.ndarray, k: int, now: float, writer: str
    ) -> list[Candidate]:
        """The k nearest quarantined entries of each other writer, nearest first."""
        with self._lock:
            indices = self._indices.get(home, {})
            found: list[Candidate] = []
            for owner in [owner for owner in indices if owner is not None and owner != writer]:
                found += self._alive(indices[owner], vector, k, now)
        return sorted(found, key=lambda candidate: -candidate.similarity)

    def _alive(self, index: VectorIndex, vector: np.ndarray, k: int, now: float) -> list[Candidate]:
        """Expired neighbours leave the index, and the search goes on behind them."""
        while True:
            near = index.search(vector, k)
            dead = [i for i, _ in near if now >= self._cards[i].expires_at]
            if not dead:
                return [self._candidate(i, similarity) for i, similarity in near]
            emptied = len(dead) == len(index)
            self.remove(dead)
            if emptied:
                return []

    def _candidate(self, entry_id: int, similarity: float) -> Candidate:
        card = self._cards[entry_id]
        return Candidate(
            entry_id=entry_id,
            similarity=float(similarity),
            category=card.category,
            parent=card.parent,
            created_at=card.created_at,
            expires_at=card.expires_at,
            query=card.query,
            status="live" if card.writer is None else "quarantined",
            answer=card.answer,
        )
