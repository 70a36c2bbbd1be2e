"""In-context caching: past requests and answers as examples for a smaller model (IC-Cache)."""

from __future__ import annotations

from recollect.answers.examples.example import Example
from recollect.answers.examples.incontext import InContextCache
from recollect.answers.examples.manager import ManagerPolicy
from recollect.answers.examples.results import Maintained, Observed, Prepared, Used
from recollect.answers.examples.router import Model, RouterPolicy
from recollect.answers.examples.selector import SelectorPolicy

__all__ = [
    "Example",
    "InContextCache",
    "Maintained",
    "ManagerPolicy",
    "Model",
    "Observed",
    "Prepared",
    "RouterPolicy",
    "SelectorPolicy",
    "Used",
]
