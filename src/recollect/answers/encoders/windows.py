"""Texts of any length through a model with a fixed window: nothing is cut silently."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np

from recollect.answers.encoders.base import unit_rows
from recollect.errors import RecipeError


class WindowedEncoder(ABC):
    """Mean of the last layer over the word pieces, then length one.

    A text longer than the model's window is never cut: with ``long="window"`` it is read in
    overlapping windows and their vectors are averaged by length; with ``long="refuse"`` it raises
    RecipeError. The average of many windows says little about any one of them, so long texts
    deserve a higher threshold or a verifier.

    Arguments:
        dim: width D of the vectors.
        batch: texts per forward pass.
        window: word pieces per window, the two special ones included.
        most: what the model takes.
        long: what happens to longer texts.
    """

    def __init__(
        self, dim: int, *, batch: int, window: int, most: int, long: Literal["window", "refuse"]
    ) -> None:
        if batch < 1 or long not in ("window", "refuse"):
            raise RecipeError("an encoder takes batch >= 1 and long='window' or 'refuse'")
        if not 8 <= window <= most:
            raise RecipeError(f"the window must be 8 to {most} word pieces, not {window}")
        self.dim, self.batch, self.window, self.long = dim, batch, window, long

    @abstractmethod
    def _pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Word pieces of each text, without special ones."""

    @abstractmethod
    def _ends(self) -> tuple[int, int]:
        """The special word pieces before and after a window."""

    @abstractmethod
    def _forward(self, windows: Sequence[Sequence[int]]) -> np.ndarray:
        """Mean vectors (B, D) of windows of word pieces."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (B, D) float32, unit rows. Texts of like length share a forward pass."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        windows, owners = self._windows(self._pieces(texts))
        means = np.empty((len(windows), self.dim), np.float32)
        order = sorted(range(len(windows)), key=lambda at: len(windows[at]))
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            means[rows] = self._forward([windows[row] for row in rows])
        vectors = np.zeros((len(texts), self.dim), np.float32)
        lengths = np.array([len(window) for window in windows], np.float32)
        np.add.at(vectors, owners, unit_rows(means) * lengths[:, None])
        return unit_rows(vectors)

    def _windows(self, pieces: list[list[int]]) -> tuple[list[list[int]], list[int]]:
        """Windows of word pieces with their ends, and the text that each one is of."""
        first, last = self._ends()
        room, stride = self.window - 2, (self.window - 2) * 3 // 4
        windows, owners = [], []
        for owner, ids in enumerate(pieces):
            if len(ids) > room and self.long == "refuse":
                raise RecipeError(
                    f"a text has {len(ids)} word pieces and the encoder reads {room}; "
                    "shorten it or use long='window'"
                )
            for start in range(0, max(1, len(ids) - room + stride), stride):
                windows.append([first, *ids[start : start + room], last])
                owners.append(owner)
        return windows, owners
