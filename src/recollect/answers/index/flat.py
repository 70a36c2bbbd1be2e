"""Every vector is compared: exact, nothing to build, and fast enough up to some 5,000 entries."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from recollect.answers.index import base
from recollect.answers.index.base import Neighbour, VectorIndex


class FlatIndex(VectorIndex):
    """Rows of a matrix; removal moves the last row into the gap.

    Memory: 4 D bytes an entry, in a matrix that doubles when full.
    """

    def __init__(self, dim: int, encoder_id: str) -> None:
        self._dim, self._encoder_id = dim, encoder_id
        self._vectors = np.zeros((16, dim), np.float32)
        self._ids = np.zeros(16, np.int64)
        self._row_of: dict[int, int] = {}
        self._lock = threading.Lock()

    @property
    def dim(self) -> int:
        return self._dim

    @property
    def encoder_id(self) -> str:
        return self._encoder_id

    def __len__(self) -> int:
        return len(self._row_of)

    def __contains__(self, entry_id: int) -> bool:
        return entry_id in self._row_of

    def add(self, entry_id: int, vector: np.ndarray) -> None:
        vector = base.checked(vector, self._dim)
        with self._lock:
            row = self._row_of.setdefault(entry_id, len(self._row_of))
            if row == len(self._ids):
                self._vectors = np.concatenate([self._vectors, np.zeros_like(self._vectors)])
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._vectors[row], self._ids[row] = vector, entry_id

    def remove(self, entry_id: int) -> None:
        with self._lock:
            row = self._row_of.pop(entry_id, None)
            if row is None:
                return
            last = len(self._row_of)
            if row != last:
                self._vectors[row], self._ids[row] = self._vectors[last], self._ids[last]
                self._row_of[int(self._ids[row])] = row

    def search(self, vector: np.ndarray, k: int) -> list[Neighbour]:
        vector = base.checked(vector, self._dim)
        with self._lock:
            count = len(self._row_of)
            similarities = row_dots(self._vectors[:count], vector)
            if k < count:
                rows = np.argpartition(similarities, count - k)[count - k :] if k > 1 else None
                rows = np.array([similarities.argmax()]) if rows is None else rows
            else:
                rows = np.arange(count)
            found = zip(self._ids[rows].tolist(), similarities[rows].tolist(), strict=True)
            return sorted((Neighbour(*one) for one in found), key=lambda n: (-n[1], n[0]))

    def items(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids (N,) int64 and vectors (N, D) float32 of the live entries, copied."""
        with self._lock:
            count = len(self._row_of)
            return self._ids[:count].copy(), self._vectors[:count].copy()

    def save(self, path: str | Path) -> None:
        ids, vectors = self.items()
        base.write(path, "flat", self._encoder_id, self._dim, {"ids": ids, "vectors": vectors})

    @classmethod
    def load(cls, path: str | Path, *, dim: int, encoder_id: str) -> FlatIndex:
        """Read an index. Raises StoreError when it is damaged or of another encoder."""
        tensors = base.read(path, "flat", encoder_id, dim)
        index = cls(dim, encoder_id)
        for entry_id, vector in zip(tensors["ids"].tolist(), tensors["vectors"], strict=True):
            index.add(entry_id, vector)
        return index


def row_dots(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Dot products (N,) of the rows of (N, D) with (D,), on the calling thread only.

    `matrix @ vector` wakes BLAS's threads, which on busy cores waits far longer than it computes;
    row by row every product is too short for BLAS to split.
    """
    if hasattr(np, "vecdot"):  # numpy 2
        return np.vecdot(matrix, vector)
    return np.einsum("nd,d->n", matrix, vector)
