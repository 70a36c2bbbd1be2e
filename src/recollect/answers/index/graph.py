"""A navigable graph of vectors in half precision (usearch): approximate, for large partitions."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import Any

import numpy as np

from recollect.answers.index import base
from recollect.answers.index.base import Neighbour, VectorIndex
from recollect.errors import HostError

# Half precision and the graph's own arithmetic move a cosine by less than 1e-3.
LINKS, BUILD_WIDTH, SEARCH_WIDTH = 16, 128, 64
BATCH = 16  # vectors; other threads of Python wait for so many


def available() -> bool:
    """Whether usearch (extra ``answers``) is installed."""
    return importlib.util.find_spec("usearch") is not None


class GraphIndex(VectorIndex):
    """Hierarchical graph (Malkov & Yashunin 2016, arXiv 1603.09320) by usearch.

    Removal leaves a tombstone that still costs steps of a search until an addition reuses it;
    `dead_share` says how many there are. Memory: about 2 D + 150 bytes an entry. Calls are not
    guarded against each other: GrowingIndex does that.
    """

    def __init__(self, dim: int, encoder_id: str) -> None:
        self._dim, self._encoder_id = dim, encoder_id
        self._graph = _graph(dim)
        self._slots = 0  # nodes of the graph, tombstones included

    @property
    def dim(self) -> int:
        return self._dim

    @property
    def encoder_id(self) -> str:
        return self._encoder_id

    def __len__(self) -> int:
        return len(self._graph)

    def __contains__(self, entry_id: int) -> bool:
        return entry_id in self._graph

    @property
    def dead_share(self) -> float:
        """Tombstones among the graph's nodes, 0 to 1."""
        return 1 - len(self) / self._slots if self._slots else 0.0

    def add(self, entry_id: int, vector: np.ndarray) -> None:
        vector = base.checked(vector, self._dim)
        self.remove(entry_id)
        self._graph.add(entry_id, vector, threads=1)
        self._slots = max(self._slots, len(self))

    def extend(
        self, ids: np.ndarray, vectors: np.ndarray, stop: threading.Event | None = None
    ) -> None:
        """Add many new ids (N,) with vectors (N, D), a batch at a time, until `stop` is set."""
        for start in range(0, len(ids), BATCH):
            if stop is not None and stop.is_set():
                break
            part = slice(start, start + BATCH)
            self._graph.add(ids[part].astype(np.uint64), vectors[part], threads=1)
        self._slots = max(self._slots, len(self))

    def remove(self, entry_id: int) -> None:
        if entry_id in self._graph:
            self._graph.remove(entry_id)

    def search(self, vector: np.ndarray, k: int) -> list[Neighbour]:
        vector = base.checked(vector, self._dim)
        if not len(self):
            return []
        found = self._graph.search(vector, min(k, len(self)), threads=1)
        similarities = (1 - found.distances).tolist()
        return [Neighbour(*one) for one in zip(found.keys.tolist(), similarities, strict=True)]

    def items(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids (N,) int64 and vectors (N, D) float32 of the live entries."""
        ids = np.array(list(self._graph.keys), np.uint64)
        vectors = [self._graph.get(int(entry_id)) for entry_id in ids]
        stacked = np.array(vectors, np.float32).reshape(len(ids), self._dim)
        return ids.astype(np.int64), stacked

    def save(self, path: str | Path) -> None:
        graph = np.frombuffer(self._graph.save(), np.uint8)
        slots = np.array([self._slots])
        tensors = {"graph": graph, "slots": slots}
        base.write(path, "graph", self._encoder_id, self._dim, tensors)

    @classmethod
    def load(cls, path: str | Path, *, dim: int, encoder_id: str) -> GraphIndex:
        """Read an index. Raises StoreError when it is damaged or of another encoder."""
        tensors = base.read(path, "graph", encoder_id, dim)
        index = cls(dim, encoder_id)
        index._graph.load(tensors["graph"].tobytes())
        index._slots = int(tensors["slots"][0])
        return index


def _graph(dim: int) -> Any:
    if not available():
        raise HostError("the graph index needs usearch: pip install recollect[answers]")
    from usearch.index import Index

    return Index(
        ndim=dim,
        metric="cos",
        dtype="f16",
        connectivity=LINKS,
        expansion_add=BUILD_WIDTH,
        expansion_search=SEARCH_WIDTH,
    )
