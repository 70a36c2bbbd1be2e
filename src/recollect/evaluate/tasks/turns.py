"""Multi-turn: several questions about one context, in one conversation, after compression.

A cache compressed with the first question in view must still serve the second one.
"""

from __future__ import annotations

from recollect.evaluate.tasks import facts
from recollect.evaluate.tasks.base import Case, Setting, Task
from recollect.evaluate.tasks.haystack import hide
from recollect.zoo import needles


class MultiTurn(Task):
    """Three turns about eight hidden lines."""

    name = "turns"
    title = "Several turns, one context"
    hidden = 8
    asked = 3

    def case(self, setting: Setting) -> Case:
        puzzle = needles.single(setting.rng, keys=self.hidden)
        text, depths = hide(setting, puzzle.planted)
        questions = [facts.ask(setting, ask) for ask in puzzle.asks[: self.asked]]
        return setting.case(text, questions, turns=True, depths=depths)
