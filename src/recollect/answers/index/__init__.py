"""Vector indices: which of the kept texts are nearest to this one."""

from recollect.answers.index.base import Neighbour, VectorIndex
from recollect.answers.index.flat import FlatIndex
from recollect.answers.index.growing import GrowingIndex

__all__ = ["FlatIndex", "GrowingIndex", "Neighbour", "VectorIndex"]
