"""Needles: lines with a key and a number hidden in source text, and asked for.

Four kinds, as in RULER (Hsieh et al. 2024): one needle, one among many, many values of one key,
and many keys in one question.
"""

from __future__ import annotations

from recollect.evaluate.tasks import facts
from recollect.evaluate.tasks.base import Case, Setting, Task
from recollect.evaluate.tasks.haystack import hide
from recollect.zoo import needles


class SingleNeedle(Task):
    """One line hidden, one asked."""

    name = "needle"
    title = "One needle"

    def case(self, setting: Setting) -> Case:
        puzzle = needles.single(setting.rng, keys=1)
        text, depths = hide(setting, puzzle.planted)
        return setting.case(text, [facts.ask(setting, puzzle.asks[0])], depths=depths)


class MultiKey(Task):
    """Many lines hidden, some of them asked, each in a question of its own."""

    name = "needle-keys"
    title = "One needle among eight"
    hidden = 8
    asked = 2

    def case(self, setting: Setting) -> Case:
        puzzle = needles.single(setting.rng, keys=self.hidden)
        text, depths = hide(setting, puzzle.planted)
        questions = [facts.ask(setting, ask) for ask in puzzle.asks[: self.asked]]
        return setting.case(text, questions, depths=depths)


class MultiValue(Task):
    """Several values of one key, all to be recalled."""

    name = "needle-values"
    title = "All values of one key"
    hidden = 4
    values = 3

    def case(self, setting: Setting) -> Case:
        puzzle = needles.multi_value(setting.rng, keys=self.hidden, values=self.values)
        text, depths = hide(setting, puzzle.planted)
        return setting.case(text, [facts.ask(setting, puzzle.asks[0])], depths=depths)


class MultiQuery(Task):
    """Several keys in one question."""

    name = "needle-queries"
    title = "Several needles at once"
    hidden = 8
    asked = 3

    def case(self, setting: Setting) -> Case:
        puzzle = needles.single(setting.rng, keys=self.hidden)
        text, depths = hide(setting, puzzle.planted)
        question = facts.ask_all(setting, puzzle.asks[: self.asked])
        return setting.case(text, [question], depths=depths)
