"""The index a cache uses: exact while it is small, a graph once it is large.

Building a graph takes seconds; it happens beside the searches, which go on in the old index, and
what changes meanwhile is written down and applied before the two change places.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from recollect.answers.index import base, graph
from recollect.answers.index.base import Neighbour, VectorIndex
from recollect.answers.index.flat import FlatIndex
from recollect.answers.index.graph import GraphIndex
from recollect.errors import RecipeError

LOG = logging.getLogger(__name__)

FEW = 32  # changes that are taken over at the end, while searches wait


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
        self._builder = _Builder()
        # A thread that dies with the interpreter dies within the graph's code, and takes it along.
        weakref.finalize(self, self._builder.end)
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
        self._builder.join()

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
        self._builder.begin(self._build, ids, vectors)

    def _due(self) -> bool:
        if isinstance(self._index, FlatIndex):
            return len(self._index) > self._exact_below
        return self._index.dead_share > self._rebuild_at

    def _build(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Build the next index from a copy, catch up with the changes, and put it in place."""
        try:
            new, few = self._next_index(ids, vectors), FEW
            while not self._builder.stop.is_set():
                with self._lock:
                    changes, self._changes = self._changes or {}, {}
                    if len(changes) <= few:
                        _apply(changes, new)
                        self._index = new
                        return
                _apply(changes, new)
                few *= 2  # they may come faster than this is
        except Exception:
            self._may_build = False  # the old index goes on; a second try would fail alike
            LOG.exception("building an index failed; searches go on in the old one")
        finally:
            self._changes = None

    def _next_index(self, ids: np.ndarray, vectors: np.ndarray) -> FlatIndex | GraphIndex:
        if len(ids) <= self._exact_below // 2:
            flat = FlatIndex(self.dim, self.encoder_id)
            _apply(dict(zip(ids.tolist(), vectors, strict=True)), flat)
            return flat
        new = GraphIndex(self.dim, self.encoder_id)
        new.extend(ids, vectors, self._builder.stop)
        return new


def _apply(changes: Mapping[int, np.ndarray | None], index: FlatIndex | GraphIndex) -> None:
    for entry_id, vector in changes.items():
        if vector is None:
            index.remove(entry_id)
        else:
            index.add(entry_id, vector)


class _Builder:
    """The thread that builds; it ends early when `stop` is set."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, build: Callable[..., None], *arguments: object) -> None:
        self._thread = threading.Thread(target=build, args=arguments, daemon=True)
        self._thread.start()

    def join(self) -> None:
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def end(self) -> None:
        self.stop.set()
        self.join()
