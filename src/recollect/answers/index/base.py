"""What an index of vectors is, and the file that every index is saved in.

One index holds the entries of one partition, so a search cannot see another tenant's and needs no
filter afterwards. Ids are chosen by the store; bodies live there too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from recollect.errors import RecipeError, StoreError

SCHEMA = "recollect-index-1"


class Neighbour(NamedTuple):
    """An entry and its cosine similarity to the query, in [-1, 1]."""

    entry_id: int
    similarity: float


class VectorIndex(Protocol):
    """Unit vectors by entry id; nearest by cosine. Safe to use from several threads."""

    @property
    def encoder_id(self) -> str:
        """The encoder whose vectors these are."""

    @property
    def dim(self) -> int:
        """Width D of the vectors."""

    def __len__(self) -> int:
        """Number of live entries."""

    def __contains__(self, entry_id: int) -> bool:
        """Whether the entry is live."""

    def add(self, entry_id: int, vector: np.ndarray) -> None:
        """Put a unit vector (D,) under an id; a vector already there is replaced."""

    def remove(self, entry_id: int) -> None:
        """Forget an entry; an id that is not there is no error."""

    def search(self, vector: np.ndarray, k: int) -> list[Neighbour]:
        """The k nearest entries, nearest first, fewer when there are fewer."""

    def save(self, path: str | Path) -> None:
        """Write the index with its encoder_id and width."""

    def wait(self) -> None:
        """Until nothing is being built in the background."""
        return


def checked(vector: np.ndarray, dim: int) -> np.ndarray:
    """`vector` as contiguous float32 (D,). Raises RecipeError on another width or on NaN."""
    vector = np.ascontiguousarray(vector, np.float32)
    if vector.shape != (dim,):
        raise RecipeError(f"the index takes vectors of {dim} numbers, got shape {vector.shape}")
    if not np.isfinite(vector).all():
        raise RecipeError("the vector has numbers that are not finite")
    return vector


def write(
    path: str | Path, kind: str, encoder_id: str, dim: int, tensors: Mapping[str, np.ndarray]
) -> None:
    """Save `tensors` with what they are and a checksum over them."""
    about = {"schema": SCHEMA, "kind": kind, "encoder_id": encoder_id, "dim": str(dim)}
    about["checksum"] = _checksum(tensors)
    save_file(dict(tensors), str(path), metadata=about)


def kind_of(path: str | Path) -> str:
    """Which kind of index a file holds: ``flat`` or ``graph``."""
    return _open(path)[0].get("kind", "unknown")


def read(path: str | Path, kind: str, encoder_id: str, dim: int) -> dict[str, np.ndarray]:
    """The tensors of an index file made by the same encoder.

    Raises StoreError when the file is missing, damaged, of another kind, or of another encoder:
    similarities of two encoders mean nothing to each other, so the index must be rebuilt.
    """
    about, tensors = _open(path)
    expected = {"schema": SCHEMA, "kind": kind, "encoder_id": encoder_id, "dim": str(dim)}
    for name, value in expected.items():
        if about.get(name) != value:
            raise StoreError(
                f"{path} has {name} {about.get(name)!r}, not {value!r}; rebuild it from the store"
            )
    if about.get("checksum") != _checksum(tensors):
        raise StoreError(f"{path} is damaged (checksum); rebuild it from the store")
    return tensors


def _open(path: str | Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    try:
        with safe_open(str(path), framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except (SafetensorError, FileNotFoundError) as error:
        raise StoreError(f"cannot read an index from {path}: {error}") from error


def _checksum(tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
