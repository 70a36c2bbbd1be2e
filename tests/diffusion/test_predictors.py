"""Forecasts: worked numbers, what each is exact on, and rows that were computed at other times."""

from __future__ import annotations

import math

import pytest
import torch

from recollect.diffusion.predictors import FoCa, History, Modes, Predictor, Reuse, Taylor
from recollect.errors import RecipeError


def told(predictor: Predictor, points: list[tuple[float, float]], rows: int = 1) -> History:
    history, every = History(), torch.ones(rows, dtype=torch.bool)
    for moment, value in points:
        moments = torch.full((rows,), moment, dtype=torch.float64)
        predictor.observe(history, (torch.full((rows, 2, 3), float(value)),), moments, every)
    return history


def at(predictor: Predictor, history: History, moment: float) -> float:
    rows = len(history.moment)
    (value,) = predictor.predict(history, torch.full((rows,), moment, dtype=torch.float64))
    return float(value.flatten()[0])


def square(*moments: float) -> list[tuple[float, float]]:
    return [(m, m * m) for m in moments]


def test_taylor_takes_the_latest_gap_for_all_orders():
    assert at(Taylor(2), told(Taylor(2), square(0, 1, 2)), 3) == 8  # Newton would say 9
    assert at(Taylor(2), told(Taylor(2), square(0, 2, 4)), 5) == 23
    assert at(Taylor(1), told(Taylor(1), square(0, 2, 4)), 5) == 22


@pytest.mark.parametrize("predictor", [Taylor(1), Taylor(2), FoCa()])
@pytest.mark.parametrize("gaps", [(1, 1, 1), (4, 4, 4), (1, 3, 2)])
def test_a_straight_line_is_continued_whatever_the_gaps(predictor, gaps):
    moments = [sum(gaps[:n]) for n in range(len(gaps) + 1)]
    history = told(predictor, [(m, 3 * m + 1) for m in moments])
    for ahead in (1, 2, 3):
        expected = 3 * (moments[-1] + ahead) + 1
        assert at(predictor, history, moments[-1] + ahead) == pytest.approx(expected, rel=1e-6)


def test_order_zero_is_reuse():
    for moment in (3, 7):
        assert at(Taylor(0), told(Taylor(0), square(0, 2)), moment) == 4
        assert at(Reuse(), told(Reuse(), square(0, 2)), moment) == 4


def test_modes_continue_an_exponential_that_taylor_misses():
    base, swing = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[0.0, 3.0, 1.0]])
    expected = base + swing * 0.8**7
    errors = {}
    for predictor in (Modes(), Taylor(1)):
        history = History()
        for n in range(6):
            moment = torch.tensor([n]).double()
            value = (base + swing * 0.8**n,)
            predictor.observe(history, value, moment, torch.tensor([True]))
        (value,) = predictor.predict(history, torch.tensor([7]).double())
        errors[type(predictor)] = float((value - expected).abs().max())
    assert errors[Modes] < 1e-4
    assert errors[Taylor] > 0.05


def test_modes_are_a_line_until_four_equally_spaced_values():
    assert at(Modes(), told(Modes(), [(0, 1), (1, 3)]), 2) == 5
    assert at(Modes(), told(Modes(), [(0, 1), (1, 2), (3, 6), (4, 8)]), 5) == 10


def test_growth_of_modes_is_bounded():
    history = told(Modes(growth=1.05), [(n, 3.0**n) for n in range(6)])
    assert at(Modes(growth=1.05), history, 6) < 3.0**5 * 1.2


def test_rows_keep_their_own_slopes():
    predictor, history = Taylor(1), History()
    values = {0: (0.0, 0.0), 1: (1.0, 10.0), 2: (2.0, 99.0)}
    for moment, value in values.items():
        fresh = torch.tensor([True, moment < 2])  # the second sample was not computed at 2
        tensor = torch.tensor(value)[:, None].expand(2, 4)
        predictor.observe(history, (tensor,), torch.full((2,), float(moment)).double(), fresh)
    (value,) = predictor.predict(history, torch.full((2,), 3.0).double())
    assert value[:, 0].tolist() == [3.0, 30.0]


def test_slopes_survive_bfloat16():
    predictor, history = Taylor(1), History()
    for moment in (0.0, 1.0):
        value = torch.full((1, 8), 100.0 + moment, dtype=torch.bfloat16)
        predictor.observe(history, (value,), torch.tensor([moment]).double(), torch.tensor([True]))
    (value,) = predictor.predict(history, torch.tensor([2.0]).double())
    assert value.dtype == torch.bfloat16
    assert float(value[0, 0]) == pytest.approx(102, abs=0.5)


@pytest.mark.parametrize("bad", [{"order": 9}, {"clock": "noon"}])
def test_impossible_forecasts_are_refused(bad):
    with pytest.raises(RecipeError):
        Taylor(**bad)


def test_two_clocks_agree_on_what_is_linear_in_both():
    assert math.isclose(at(Taylor(1), told(Taylor(1), [(0.9, 9), (0.8, 8)]), 0.7), 7, rel_tol=1e-6)
