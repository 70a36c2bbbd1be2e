"""Decisions: which of the nearest entries, if any, may answer a query."""

from recollect.answers.decisions.category import CategoryRule, PerCategory
from recollect.answers.decisions.chain import Chain
from recollect.answers.decisions.classify import Centroids
from recollect.answers.decisions.load import LoadMeter, relaxed_similarity, relaxed_ttl
from recollect.answers.decisions.pooled import Pooled
from recollect.answers.decisions.static import Static
from recollect.answers.decisions.verified import Verified

__all__ = [
    "CategoryRule",
    "Centroids",
    "Chain",
    "LoadMeter",
    "PerCategory",
    "Pooled",
    "Static",
    "Verified",
    "relaxed_similarity",
    "relaxed_ttl",
]
