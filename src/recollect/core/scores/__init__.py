"""Scores: what a cached token is worth, (B, K, T) float32, higher = keep. One idea a file."""

from recollect.core.scores.attention import heavy_hitters, snapkv, tova, window_votes
from recollect.core.scores.expected import (
    expected_attention,
    query_moments,
    query_statistics,
    query_sums,
)
from recollect.core.scores.keys import key_norm, keydiff
from recollect.core.scores.values import value_reweight

__all__ = [
    "expected_attention",
    "heavy_hitters",
    "key_norm",
    "keydiff",
    "query_moments",
    "query_statistics",
    "query_sums",
    "snapkv",
    "tova",
    "value_reweight",
    "window_votes",
]
