"""Second-stage verifiers: may a similar question's answer stand in? They reject, and say why."""

from recollect.answers.verifiers.chain import Guards, InTurn
from recollect.answers.verifiers.contrast import Contrast
from recollect.answers.verifiers.coverage import Coverage, CoverageGuard
from recollect.answers.verifiers.pair import Pair, PairGuard

__all__ = ["Contrast", "Coverage", "CoverageGuard", "Guards", "InTurn", "Pair", "PairGuard"]
