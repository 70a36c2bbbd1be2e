"""The category of a query by the nearest centroid of labelled examples; doubt has a name: "".

An empty category is the unknown one, which policies treat by their strictest rule, so a wrong
guess is only made where one centroid is clearly nearer than those of all other categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from recollect.answers.encoders.base import Encoder, unit_rows
from recollect.errors import RecipeError, StoreError

SCHEMA = "recollect-centroids-1"


@dataclass(frozen=True, eq=False)
class Centroids:
    """Mean directions of labelled examples (stage ``classifier``).

    Several centroids may belong to one category: the topics within it.

    Attributes:
        vectors: (N, D) unit rows.
        categories: category of each row.
        encoder_id: whose vectors they are.
        min_similarity: nearest centroid at least this near, or the category is unknown.
        margin: nearest centroid of another category at least this much farther.
    """

    vectors: np.ndarray
    categories: tuple[str, ...]
    encoder_id: str
    min_similarity: float = 0.4
    margin: float = 0.01
    _names: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.vectors) != len(self.categories) or not len(self.categories):
            raise RecipeError("centroids need one category for each of at least one vector")
        object.__setattr__(self, "_names", np.array(self.categories))

    def classify(self, query: str, vector: np.ndarray | None) -> str:
        """The category, or an empty string in doubt (also when there is no vector)."""
        if vector is None:
            return ""
        similarities = self.vectors @ vector
        best = int(similarities.argmax())
        others = similarities[self._names != self.categories[best]]
        ahead = similarities[best] - others.max() if len(others) else np.inf
        if similarities[best] < self.min_similarity or ahead < self.margin:
            return ""
        return self.categories[best]

    def save(self, path: str | Path) -> None:
        """Write as safetensors."""
        about = {"schema": SCHEMA, "encoder_id": self.encoder_id}
        about |= {"categories": "\n".join(self.categories)}
        about |= {"min_similarity": repr(self.min_similarity), "margin": repr(self.margin)}
        save_file({"vectors": np.ascontiguousarray(self.vectors)}, str(path), metadata=about)

    @classmethod
    def load(cls, path: str | Path, encoder_id: str) -> Centroids:
        """Read centroids of this encoder. Raises StoreError when the file holds anything else."""
        try:
            with safe_open(str(path), framework="np") as file:
                about, vectors = file.metadata() or {}, file.get_tensor("vectors")
        except (SafetensorError, FileNotFoundError) as error:
            raise StoreError(f"cannot read centroids from {path}: {error}") from error
        if about.get("schema") != SCHEMA or about.get("encoder_id") != encoder_id:
            raise StoreError(f"{path} holds no centroids of {encoder_id}; fit them again")
        categories = tuple(about["categories"].split("\n"))
        limits = float(about["min_similarity"]), float(about["margin"])
        return cls(vectors, categories, encoder_id, *limits)


def fit_centroids(
    examples: Mapping[str, Sequence[str]],
    encoder: Encoder,
    category_of: Mapping[str, str] | None = None,
    **limits: float,
) -> Centroids:
    """One centroid per topic of labelled example texts.

    Args:
        examples: topic -> texts.
        encoder: the one the cache uses.
        category_of: topic -> category; a topic is its own category when None.
        limits: `min_similarity` and `margin` of the result.
    """
    means = np.array([encoder.encode(list(texts)).mean(0) for texts in examples.values()])
    categories = tuple(category_of[topic] if category_of else topic for topic in examples)
    return Centroids(unit_rows(means), categories, encoder.encoder_id, **limits)
