"""Common words: a long list of words in which a few come often; which ones? Asks the cache to
aggregate over everything it saw instead of looking one place up.
"""

from __future__ import annotations

import re
from collections import Counter

from recollect.errors import RecipeError
from recollect.evaluate.tasks import sources
from recollect.evaluate.tasks.base import Case, Setting, Task

_WORD = re.compile(r"[a-z]{4,9}")


class CommonWords(Task):
    """The most frequent words of a list, most frequent first."""

    name = "common-words"
    title = "Common words"
    asked = 2

    def case(self, setting: Setting) -> Case:
        pool = self._pool(setting)
        common, rare = pool[: self.asked], pool[self.asked :]
        sizes = setting.encoder.count([f" {word}," for word in pool])
        per_word = sum(sizes) / len(sizes)
        total = int(setting.length / per_word)
        if total < 8 * self.asked:
            raise RecipeError(f"--length {setting.length} is too short for the common-words task")
        # Twice as many of the first as of the second …: the order of the answer is beyond doubt.
        repeats = [max(2, total // 4 // 2**rank) for rank in range(self.asked)]
        words = [w for w, count in zip(common, repeats, strict=True) for _ in range(count)]
        words += [rare[n % len(rare)] for n in range(total - len(words))]
        setting.rng.shuffle(words)
        text = "words = " + ", ".join(words)
        while len(setting.encoder.context(text)) > setting.length:
            words = words[: -max(1, len(words) // 50)]
            text = "words = " + ", ".join(words)
        ranked = [word for word, _ in Counter(words).most_common(self.asked)]
        question = setting.question(
            "\nmost_common =",
            f" {', '.join(ranked)}",
            chat=f"Which {self.asked} words come most often in the list above, most often first?",
        )
        return setting.case(text, [question], words=ranked)

    @staticmethod
    def _pool(setting: Setting) -> list[str]:
        """Different words of the sources, each of few tokens, in random order."""
        text = " ".join(sources.lines(setting.rng)[:2000])
        pool = sorted(set(_WORD.findall(text)))
        setting.rng.shuffle(pool)
        return pool[:400]
