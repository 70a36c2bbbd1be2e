"""Budgets: exact sums, the papers' worked examples, and what bad input is told."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recollect.core.budgets import (
    check_keep,
    count_kept,
    flat_head_counts,
    pyramid_layers,
    pyramid_layers_kvpress,
    share_exactly,
    uniform_layers,
)
from recollect.errors import RecipeError

INF = torch.inf


@pytest.mark.parametrize(
    ("keep", "length", "kept"),
    [
        (0.2, 100, 20),  # kvpress's int(100 * (1 - 0.8)) is 19
        (0.1, 10, 1),  # and its int(10 * (1 - 0.9)) is 0
        (0.29, 100, 29),
        (1.0, 7, 7),
        (0.001, 10, 1),
        (5, 3, 3),
        (5, 9, 5),
        (0.5, 0, 0),
    ],
)
def test_keep_becomes_a_whole_number_of_tokens(keep, length, kept):
    assert count_kept(keep, length) == kept


@pytest.mark.parametrize("keep", [0, 0.0, -1, -0.5, 1.5, True, "half", None, float("nan")])
def test_impossible_keep_is_refused_in_one_line_that_says_what_is_allowed(keep):
    with pytest.raises(RecipeError, match=r"^keep must be a fraction in \(0, 1\] or a number") as e:
        check_keep(keep)
    assert "\n" not in str(e.value)


def test_remainders_go_to_the_largest_and_ties_to_the_first():
    assert share_exactly(10, [1, 1, 1]) == [4, 3, 3]
    assert share_exactly(10, [2.6, 1.5, 0.9]) == [5, 3, 2]


def test_what_a_bound_cuts_off_goes_to_the_others():
    assert share_exactly(10, [8, 1, 1], caps=[4, 9, 9]) == [4, 3, 3]
    assert share_exactly(10, [8, 1, 1], floors=3) == [4, 3, 3]
    assert share_exactly(7, [0, 0]) == [4, 3]


def test_bounds_without_room_are_returned_themselves():
    assert share_exactly(2, [1, 1], floors=3) == [3, 3]
    assert share_exactly(9, [1, 1], caps=3) == [3, 3]


@given(st.data())
def test_shares_sum_exactly_and_respect_their_bounds(data):
    n = data.draw(st.integers(1, 12))
    weights = data.draw(st.lists(st.floats(0, 1e6), min_size=n, max_size=n))
    floors = data.draw(st.lists(st.integers(0, 20), min_size=n, max_size=n))
    caps = [f + data.draw(st.integers(0, 40)) for f in floors]
    total = data.draw(st.integers(sum(floors), sum(caps)))
    shares = share_exactly(total, weights, floors=floors, caps=caps)
    assert sum(shares) == total
    assert all(f <= s <= c for f, s, c in zip(floors, shares, caps, strict=True))


def test_pyramid_spends_the_mean_exactly_where_the_reference_overspends():
    reference = [234, 202, 170, 138, 106, 74, 42, 10]  # scored part, integer steps: sums to 976
    ours = pyramid_layers(128, n_layers=8, length=1000, window=8, beta=20)
    assert sum(ours) == 8 * 128
    assert sum(ours) - 8 * 8 == 960
    assert max(abs(o - 8 - r) for o, r in zip(ours, reference, strict=True)) <= 4


@given(
    st.integers(1, 300),
    st.integers(1, 12),
    st.integers(1, 300),
    st.integers(1, 64),
    st.floats(1, 50),
)
def test_pyramid_sums_exactly_falls_with_depth_and_stays_within_the_tokens(
    mean, layers, length, window, beta
):
    found = pyramid_layers(mean, layers, length, window, beta)
    assert sum(found) == min(mean, length) * layers
    assert found == sorted(found, reverse=True)
    assert max(found) <= length
    assert min(found) >= min(mean, window, length)


def test_kvpress_pyramid_and_its_fallback_to_equal_layers():
    def at(keep):
        return pyramid_layers_kvpress(keep, n_layers=8, length=4096, window=64, beta=20)

    assert (at(0.75)[0], at(0.75)[-1]) == (4032, 2112)
    assert (at(0.5)[0], at(0.5)[-1]) == (3994, 102)
    assert at(0.25) == [1024] * 8  # 1024 / 20 < 64: what RULER tables call PyramidKV is SnapKV
    assert at(0.125) == [512] * 8
    capped = pyramid_layers_kvpress(0.75, n_layers=8, length=1000, window=64, beta=20)
    assert (capped[0], capped[-1]) == (936, 564)


def test_uniform_layers_are_equal():
    assert uniform_layers(3, 4) == [3, 3, 3, 3]


@pytest.mark.parametrize(
    ("floor", "counts"), [(0.0, [3, 1]), (0.2, [3, 1]), (0.5, [3, 1]), (1.0, [2, 2])]
)
def test_flat_head_budget_worked_example(floor, counts):
    scores = torch.tensor([[[9.0, 8, 7, 1, 1, 1], [5, 4, 1, 1, 1, 1]]])
    assert flat_head_counts(scores, 2, floor).tolist() == [counts]


def brute_force_counts(scores, n, floor):
    """kvpress's rule on one row, with sorted lists."""
    heads, length = len(scores), len(scores[0])
    safe = max(1, int(n * floor + 1e-9)) if floor > 0 else 0
    entries = []
    for h, row in enumerate(scores):
        ranked = sorted(range(length), key=lambda t, row=row: (-row[t], t))
        for place, t in enumerate(ranked):
            entries.append((0 if place < min(safe, n) else 1, -row[t], h, t))
    kept = sorted(entries)[: heads * n]
    return [sum(e[2] == h for e in kept) for h in range(heads)]


@given(st.data())
def test_flat_head_counts_agree_with_brute_force_ties_included(data):
    heads, length = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 10))
    row = st.lists(st.integers(0, 4).map(float), min_size=length, max_size=length)
    scores = data.draw(st.lists(row, min_size=heads, max_size=heads))
    n = data.draw(st.integers(1, length))
    floor = data.draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))
    counts = flat_head_counts(torch.tensor([scores]), n, floor)
    assert counts.tolist() == [brute_force_counts(scores, n, floor)]
    assert counts.sum() == heads * n


def test_rows_with_their_own_budgets_are_as_if_alone():
    scores = torch.randn(3, 4, 20, generator=torch.Generator().manual_seed(0))
    n = torch.tensor([3, 20, 7])
    together = flat_head_counts(scores, n, 0.2)
    alone = [flat_head_counts(scores[i : i + 1], int(n[i]), 0.2)[0] for i in range(3)]
    assert together.equal(torch.stack(alone))
    assert together.sum(-1).tolist() == [12, 80, 28]


def test_protected_tokens_always_count_and_padding_never():
    scores = torch.tensor([[[INF, INF, INF, 1.0], [-INF, -INF, 0.5, 0.1]]])
    assert flat_head_counts(scores, 1, 0.2).tolist() == [[3, 1]]  # 3 protected: over the 2 asked
    assert flat_head_counts(scores, 2, 0.0).tolist() == [[4, 0]]
    assert flat_head_counts(scores, 4, 0.2).tolist() == [[4, 2]]  # only 6 real tokens
