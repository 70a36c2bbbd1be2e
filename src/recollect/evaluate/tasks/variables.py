"""Variable tracking: a value is given to a name, that name to another one, and so on."""

from __future__ import annotations

from recollect.evaluate.tasks import facts
from recollect.evaluate.tasks.base import Case, Setting, Task
from recollect.evaluate.tasks.haystack import hide
from recollect.zoo import needles


class VariableTracking(Task):
    """The way from the last name of a chain to its value, other chains around it."""

    name = "variables"
    title = "Variable tracking"
    chains = 3
    hops = 1

    def case(self, setting: Setting) -> Case:
        puzzle = needles.variables(setting.rng, chains=self.chains, hops=self.hops)
        text, depths = hide(setting, puzzle.planted)
        return setting.case(text, [facts.ask(setting, puzzle.asks[0])], depths=depths)
