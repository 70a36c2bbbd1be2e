"""A linear map behind an encoder: narrower vectors (PCA) or vectors trained for a task.

PCA after an encoder is MeanCache's compression (Gill et al. 2024, arXiv 2403.02694). Cosines after
a projection are not the encoder's cosines: thresholds must be calibrated again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from recollect.answers.encoders.base import Encoder, unit_rows
from recollect.errors import RecipeError, StoreError

SCHEMA = "recollect-projection-1"


@dataclass(frozen=True, eq=False)
class Projection:
    """x -> (x - mean) @ matrix, then length one.

    Attributes:
        matrix: (D, d) float32.
        mean: (D,) float32; zeros where the map is a plain layer without bias.
        encoder_id: the encoder whose vectors it was made from; it refuses others.
        name: short name, e.g. ``pca64``; part of the projected encoder's identity.
    """

    matrix: np.ndarray
    mean: np.ndarray
    encoder_id: str
    name: str

    @property
    def digest(self) -> str:
        """Eight hex digits of the weights."""
        payload = self.matrix.astype("<f4").tobytes() + self.mean.astype("<f4").tobytes()
        return hashlib.sha256(payload).hexdigest()[:8]

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """(B, D) -> (B, d) float32, unit rows."""
        return unit_rows((vectors - self.mean) @ self.matrix)

    def save(self, path: str | Path) -> None:
        """Write the projection as safetensors."""
        tensors = {
            "matrix": np.ascontiguousarray(self.matrix, np.float32),
            "mean": np.ascontiguousarray(self.mean, np.float32),
        }
        about = {"schema": SCHEMA, "encoder_id": self.encoder_id, "name": self.name}
        save_file(tensors, str(path), metadata=about)

    @classmethod
    def load(cls, path: str | Path) -> Projection:
        """Read a projection. Raises StoreError when the file is missing or something else."""
        try:
            with safe_open(str(path), framework="np") as file:
                about = file.metadata() or {}
                if about.get("schema") != SCHEMA:
                    raise StoreError(f"{path} is not a projection (schema {about.get('schema')})")
                matrix, mean = file.get_tensor("matrix"), file.get_tensor("mean")
        except (SafetensorError, FileNotFoundError) as error:
            raise StoreError(f"cannot read a projection from {path}: {error}") from error
        return cls(matrix, mean, about["encoder_id"], about["name"])


class ProjectedEncoder:
    """An encoder followed by a projection made for it."""

    def __init__(self, encoder: Encoder, projection: Projection) -> None:
        if projection.encoder_id != encoder.encoder_id or len(projection.matrix) != encoder.dim:
            raise RecipeError(
                f"the projection was made for {projection.encoder_id}, not {encoder.encoder_id}"
            )
        self.encoder, self.projection = encoder, projection
        self.dim = projection.matrix.shape[1]
        self.encoder_id = f"{encoder.encoder_id}+{projection.name}-{projection.digest}"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (B, d) float32, unit rows."""
        return self.projection.apply(self.encoder.encode(texts))


def fit_pca(vectors: np.ndarray, dim: int, encoder_id: str, *, centre: bool = False) -> Projection:
    """Principal components of (N, D) vectors, the `dim` widest ones.

    With `centre=False` the components, fitted on centred data, are applied to vectors as they are:
    a layer without bias, as MeanCache does. With dim = D that is a rotation: cosines stay.
    Raises RecipeError when there are too few vectors for so many components.
    """
    if not 1 <= dim <= min(vectors.shape):
        raise RecipeError(f"PCA to {dim} needs 1 <= dim <= {min(vectors.shape)} for these vectors")
    mean = vectors.mean(0, dtype=np.float64)
    covariance = np.cov(vectors, rowvar=False, dtype=np.float64)
    widest = np.linalg.eigh(covariance)[1][:, ::-1][:, :dim]
    # eigh leaves signs open; the largest entry of a component is made positive.
    largest = np.take_along_axis(widest, np.abs(widest).argmax(0)[None], 0)
    matrix = (widest * np.sign(largest)).astype(np.float32)
    offset = mean if centre else np.zeros_like(mean)
    return Projection(matrix, offset.astype(np.float32), encoder_id, f"pca{dim}")
