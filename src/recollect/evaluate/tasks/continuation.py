"""Perplexity of a continuation: how well the compressed past predicts the text that follows."""

from __future__ import annotations

from recollect.evaluate.tasks import sources
from recollect.evaluate.tasks.base import Case, Question, Setting, Task


class Continuation(Task):
    """The next tokens of a file, after a short lead the model reads uncompressed."""

    name = "perplexity"
    title = "Perplexity of a continuation"
    exact = False
    lead = 16
    tokens = 96

    def case(self, setting: Setting) -> Case:
        needed = setting.length + self.lead + self.tokens
        text = "".join(self._long_text(setting, needed))
        ids = setting.encoder.context(text)[:needed]
        context, rest = ids[: setting.length], ids[setting.length :]
        question, answer = rest[: self.lead], rest[self.lead :]
        scored = answer == answer
        shown = setting.encoder.tokenizer.decode(context)
        return Case(shown, context, (Question(question, answer, scored),))

    @staticmethod
    def _long_text(setting: Setting, tokens: int) -> list[str]:
        """Lines that make more than so many tokens."""
        found: list[str] = []
        total = 0
        for line in sources.lines(setting.rng):
            found.append(line)
            total += len(line)
            if total > 12 * tokens:
                break
        return found
