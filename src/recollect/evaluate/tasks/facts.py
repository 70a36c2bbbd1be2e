"""Asking for the facts that needle tasks hide: `# red_fox 49213`, asked as `assert red_fox`.

The wording is the zoo's, so that training and evaluation agree; any language model can copy it.
"""

from __future__ import annotations

from collections.abc import Sequence

from recollect.evaluate.tasks.base import Question, Setting
from recollect.zoo.needles import Ask


def scored_parts(answer: str) -> list[str]:
    """An answer's words, and the spaces between them: those are not scored."""
    parts: list[str] = []
    for word in answer.split():
        parts += [" ", word] if parts else [word]
    return parts


def ask(setting: Setting, asked: Ask) -> Question:
    """The question for one key."""
    key = asked.question.split()[-1]
    return setting.question(
        f"\n{asked.question} ",
        *scored_parts(asked.answer),
        chat=f"In the text above, one line says what {key} is.",
    )


def ask_all(setting: Setting, asked: Sequence[Ask]) -> Question:
    """One question for several keys, named in advance; answered line by line."""
    keys = ", ".join(each.question.split()[-1] for each in asked)
    first, *rest = asked
    answer = scored_parts(first.answer)
    for each in rest:
        answer += [f"\n{each.question} ", *scored_parts(each.answer)]
    return setting.question(
        f"\nfind({keys})\n{first.question} ",
        *answer,
        chat=f"In the text above, lines say what each of {keys} is.",
    )
