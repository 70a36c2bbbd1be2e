"""Multi-turn: several questions about one context, in one conversation, after compression.

A cache compressed with the first question in view must still serve the second one.
"""

from __future__ import annotations

from recollect.evaluate.tasks import facts
from recollect.evaluate.tasks.base import Case, Setting, Task
from recollect.evaluate.tasks.haystack import hide


class MultiTurn(Task):
    """Three turns about eight hidden lines."""

    name = "turns"
    title = "Several turns, one context"
    hidden = 8
    asked = 3

    def case(self, setting: Setting) -> Case:
        keys = facts.keys(setting.rng, self.hidden)
        values = [facts.value(setting.rng) for _ in keys]
        text, depths = hide(setting, [facts.line(k, v) for k, v in zip(keys, values, strict=True)])
        asked = setting.rng.sample(range(len(keys)), self.asked)
        questions = [facts.ask(setting, keys[n], values[n]) for n in asked]
        return setting.case(text, questions, turns=True, depths=[depths[n] for n in asked])
