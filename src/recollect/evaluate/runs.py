"""A run: every recipe at every keep answers every case of every task, and is timed.

The loop goes case by case: the host's own cache answers first and gives the reference, then every
recipe is asked the same. Each measurement is one line on disk at once, so a run can be stopped and
taken up again.
"""

from __future__ import annotations

import platform
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from recollect.errors import RecipeError
from recollect.evaluate import metrics, speed, tasks
from recollect.evaluate.asking import Answers, ask
from recollect.evaluate.caches import HOST, Variant, open_cache, variants
from recollect.evaluate.prompts import Encoder
from recollect.evaluate.results import RunFolder, open_run
from recollect.evaluate.subject import Subject
from recollect.evaluate.tasks import MODES, Case, Setting

Record = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """Everything that decides what is measured.

    Attributes:
        recipes: specifications; the host's own cache is always measured too.
        keeps: fractions or numbers of tokens kept, for recipes that drop or merge.
        tasks, modes, lengths: what is asked, how, and of how long contexts (in tokens).
        seeds: the cases of different seeds are different.
        cases: per task, length and seed.
        chat: apply the tokenizer's chat template.
        decode_steps: tokens timed one by one; 0 times nothing.
        speed_rounds: how often everything is timed.
    """

    recipes: tuple[str, ...]
    keeps: tuple[float | int, ...] = (0.5, 0.25, 0.1)
    tasks: tuple[str, ...] = tuple(tasks.TASKS)
    modes: tuple[str, ...] = MODES
    lengths: tuple[int, ...] = (1024,)
    seeds: int = 3
    cases: int = 4
    chat: bool = False
    decode_steps: int = 32
    speed_rounds: int = 3

    def __post_init__(self) -> None:
        for name in self.tasks:
            tasks.find(name)
        for mode in self.modes:
            if mode not in MODES:
                raise RecipeError(f"unknown mode '{mode}'; there are: {', '.join(MODES)}")
        for name in ("seeds", "cases"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("decode_steps", "speed_rounds"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name} must not be negative, got {getattr(self, name)}")
        for length in self.lengths:
            if length < 64:
                raise RecipeError(f"length must be at least 64 tokens, got {length}")

    def variants(self) -> list[Variant]:
        """What is compared, the host's own cache first. Raises RecipeError."""
        return variants(["full", *self.recipes], list(self.keeps))


@dataclass
class Progress:
    """What a run tells while it goes on.

    Attributes:
        total, done: measurements.
        notify: called after each with the record, or None for one that was there already.
    """

    total: int = 0
    done: int = 0
    notify: Callable[[Progress, Record | None], None] = field(default=lambda *_: None)

    def step(self, record: Record | None) -> None:
        self.done += 1
        self.notify(self, record)


def run(
    subject: Subject,
    settings: Settings,
    out: Path,
    *,
    command: str = "",
    progress: Progress | None = None,
) -> list[Record]:
    """Measure what is not measured yet, and return all records of the run.

    Raises:
        RecipeError, HostError: something asked for cannot be done; before anything is measured,
            where that can be known.
        StoreError: the folder cannot be written, or holds another run.
    """
    progress = progress or Progress()
    compared = settings.variants()
    longest = max(settings.lengths) + settings.decode_steps
    subject.check_length(longest)
    for variant in compared:
        open_cache(subject.model, variant).close()  # what cannot be done is told at once
    about = {
        "settings": asdict(settings),
        "model": subject.describe(),
        "versions": versions(),
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with open_run(out, about) as folder:
        _Loop(subject, settings, compared, folder, progress).go()
        return folder.records


def versions() -> dict[str, str]:
    """What the measurements depend on."""
    packages = {name: metadata.version(name) for name in ("recollect", "torch", "transformers")}
    return {"python": platform.python_version(), **packages,
            "threads": str(torch.get_num_threads()), "machine": platform.machine()}  # fmt: skip


@dataclass
class _Loop:
    subject: Subject
    settings: Settings
    compared: list[Variant]
    folder: RunFolder
    progress: Progress

    def go(self) -> None:
        self.encoder = Encoder(self.subject.tokenizer, chat=self.settings.chat)
        self.done = {_key(record) for record in self.folder.records}
        cells = list(self._cells())
        timed = self._timed()
        self.progress.total = len(self.compared) * len(cells) + timed
        for task, mode, length, seed, number in cells:
            self._case(task, mode, length, seed, number)
        if timed:
            for length in self.settings.lengths:
                self._speed(length)

    def _cells(self) -> Iterator[tuple[str, str, int, int, int]]:
        """Seed by seed, so that a stopped run has something of everything."""
        s = self.settings
        for seed in range(s.seeds):
            for number in range(s.cases):
                for length in s.lengths:
                    for task in s.tasks:
                        for mode in s.modes:
                            yield task, mode, length, seed, number

    def _case(self, task: str, mode: str, length: int, seed: int, number: int) -> None:
        where = {"task": task, "mode": mode, "length": length, "seed": seed, "case": number}
        pending = []
        for variant in self.compared:
            if _key({"kind": "case", **asdict(variant), **where}) in self.done:
                self.progress.step(None)
            else:
                pending.append(variant)
        if not pending:
            return
        case = make_case(self.encoder, task, length, seed, number)
        self.subject.check_length(case.tokens)
        reference = ask(self.subject, Variant(HOST, 1.0), case, mode)
        for variant in pending:
            is_host = variant.recipe == HOST
            answers = reference if is_host else ask(self.subject, variant, case, mode)
            shape = seed == 0 and number == 0 and task == self.settings.tasks[0]
            self._add({
                "kind": "case", **asdict(variant), **where,
                "tokens_in": len(case.context_ids),
                "metrics": judge(task, case, answers, reference).as_dict(),
                "nbytes": answers.report.nbytes,
                "dense_nbytes": answers.report.dense_nbytes,
                "prefill_seconds": answers.prefill_seconds,
                "compress_seconds": answers.report.seconds,
                **({"kept": [list(layer.kept) for layer in answers.report.layers],
                    "seen": answers.report.layers[0].seen}
                   if shape and answers.report.layers else {}),
            })  # fmt: skip

    def _timed(self) -> int:
        s = self.settings
        rounds = s.speed_rounds if s.decode_steps else 0
        return rounds * len(self.compared) * len(s.lengths)

    def _speed(self, length: int) -> None:
        """Timed anew as a whole if a part is missing: rounds compare what ran side by side."""
        s = self.settings
        wanted = {
            _key({"kind": "speed", **asdict(v), "length": length, "round": number})
            for v in self.compared
            for number in range(s.speed_rounds)
        }
        if wanted <= self.done:
            for _ in wanted:
                self.progress.step(None)
            return
        case = make_case(self.encoder, "perplexity", length, 0, 0)
        for record in speed.rounds(
            self.subject,
            self.compared,
            case.context_ids,
            steps=s.decode_steps,
            count=s.speed_rounds,
        ):
            self._add({"kind": "speed", "length": length, **record})

    def _add(self, record: Record) -> None:
        self.folder.append(record)
        self.progress.step(record)


def make_case(encoder: Encoder, task: str, length: int, seed: int, number: int) -> Case:
    """The case of that number: the same for every recipe, mode and machine."""
    rng = random.Random(f"{task}/{length}/{seed}/{number}")
    return tasks.find(task).case(Setting(encoder, length, rng))


def judge(task: str, case: Case, answers: Answers, reference: Answers) -> metrics.Score:
    """The mean score over a case's questions."""
    exact = tasks.find(task).exact
    return metrics.mean([
        metrics.score(ours, question.answer_ids, theirs, question.scored, exact=exact)
        for question, ours, theirs in zip(
            case.questions, answers.logits, reference.logits, strict=True
        )
    ])  # fmt: skip


_NAMES = ("kind", "recipe", "keep", "task", "mode", "length", "seed", "case", "round")


def _key(record: Record) -> tuple[Any, ...]:
    """What a record measures; two records with one key are the same measurement."""
    return tuple(record.get(name) for name in _NAMES)
