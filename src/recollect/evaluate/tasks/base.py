"""What a task is: something that makes cases, each a long context and questions about it.

A case is asked in one of two modes, which are never mixed: *agnostic* (the context is compressed
before any question is known) and *aware* (the question is part of the prompt that is compressed).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from recollect.evaluate.prompts import Encoder

MODES = ("agnostic", "aware")


@dataclass(frozen=True)
class Question:
    """One question and the answer that counts as right.

    Attributes:
        ids: (Q,) token ids of the question.
        answer_ids: (A,) token ids of the answer.
        scored: (A,) which answer tokens count; scaffolding between two values does not.
    """

    ids: torch.Tensor
    answer_ids: torch.Tensor
    scored: torch.Tensor


@dataclass(frozen=True)
class Case:
    """One context and its questions.

    Attributes:
        context: the text of the context.
        context_ids: (T,) its token ids.
        questions: asked one by one, each about the same compressed context …
        turns: … or, when True, one after the other in one conversation.
        about: facts for the record and for tests, e.g. the depth of a needle.
    """

    context: str
    context_ids: torch.Tensor
    questions: tuple[Question, ...]
    turns: bool = False
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Longest sequence that asking this case produces."""
        asked = [len(q.ids) + len(q.answer_ids) for q in self.questions]
        return len(self.context_ids) + (sum(asked) if self.turns else max(asked))


@dataclass(frozen=True)
class Setting:
    """What a task is given to make a case.

    Attributes:
        encoder: the tokenizer at hand.
        length: tokens of the context, at most.
        rng: the only source of randomness.
    """

    encoder: Encoder
    length: int
    rng: random.Random

    def question(self, prompt: str, *answer: str, chat: str) -> Question:
        """A question from text.

        Args:
            prompt: the completion form, e.g. ``\\nassert red_fox``.
            answer: parts of the answer; every second one is scaffolding that is not scored.
            chat: the question in words, used in front of the prompt with a chat template.
        """
        if self.encoder.chat:
            prompt = f"\n\n{chat}\nComplete this line, writing only what is missing:{prompt}"
        ids, *parts = self.encoder.parts(prompt, *answer)
        scored = [torch.full((len(part),), n % 2 == 0) for n, part in enumerate(parts)]
        return Question(ids, torch.cat(parts), torch.cat(scored))

    def case(self, context: str, questions: list[Question], **about: Any) -> Case:
        """A case of a context text."""
        turns = bool(about.pop("turns", False))
        return Case(context, self.encoder.context(context), tuple(questions), turns, about)


class Task:
    """Contract of a task: a name, a title, and cases that depend on nothing but their setting."""

    name: ClassVar[str]
    title: ClassVar[str]
    exact: ClassVar[bool] = True  # whether answering exactly means anything

    def case(self, setting: Setting) -> Case:
        """A new case. Raises RecipeError when the length is too short for the task."""
        raise TypeError(f"{type(self).__name__} makes no cases")  # every task defines it
