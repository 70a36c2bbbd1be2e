"""The index a cache uses: exact while it is small, a graph once it is large.

Building a graph takes seconds; it happens beside the searches, which go on in the old index, and
what changes meanwhile is written down and applied before the two change places.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np

from recollect.answers.index import base, graph
from recollect.answers.index.base import Neighbour, VectorIndex
from recollect.answers.index.flat import FlatIndex
from recollect.answers.index.graph import GraphIndex
from recollect.errors import RecipeError

LOG = logging.getLogger(__name__)


class GrowingIndex(VectorIndex):
    """FlatIndex up to `exact_below` entries, GraphIndex above; rebuilt when it wears out.

    Without usearch it stays exact at any size and says so once in the log.

    Arguments:
        exact_below: entries up to which every vector is compared. At 4,096 of 384 numbers that
            reads 6 MB a search, a quarter of a millisecond; a graph of as many takes half of it.
        rebuild_at: share of tombstones (0 to 1) that makes the graph worth building anew.
        background: build in a thread; False builds within the call that found it due.
    """

    def __init__(
        self,
        dim: int,
        encoder_id: str,
        *,
        exact_below: int = 4096,
        rebuild_at: float = 0.2,
        background: bool = True,
    ) -> None:
        if exact_below < 1 or not 0 < rebuild_at < 1:
            raise RecipeError("an index takes exact_below >= 1 and 0 < rebuild_at < 1")
        self._index: FlatIndex | GraphIndex = FlatIndex(dim, encoder_id)
        self._exact_below, self._rebuild_at = exact_below, rebuild_at
        self._background = background
        self._may_build = True
        self._lock = threading.RLock()
        self._builder: threading.Thread | None = None
        # Changes since the builder took its copy: id -> vector, or None where it was removed.
        self._changes: dict[int, np.ndarray | None] | None = None

    @property
    def dim(self) -> int:
        return self._index.dim

    @property
    def encoder_id(self) -> str:
        return self._index.encoder_id

    @property
    def kind(self) -> str:
        """``flat`` or ``graph``: what answers searches now."""
        return "graph" if isinstance(self._index, GraphIndex) else "flat"

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, entry_id: int) -> bool:
        return entry_id in self._index

    def add(self, entry_id: int, vector: np.ndarray) -> None:
        with self._lock:
            self._index.add(entry_id, vector)
            if self._changes is not None:
                self._changes[entry_id] = np.array(vector, np.float32)
            self._build_when_due()

    def remove(self, entry_id: int) -> None:
        with self._lock:
            self._index.remove(entry_id)
            if self._changes is not None:
                self._changes[entry_id] = None
            self._build_when_due()

    def search(self, vector: np.ndarray, k: int) -> list[Neighbour]:
        with self._lock:
            return self._index.search(vector, k)

    def wait(self) -> None:
        """Until no build is under way."""
        builder = self._builder
        if builder is not None:
            builder.join()

    def save(self, path: str | Path) -> None:
        with self._lock:
            self._index.save(path)

    @classmethod
    def load(
        cls, path: str | Path, *, dim: int, encoder_id: str, exact_below: int = 4096
    ) -> GrowingIndex:
        """Read an index of either kind. Raises StoreError when it does not fit."""
        index = cls(dim, encoder_id, exact_below=exact_below)
        kind = GraphIndex if base.kind_of(path) == "graph" else FlatIndex
        index._index = kind.load(path, dim=dim, encoder_id=encoder_id)
        return index

    def _build_when_due(self) -> None:
        if self._changes is not None or not self._may_build or not self._due():
            return
        if not graph.available():
            self._may_build = False
            LOG.warning("an index grew past %d entries and stays exact, hence slow, without "
                        "usearch: pip install recollect[answers]", self._exact_below)  # fmt: skip
            return
        ids, vectors = self._index.items()
        self._changes = {}
        if not self._background:
            self._build(ids, vectors)
            return
        self._builder = threading.Thread(target=self._build, args=(ids, vectors), daemon=True)
        self._builder.start()

    def _due(self) -> bool:
        if isinstance(self._index, FlatIndex):
            return len(self._index) > self._exact_below
        return self._index.dead_share > self._rebuild_at

    def _build(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Build the next index from a copy, catch up with the changes, and put it in place."""
        try:
            shrunk = len(ids) <= self._exact_below // 2
            new = FlatIndex(self.dim, self.encoder_id) if shrunk else self._new_graph(ids, vectors)
            with self._lock:
                changes = self._changes or {}
                if isinstance(new, FlatIndex):
                    changes = {**dict(zip(ids.tolist(), vectors, strict=True)), **changes}
                for entry_id, vector in changes.items():
                    if vector is None:
                        new.remove(entry_id)
                    else:
                        new.add(entry_id, vector)
                self._index = new
        except Exception:
            self._may_build = False  # the old index goes on; a second try would fail alike
            LOG.exception("building an index failed; searches go on in the old one")
        finally:
            self._changes = None

    def _new_graph(self, ids: np.ndarray, vectors: np.ndarray) -> GraphIndex:
        new = GraphIndex(self.dim, self.encoder_id)
        new.extend(ids, vectors)
        return new
