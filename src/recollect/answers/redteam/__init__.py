"""A red-team kit for semantic caches: plants colliding keys with harmless canaries, and counts."""

from recollect.answers.redteam.arena import DEFENCES, LEVELS, Row, attack, threshold_of

__all__ = ["DEFENCES", "LEVELS", "Row", "attack", "threshold_of"]
