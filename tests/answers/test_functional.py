"""Functional hashing: what behaves alike shares results, what differs on a probe never does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recollect.answers import Answers
from recollect.answers.functional import FunctionalCache
from recollect.errors import RecipeError

PROBES = [(0.0,), (1.0,), (-2.5,), (10.0,)]


def test_functions_that_behave_alike_share_a_score():
    cache, calls = FunctionalCache(PROBES), []

    def at_three(candidate):
        calls.append(candidate)
        return candidate(3.0)

    assert cache.evaluate(lambda x: x * 2, at_three, name="at 3") == 6.0
    assert cache.evaluate(lambda x: x + x, at_three, name="at 3") == 6.0
    assert cache.evaluate(lambda x: x * 3, at_three, name="at 3") == 9.0
    assert len(calls) == 2
    assert (cache.hits, cache.misses) == (1, 2)
    assert cache.evaluate(lambda x: x * 2, lambda f: f(4.0), name="at 4") == 8.0


COEFFICIENTS = st.lists(st.integers(-5, 5), min_size=3, max_size=3)


@given(COEFFICIENTS, COEFFICIENTS)
def test_polynomials_collide_exactly_when_they_are_equal(one, two):
    def polynomial(c):
        return lambda x: c[0] + c[1] * x + c[2] * x * x

    cache = FunctionalCache([(0,), (1,), (2,)])  # three points tell quadratics apart
    assert (cache.key(polynomial(one)) == cache.key(polynomial(two))) == (one == two)


@pytest.mark.parametrize(
    ("one", "two", "alike"),
    [
        (lambda x: x, lambda x: x + 1e-12, True),
        (lambda x: x, lambda x: x + 1e-6, False),
        (lambda x: 0.0, lambda x: -0.0, True),
        (lambda x: 1, lambda x: 1.0, False),
        (lambda x: True, lambda x: 1, False),
        (lambda x: "1", lambda x: 1, False),
        (lambda x: [1, 2], lambda x: (1, 2), False),
        (lambda x: [[1], 2], lambda x: [1, [2]], False),
        (lambda x: {"a": 1, "b": 2}, lambda x: {"b": 2, "a": 1}, True),
        (lambda x: {1: "x"}, lambda x: {"1": "x"}, False),
        (lambda x: {1, 2}, lambda x: {2, 1}, True),
        (lambda x: float("nan"), lambda x: float("nan"), True),
        (lambda x: float("inf"), lambda x: float("-inf"), False),
        (lambda x: 1e308, lambda x: 1e307, False),
        (lambda x: np.zeros(3), lambda x: np.zeros(3) + 1e-13, True),
        (lambda x: np.zeros((1, 3)), lambda x: np.zeros(3), False),
        (lambda x: 1 / x, lambda x: 1 / x, True),
        (lambda x: 1 / x, lambda x: x and 1 / x, False),
        (lambda x: [].pop(), lambda x: {}["x"], False),
        (lambda x: b"x", lambda x: "78", False),
    ],
)
def test_behaviour_is_values_types_and_exceptions(one, two, alike):
    cache = FunctionalCache(PROBES)
    assert (cache.key(one) == cache.key(two)) is alike


def test_probes_seed_version_and_tolerance_are_part_of_the_key():
    def random_probes(rng):
        return [(rng.random(),) for _ in range(3)]

    caches = [
        FunctionalCache(PROBES),
        FunctionalCache(PROBES[:-1]),
        FunctionalCache(PROBES, version="2"),
        FunctionalCache(PROBES, tolerance=1e-3),
        FunctionalCache(random_probes, seed=1),
        FunctionalCache(random_probes, seed=2),
    ]
    keys = [cache.key(lambda x: 1) for cache in caches]
    assert len(set(keys)) == len(keys)
    assert FunctionalCache(random_probes, seed=1).key(lambda x: 1) == keys[4]


def test_a_function_cannot_spoil_the_probes():
    cache = FunctionalCache([([1, 2],)])

    def spoil(items):
        items.append(3)
        return len(items)

    assert cache.key(spoil) == cache.key(spoil) == cache.key(lambda items: 3)


def test_the_decorator_shares_calls_and_keeps_arguments_apart():
    cache, calls = FunctionalCache(PROBES), []

    @cache.memoize
    def double(x, scale=1):
        """Twice."""
        calls.append("double")
        return x * 2 * scale

    @cache.memoize
    def twice(x, scale=1):
        calls.append("twice")
        return (x + x) * scale

    calls.clear()  # the probes ran
    assert double.__doc__ == "Twice."
    assert [double(3), double(x=3), double(3, scale=1), twice(3)] == [6, 6, 6, 6]
    assert [double(3, 2), double(4), double(3.0)] == [12, 8, 6.0]
    assert calls == ["double"] * 4


def test_what_json_cannot_say_is_computed_every_time():
    cache, calls = FunctionalCache([(1,)]), []

    @cache.memoize
    def pair(x):
        calls.append(x)
        return (x, x)

    calls.clear()
    assert pair(2) == pair(2) == (2, 2)
    assert pair(object) == (object, object)
    assert len(calls) == 3


def test_exceptions_are_raised_every_time():
    cache, calls = FunctionalCache([(1.0,)]), []

    @cache.memoize
    def inverse(x):
        calls.append(x)
        return 1 / x

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            inverse(0.0)
    assert calls == [1.0, 0.0, 0.0]


def test_rechecking_finds_functions_that_were_wrongly_merged():
    cache = FunctionalCache([(1.0,)], recheck=1.0)  # one probe cannot tell squares from cubes

    def at_two(candidate):
        return candidate(2.0)

    assert cache.evaluate(lambda x: x**2, at_two, name="at 2") == 4.0
    assert cache.evaluate(lambda x: x * x, at_two, name="at 2") == 4.0
    assert (cache.rechecked, cache.false_merges) == (1, 0)
    assert cache.evaluate(lambda x: x**3, at_two, name="at 2") == 8.0
    assert (cache.rechecked, cache.false_merges) == (2, 1)


def test_results_outlive_the_process(tmp_path):
    for _ in range(2):
        with Answers(f"sqlite:///{tmp_path}/results.db") as answers:
            cache = FunctionalCache(PROBES, answers=answers)
            assert cache.evaluate(lambda x: x, lambda f: f(1.0), name="at 1") == 1.0
    assert (cache.hits, cache.misses) == (1, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probes": []}, "at least one"),
        ({"probes": [1, 2]}, "tuples of arguments"),
        ({"probes": [(1,)], "tolerance": -1}, "tolerance"),
        ({"probes": [(1,)], "recheck": 2}, "recheck"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(RecipeError, match=message):
        FunctionalCache(**arguments)


def test_outputs_without_a_form_are_refused():
    cache = FunctionalCache([(1,)])
    with pytest.raises(RecipeError, match="gave a object"):
        cache.key(lambda x: object())

    async def later(x):
        return x

    with pytest.raises(RecipeError, match="coroutine"):
        cache.memoize(later)
