"""A red-team kit for semantic caches: plants colliding keys with harmless canaries, and counts."""

from recollect.answers.redteam.arena import DEFENCES, LEVELS, Kit, Row, attack, threshold_of
from recollect.answers.redteam.gradient import GradientSearch

__all__ = ["DEFENCES", "LEVELS", "GradientSearch", "Kit", "Row", "attack", "threshold_of"]
