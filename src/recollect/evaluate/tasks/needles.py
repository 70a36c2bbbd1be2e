"""Needles: lines with a key and a number hidden in source text, and asked for.

Four kinds, as in RULER (Hsieh et al. 2024): one needle, one among many, many values of one key,
and many keys in one question.
"""

from __future__ import annotations

from recollect.evaluate.tasks import facts
from recollect.evaluate.tasks.base import Case, Setting, Task
from recollect.evaluate.tasks.haystack import hide


class SingleNeedle(Task):
    """One line hidden, one asked."""

    name = "needle"
    title = "One needle"

    def case(self, setting: Setting) -> Case:
        (key,), value = facts.keys(setting.rng, 1), facts.value(setting.rng)
        text, depths = hide(setting, [facts.line(key, value)])
        return setting.case(text, [facts.ask(setting, key, value)], depths=depths)


class MultiKey(Task):
    """Many lines hidden, some of them asked, each in a question of its own."""

    name = "needle-keys"
    title = "One needle among eight"
    hidden = 8
    asked = 2

    def case(self, setting: Setting) -> Case:
        keys = facts.keys(setting.rng, self.hidden)
        values = [facts.value(setting.rng) for _ in keys]
        text, depths = hide(setting, [facts.line(k, v) for k, v in zip(keys, values, strict=True)])
        asked = setting.rng.sample(range(len(keys)), self.asked)
        questions = [facts.ask(setting, keys[n], values[n]) for n in asked]
        return setting.case(text, questions, depths=[depths[n] for n in asked])


class MultiValue(Task):
    """One key with several values in different places; all are asked, in their order."""

    name = "needle-values"
    title = "All values of one key"
    values = 3

    def case(self, setting: Setting) -> Case:
        key, *others = facts.keys(setting.rng, 4)
        values = [facts.value(setting.rng) for _ in range(self.values)]
        lines = [facts.line(key, value) for value in values]
        lines += [facts.line(other, facts.value(setting.rng)) for other in others]
        text, depths = hide(setting, lines, ordered=True)
        again = f"\n{facts.question(key)} "
        answer = [values[0]]
        for value in values[1:]:
            answer += [again, value]
        chat = f"In the text above, {self.values} lines give numbers of {key}; name all, in order."
        question = setting.question(again, *answer, chat=chat)
        return setting.case(text, [question], depths=depths[: self.values])


class MultiQuery(Task):
    """Several keys in one question."""

    name = "needle-queries"
    title = "Several needles at once"
    hidden = 8
    asked = 3

    def case(self, setting: Setting) -> Case:
        keys = facts.keys(setting.rng, self.hidden)
        values = [facts.value(setting.rng) for _ in keys]
        text, depths = hide(setting, [facts.line(k, v) for k, v in zip(keys, values, strict=True)])
        asked = setting.rng.sample(range(len(keys)), self.asked)
        names = ", ".join(keys[n] for n in asked)
        first, *rest = asked
        answer = [values[first]]
        for n in rest:
            answer += [f"\n{facts.question(keys[n])} ", values[n]]
        question = setting.question(
            f"\n# {names}\n{facts.question(keys[first])} ",
            *answer,
            chat=f"In the text above, lines give the numbers of {names}; name all, in this order.",
        )
        return setting.case(text, [question], depths=[depths[n] for n in asked])
