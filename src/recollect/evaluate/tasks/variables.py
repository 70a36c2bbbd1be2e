"""Variable tracking: a value is assigned to a name, the name to another name, and so on."""

from __future__ import annotations

from itertools import pairwise

from recollect.evaluate.tasks import facts
from recollect.evaluate.tasks.base import Case, Setting, Task
from recollect.evaluate.tasks.haystack import hide


class VariableTracking(Task):
    """The value at the end of a chain of assignments, other chains around it."""

    name = "variables"
    title = "Variable tracking"
    chains = 3
    hops = 2

    def case(self, setting: Setting) -> Case:
        names = facts.keys(setting.rng, self.chains * (self.hops + 1))
        lines: list[str] = []
        ends: list[tuple[str, str]] = []
        for start in range(0, len(names), self.hops + 1):
            chain, value = names[start : start + self.hops + 1], facts.value(setting.rng)
            lines.append(facts.line(chain[0], value))
            lines += [f"{b} = {a}" for a, b in pairwise(chain)]
            ends.append((chain[-1], value))
        text, _ = hide(setting, lines, ordered=True)
        last, value = setting.rng.choice(ends)
        question = setting.question(
            f"\n{facts.question(last)} ",
            value,
            chat=f"Variables are assigned in the text above. Which number does {last} have?",
        )
        return setting.case(text, [question], value=value, hops=self.hops)
