"""Asking one case of one cache: the context goes in, the questions come, answers are scored."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from recollect.evaluate.caches import Variant, open_cache
from recollect.evaluate.subject import Subject
from recollect.evaluate.tasks import Case
from recollect.kv.report import CacheReport


@dataclass(frozen=True)
class Answers:
    """What a cache answered.

    Attributes:
        logits: for each question (A, V), predicting each answer token.
        report: the cache right after compression.
        prefill_seconds: time of the first forward pass, compression included.
    """

    logits: list[torch.Tensor]
    report: CacheReport
    prefill_seconds: float


@torch.inference_mode()
def ask(subject: Subject, variant: Variant, case: Case, mode: str) -> Answers:
    """Ask all questions of a case; the answers are teacher-forced.

    In *agnostic* mode the context alone is compressed. In *aware* mode the (first) question belongs
    to the prompt that is compressed, all but its last token: that one comes after compression, so
    that every answer token is predicted from the compressed cache.
    """
    talk = _Talk(subject, variant)
    try:
        if mode == "agnostic":
            talk.start(case.context_ids)
            for question in case.questions:
                talk.ask(question.ids, question.answer_ids, alone=not case.turns)
        else:
            for number, question in enumerate(case.questions):
                if case.turns and number > 0:
                    talk.ask(question.ids, question.answer_ids)
                else:
                    talk.start(torch.cat([case.context_ids, question.ids[:-1]]))
                    talk.ask(question.ids[-1:], question.answer_ids)
        assert talk.report is not None
        return Answers(talk.logits, talk.report, talk.prefill_seconds)
    finally:
        talk.close()


class _Talk:
    """A conversation with one cache, or with a new one for every prompt."""

    def __init__(self, subject: Subject, variant: Variant) -> None:
        self.subject = subject
        self.variant = variant
        self.cache: Any = None
        self.logits: list[torch.Tensor] = []
        self.report: CacheReport | None = None
        self.prefill_seconds = 0.0

    def start(self, prompt: torch.Tensor) -> None:
        """Compress a prompt (T,) in a new cache; the first one is what is reported."""
        self.close()
        self.cache = open_cache(self.subject.model, self.variant)
        started = time.perf_counter()
        self._forward(self.cache, prompt, 1)
        if self.report is None:
            self.prefill_seconds = time.perf_counter() - started
            self.report = self.cache.report()

    def ask(self, question: torch.Tensor, answer: torch.Tensor, *, alone: bool = False) -> None:
        """Note the logits (A, V) that predict the answer; `alone` leaves the cache as it was."""
        cache = self.cache.copy() if alone else self.cache
        logits = self._forward(cache, torch.cat([question, answer]), len(answer) + 1)
        self.logits.append(logits[:-1])
        if alone:
            cache.close()

    def close(self) -> None:
        """Free the cache."""
        if self.cache is not None:
            self.cache.close()
            self.cache = None

    def _forward(self, cache: Any, ids: torch.Tensor, last: int) -> torch.Tensor:
        """Logits (last, V) of the last tokens."""
        out = self.subject.model(
            input_ids=ids[None].to(self.subject.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=last,
        )
        return out.logits[0, -last:].cpu()
