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
    to the prompt that is compressed; as in `generate`, the first answer token is then predicted by
    the prompt's own forward pass.
    """
    return _ask_agnostic(subject, variant, case) if mode == "agnostic" else _ask_aware(
        subject, variant, case
    )  # fmt: skip


def _ask_agnostic(subject: Subject, variant: Variant, case: Case) -> Answers:
    cache = open_cache(subject.model, variant)
    try:
        _, seconds = _forward(subject, cache, case.context_ids, 1)
        report = cache.report()
        logits = []
        for question in case.questions:
            used = cache if case.turns or len(case.questions) == 1 else cache.copy()
            asked = torch.cat([question.ids, question.answer_ids])
            out, _ = _forward(subject, used, asked, len(question.answer_ids) + 1)
            logits.append(out[:-1])
            if used is not cache:
                used.close()
    finally:
        cache.close()
    return Answers(logits, report, seconds)


def _ask_aware(subject: Subject, variant: Variant, case: Case) -> Answers:
    logits: list[torch.Tensor] = []
    report, seconds, cache = None, 0.0, None
    try:
        for question in case.questions:
            if cache is None or not case.turns:
                if cache is not None:
                    cache.close()
                cache = open_cache(subject.model, variant)
                prompt = torch.cat([case.context_ids, question.ids])
                first, took = _forward(subject, cache, prompt, 1)
                if report is None:
                    report, seconds = cache.report(), took
                rest, _ = _forward(subject, cache, question.answer_ids, len(question.answer_ids))
                logits.append(torch.cat([first, rest[:-1]]))
            else:
                asked = torch.cat([question.ids, question.answer_ids])
                out, _ = _forward(subject, cache, asked, len(question.answer_ids) + 1)
                logits.append(out[:-1])
    finally:
        if cache is not None:
            cache.close()
    assert report is not None
    return Answers(logits, report, seconds)


def _forward(
    subject: Subject, cache: Any, ids: torch.Tensor, last: int
) -> tuple[torch.Tensor, float]:
    """Logits (last, V) of the last tokens, and the seconds it took."""
    started = time.perf_counter()
    out = subject.model(
        input_ids=ids[None].to(subject.device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=last,
    )
    if subject.device.type == "cuda":
        torch.cuda.synchronize()
    return out.logits[0, -last:].cpu(), time.perf_counter() - started
