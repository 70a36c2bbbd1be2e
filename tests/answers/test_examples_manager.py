"""Keeping examples: a knapsack by bytes and faded value; replay keeps the better answer."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recollect.answers import ManualClock
from recollect.answers.examples import Example, ManagerPolicy
from recollect.answers.examples.knapsack import keep
from recollect.answers.examples.manager import HOUR, ExampleManager
from recollect.answers.index import FlatIndex
from recollect.errors import RecipeError

ALICE, BOB = ("alice",), ("bob",)


@pytest.fixture
def clock():
    return ManualClock(1000.0)


def manager(clock, **policy):
    return ExampleManager(ManagerPolicy(**policy), clock, lambda: FlatIndex(4, "test"))


def vector(*numbers):
    row = np.zeros(4, np.float32)
    row[: len(numbers)] = numbers
    return row / np.linalg.norm(row)


def add(examples, query, response="answer", partition=ALICE, near=(1.0,)):
    example = Example(0, partition, query, response, "large", 0.0)
    return examples.add(example, vector(*near), vector(0, 1.0))


def exact(values, weights, capacity):
    """The best value by dynamic programming over capacities."""
    best = [0.0] * (capacity + 1)
    for value, weight in zip(values, weights, strict=True):
        for room in range(capacity, weight - 1, -1):
            best[room] = max(best[room], best[room - weight] + value)
    return best[capacity]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 30)), max_size=20),
    st.integers(0, 150),
)
def test_the_knapsack_fits_and_is_worth_at_least_half_of_the_best(things, capacity):
    values, weights = [v for v, _ in things], [w for _, w in things]
    kept = keep(values, weights, capacity)
    assert sorted(set(kept)) == kept
    assert sum(weights[at] for at in kept) <= capacity
    assert 2 * sum(values[at] for at in kept) >= exact(values, weights, capacity)


def test_the_dynamic_programme_of_this_test_agrees_with_trying_everything():
    values, weights = [5, 4, 3, 7, 1], [4, 3, 2, 6, 1]
    for capacity in range(17):
        subsets = itertools.product((0, 1), repeat=5)
        best = max(
            sum(v * k for v, k in zip(values, kept, strict=True))
            for kept in subsets
            if sum(w * k for w, k in zip(weights, kept, strict=True)) <= capacity
        )
        assert exact(values, weights, capacity) == best


def test_one_large_treasure_is_not_lost_to_a_small_dense_thing():
    assert keep([2, 100], [1, 100], 100) == [1]


def test_value_and_gain_fade_to_nine_tenths_an_hour(clock):
    examples = manager(clock, gain_smoothing=1.0)
    one, _ = add(examples, "q")
    examples.used([one], quality=0.25, cost=8.0)
    clock.advance(2 * HOUR)
    worth = examples.worth(one)
    assert worth.value == pytest.approx(0.81)
    assert worth.gain == pytest.approx(0.75 * 8 * 0.81)


def test_gain_is_a_running_mean_of_lost_quality_times_cost(clock):
    examples = manager(clock, gain_smoothing=0.5)
    one, _ = add(examples, "q")
    examples.used([one], quality=0.0, cost=2.0)
    examples.used([one], quality=1.0, cost=2.0)
    assert examples.worth(one).gain == pytest.approx(0.5)


def test_examples_that_were_shown_together_share_the_success(clock):
    examples = manager(clock, newcomer=0.0)
    first, second = add(examples, "q")[0], add(examples, "r")[0]
    examples.used([first, second], quality=0.9, cost=1.0)
    examples.used([first], quality=0.1, cost=1.0)
    assert (examples.worth(first).value, examples.worth(second).value) == (0.5, 0.5)


def test_what_helped_stays_and_what_did_not_goes_first(clock):
    examples = manager(clock, partition_bytes=60)
    ids = [add(examples, f"question{n}", "x" * 10)[0] for n in range(3)]
    examples.used([ids[1]], quality=1.0, cost=1.0)
    new, gone = add(examples, "question3", "x" * 10)
    assert ids[1] not in gone
    assert len(gone) == 2
    assert examples.size <= 54
    assert set(examples.ids(ALICE)) == {*ids, new} - set(gone)


def test_an_example_nobody_uses_goes_in_bounded_time(clock):
    examples = manager(clock, partition_bytes=60)
    stale, _ = add(examples, "question0", "x" * 10)
    examples.used([stale] * 1, quality=1.0, cost=1.0)
    gone = []
    for n in range(1, 30):
        clock.advance(HOUR)
        gone += add(examples, f"question{n}", "x" * 10)[1]
    assert stale in gone


def test_all_partitions_together_stay_within_the_capacity(clock):
    examples = manager(clock, capacity_bytes=200, partition_bytes=150)
    for n in range(40):
        add(examples, f"question{n:02}", "x" * 20, ALICE if n % 3 else BOB)
        assert examples.size <= 200
    assert examples.ids(ALICE)
    assert examples.ids(BOB)


def test_a_partition_sees_only_its_own_examples(clock):
    examples = manager(clock)
    add(examples, "hers", partition=ALICE)
    add(examples, "his", partition=BOB)
    found = [one.example.query for one in examples.find(ALICE, vector(1.0), 10)]
    assert found == ["hers"]
    assert examples.find(("carol",), vector(1.0), 10) == []


def test_a_known_query_is_not_kept_twice(clock):
    examples = manager(clock)
    assert add(examples, "q")[0] is not None
    assert add(examples, "q", "something else")[0] is None
    assert add(examples, "q", partition=BOB)[0] is not None


def test_an_example_is_due_at_most_five_times_and_the_neediest_first(clock):
    examples = manager(clock)
    mild, severe = add(examples, "mild")[0], add(examples, "severe")[0]
    replays = []
    for _ in range(8):
        examples.used([mild], quality=0.5, cost=1.0)
        examples.used([severe], quality=0.0, cost=1.0)
        due = [one.id for one in examples.due()]
        assert due == sorted(due, key=[severe, mild].index)
        for one in due:
            examples.replayed(one, None, None)
        replays += due
        assert examples.due() == []  # the gain has to be earned again
    assert (replays.count(mild), replays.count(severe)) == (5, 5)


def test_an_example_that_suffices_is_never_due(clock):
    examples = manager(clock)
    one, _ = add(examples, "q")
    examples.used([one], quality=1.0, cost=8.0)
    assert examples.due() == []


def test_removing_an_example_leaves_nothing_of_it(clock):
    examples = manager(clock)
    one, _ = add(examples, "q")
    examples.remove([one, 99])
    assert (len(examples), examples.size, examples.find(ALICE, vector(1.0), 5)) == (0, 0, [])
    examples.used([one], quality=1.0, cost=1.0)  # it was being shown while it went
    assert add(examples, "q")[0] not in (None, one)


def test_wrong_policies_are_refused():
    for wrong in ({"decay": 0.0}, {"gain_smoothing": 1.5}, {"capacity_bytes": -1}):
        with pytest.raises(RecipeError):
            ManagerPolicy(**wrong)
    with pytest.raises(RecipeError):
        keep([1.0], [0], 5)
