"""Encoders: texts to unit vectors whose cosine says how alike the texts are."""

from recollect.answers.encoders.base import Encoder, make_encoder, unit_rows
from recollect.answers.encoders.ngram import NgramEncoder
from recollect.answers.encoders.projection import ProjectedEncoder, Projection, fit_pca

__all__ = [
    "Encoder",
    "NgramEncoder",
    "ProjectedEncoder",
    "Projection",
    "fit_pca",
    "make_encoder",
    "unit_rows",
]
