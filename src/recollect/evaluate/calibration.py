"""Texts that tell which heads retrieve: puzzles of the tasks, with weight on the answers."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch

from recollect.evaluate.prompts import Encoder
from recollect.evaluate.subject import Subject
from recollect.evaluate.tasks import TASKS
from recollect.evaluate.tasks.base import Setting

TASK = "needle-keys"


def retrieval_texts(
    subject: Subject, *, steps: int, length: int, seed: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`steps` batches of one text: a context, a question about it, and its answer.

    Yields (input_ids (1, T), weight (1, T)) as `recollect.kv.calibrate_gates` takes them; only
    answer tokens have a weight. Seeds are other ones than those of evaluation runs.

    Raises HostError when `length` is more than the model's context.
    """
    encoder = Encoder(subject.tokenizer)
    for step in range(steps):
        setting = Setting(encoder, length, random.Random(f"calibration {seed} {step}"))
        case = TASKS[TASK].case(setting)
        subject.check_length(case.tokens)
        question = setting.rng.choice(case.questions)
        ids = torch.cat([case.context_ids, question.ids, question.answer_ids])
        weight = torch.zeros(len(ids))
        # The hidden state before a token is what predicts it.
        weight[-len(question.answer_ids) - 1 : -1] = 1.0
        yield ids[None].to(subject.device), weight[None]
