"""Measures on logits made by hand."""

from __future__ import annotations

import math

import pytest
import torch

from recollect.evaluate.metrics import Score, mean, score

ALL = torch.ones(3, dtype=torch.bool)


def certain(*tokens: int, vocabulary: int = 5) -> torch.Tensor:
    return 50.0 * torch.nn.functional.one_hot(torch.tensor(tokens), vocabulary).float()


def test_the_right_answer_scores_full_marks():
    logits = certain(1, 2, 3)
    found = score(logits, torch.tensor([1, 2, 3]), logits, ALL)
    assert found.tokens == found.exact == 1.0
    assert found.logprob == pytest.approx(0.0, abs=1e-6)
    assert found.kl == pytest.approx(0.0, abs=1e-6)


def test_one_wrong_token_of_three_is_not_exact():
    found = score(certain(1, 2, 4), torch.tensor([1, 2, 3]), certain(1, 2, 3), ALL)
    assert found.tokens == pytest.approx(2 / 3)
    assert found.exact == 0.0
    assert found.kl > 10


def test_scaffolding_is_not_scored():
    scored = torch.tensor([True, False, True])
    found = score(certain(1, 0, 3), torch.tensor([1, 2, 3]), certain(1, 2, 3), scored)
    assert found.tokens == found.exact == 1.0
    assert found.kl == pytest.approx(0.0, abs=1e-6)


def test_log_probability_and_divergence_by_hand():
    ours, theirs = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.8, 0.2]])
    found = score(ours.log(), torch.tensor([0]), theirs.log(), torch.tensor([True]))
    assert found.logprob == pytest.approx(math.log(0.5), abs=1e-6)
    assert found.kl == pytest.approx(0.8 * math.log(1.6) + 0.2 * math.log(0.4), abs=1e-6)


def test_a_case_is_the_mean_of_its_questions():
    found = mean([Score(1.0, 1.0, -1.0, 0.0), Score(0.0, 0.0, -3.0, 1.0)])
    assert found == Score(0.5, 0.5, -2.0, 0.5)
    assert mean([Score(1.0, None, -1.0, 0.0)]).exact is None
