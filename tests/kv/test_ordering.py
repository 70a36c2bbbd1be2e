"""The orderings the papers claim, on trained models: better recipes keep what matters.

Quality is the mean log-probability of the right answer's tokens (graded: a tiny model keeps every
digit in one place), over cases of several seeds, at equal numbers of tokens kept. A difference
counts when it exceeds its own standard error over the paired cases.
"""

from __future__ import annotations

import random
import statistics

import pytest

from recollect.evaluate import subject
from recollect.evaluate.asking import ask
from recollect.evaluate.caches import Variant
from recollect.evaluate.metrics import mean, score
from recollect.evaluate.prompts import Encoder
from recollect.evaluate.tasks import TASKS
from recollect.evaluate.tasks.base import Setting

SEEDS, CASES, LENGTH = 3, 6, 512
WINDOW = "window=16"


class Bench:
    """Log-probabilities case by case; every variant sees the same cases."""

    def __init__(self, name):
        self.subject = subject.load(name)
        self.cases, self.answers = {}, {}

    def case(self, task, seed):
        if (task, seed) not in self.cases:
            encoder = Encoder(self.subject.tokenizer)
            setting = Setting(encoder, LENGTH, random.Random(f"{task} {seed}"))
            self.cases[task, seed] = TASKS[task].case(setting)
        return self.cases[task, seed]

    def ask(self, spec, keep, task, mode, seed):
        key = (spec, keep, task, mode, seed)
        if key not in self.answers:
            case = self.case(task, seed)
            self.answers[key] = ask(self.subject, Variant(spec, keep), case, mode).logits
        return self.answers[key]

    def logprobs(self, spec, keep, task="needle-keys", mode="aware"):
        """One number per case."""
        found = []
        for seed in range(SEEDS * CASES):
            case = self.case(task, seed)
            logits = self.ask(spec, keep, task, mode, seed)
            full = self.ask("host", 1.0, task, mode, seed)
            scores = [
                score(ours, q.answer_ids, theirs, q.scored, exact=False)
                for ours, theirs, q in zip(logits, full, case.questions, strict=True)
            ]
            found.append(mean(scores).logprob)
        return found


def assert_better(better, worse):
    """Paired cases: the mean difference exceeds its standard error."""
    differences = [a - b for a, b in zip(better, worse, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    gain = statistics.fmean(differences)
    assert gain > error, f"gain {gain:.3f} nats, standard error {error:.3f}"


@pytest.fixture(scope="module", params=["tiny-llama", "tiny-qwen"])
def bench(request):
    return Bench(request.param)


SNAPKV = f"snapkv({WINDOW})"


def test_with_the_question_in_view_attention_beats_recency(bench):
    assert_better(bench.logprobs(SNAPKV, 0.25), bench.logprobs("streaming-llm", 0.25))


def test_with_the_question_in_view_a_window_of_queries_beats_one_or_all(bench):
    window = bench.logprobs(SNAPKV, 0.25)
    assert_better(window, bench.logprobs("tova", 0.25))
    assert_better(window, bench.logprobs("h2o", 0.25))


def test_heavy_hitters_beat_recency(bench):
    assert_better(
        bench.logprobs("h2o", 0.25, task="code", mode="agnostic"),
        bench.logprobs("streaming-llm", 0.25, task="code", mode="agnostic"),
    )


def test_without_the_question_expected_attention_beats_the_window(bench):
    assert_better(
        bench.logprobs("expected-attention", 0.5, mode="agnostic"),
        bench.logprobs(SNAPKV, 0.5, mode="agnostic"),
    )


def test_without_the_question_trained_heads_beat_every_score(bench):
    trained = bench.logprobs("duo-attention", 0.5, mode="agnostic")
    for other in ("expected-attention", SNAPKV, "h2o", "streaming-llm"):
        assert_better(trained, bench.logprobs(other, 0.5, mode="agnostic"))


def test_merging_neighbours_beats_dropping_them(bench):
    merged = bench.logprobs("chelsea", 0.5, mode="agnostic")
    for other in ("streaming-llm", SNAPKV):
        assert_better(merged, bench.logprobs(other, 0.5, mode="agnostic"))


def test_weighing_merged_tokens_by_their_count_helps(bench):
    assert_better(
        bench.logprobs("chelsea", 0.25, mode="agnostic"),
        bench.logprobs("chelsea(weigh=False)", 0.25, mode="agnostic"),
    )


def test_fewer_bits_cost_more(bench):
    quality = [
        statistics.fmean(bench.logprobs(f"kivi(bits={bits}, recent=32)", 1.0, mode="agnostic"))
        for bits in (8, 4, 2)
    ]
    full = statistics.fmean(bench.logprobs("host", 1.0, mode="agnostic"))
    assert quality[0] == pytest.approx(full, abs=0.02)
    assert quality[1] == pytest.approx(full, abs=0.1)
    assert quality[2] < quality[1]


def test_encoding_beats_dropping_at_equal_bytes(bench):
    """Four bits and their scales take 5/32 of float32, the exact window the rest of the quarter."""
    assert_better(bench.logprobs("kivi(bits=4, recent=32)", 1.0), bench.logprobs(SNAPKV, 0.25))
