"""Intervals behave: they hold the mean, shrink with more cases, and are honest at the ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recollect.evaluate.statistics import average, bootstrap, estimate, wilson


def test_wilson_matches_the_textbook():
    # 8 of 10: 0.49 to 0.94 (Newcombe 1998)
    found = wilson(8, 10)
    assert found.low == pytest.approx(0.490, abs=2e-3)
    assert found.high == pytest.approx(0.943, abs=2e-3)


def test_all_right_in_few_cases_is_not_certain():
    found = estimate([1.0] * 5)
    assert found.mean == found.high == 1.0
    assert found.low < 0.6


def test_measures_that_are_no_shares_are_certain_when_all_alike():
    assert estimate([0.0] * 5, share=False)[:3] == (0.0, 0.0, 0.0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_the_interval_holds_the_mean(values):
    found = estimate(values)
    assert found.low - 1e-9 <= found.mean <= found.high + 1e-9
    assert found.cases == len(values)


def test_more_cases_make_it_narrower():
    few, many = bootstrap([0.1, 0.5, 0.9]), bootstrap([0.1, 0.5, 0.9] * 30)
    assert many.high - many.low < few.high - few.low


def test_the_same_values_give_the_same_interval():
    assert bootstrap([0.1, 0.4, 0.7]) == bootstrap([0.1, 0.4, 0.7])


def test_tasks_weigh_alike_whatever_their_number_of_cases():
    assert average([estimate([1.0] * 10), estimate([0.0])]).mean == pytest.approx(0.5)


def test_an_average_of_zeros_is_not_certain_and_narrower_than_its_parts():
    part = estimate([0.0] * 6)
    both = average([part, part, part])
    assert both.low == both.mean == 0.0
    assert 0.0 < both.high < part.high
