"""Selection: lower index wins ties, protections win over budgets, padding never stays."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recollect.core.select import (
    nth_largest,
    protect,
    protected_counts,
    ragged_indices,
    top_indices,
    top_mask,
)

INF = torch.inf


def brute_force(row, n):
    return sorted(sorted(range(len(row)), key=lambda t: (-row[t], t))[:n])


def small_scores(data, most_heads=3):
    """A (B, K, T) tensor with many ties."""
    shape = [data.draw(st.integers(1, n)) for n in (2, most_heads, 9)]
    values = st.lists(st.integers(-2, 2).map(float), min_size=shape[0] * shape[1] * shape[2])
    flat = data.draw(values)[: shape[0] * shape[1] * shape[2]]
    return torch.tensor(flat).view(shape)


@given(st.data())
def test_top_indices_agree_with_sorting_by_score_then_index(data):
    scores = small_scores(data)
    n = data.draw(st.integers(1, scores.shape[2]))
    found = top_indices(scores, n)
    assert found.dtype == torch.int64
    expected = [[brute_force(head.tolist(), n) for head in row] for row in scores]
    assert found.tolist() == expected


@given(st.data())
def test_ragged_indices_agree_with_sorting_each_head(data):
    scores = small_scores(data)
    batch, heads, total = scores.shape
    drawn = data.draw(
        st.lists(st.integers(0, total), min_size=batch * heads, max_size=batch * heads)
    )
    index, lengths = ragged_indices(scores, torch.tensor(drawn).view(batch, heads))
    assert lengths.tolist() == drawn
    segments = [part.tolist() for part in index.split(drawn)]
    rows = scores.view(-1, total).tolist()
    assert segments == [brute_force(row, n) for row, n in zip(rows, drawn, strict=True)]


def test_equal_scores_select_the_first_tokens():
    assert top_indices(torch.zeros(1, 2, 1000), 3).tolist() == [[[0, 1, 2], [0, 1, 2]]]


def test_streaming_worked_example():
    # T=10, 4 sinks, keep 0.6: the first 4 and the last 2.
    scores = protect(torch.arange(10.0).view(1, 1, 10), sinks=4)
    assert top_indices(scores, 6).tolist() == [[[0, 1, 2, 3, 8, 9]]]


def test_protect_counts_sinks_from_the_first_real_token():
    scores = protect(torch.zeros(2, 1, 6), sinks=1, recent=2, padding=torch.tensor([0, 2]))
    assert scores[0, 0].tolist() == [INF, 0, 0, 0, INF, INF]
    assert scores[1, 0].tolist() == [-INF, -INF, INF, 0, INF, INF]
    by_row = protect(torch.zeros(2, 1, 3), recent=torch.tensor([0, 2]))
    assert by_row[:, 0].tolist() == [[0, 0, 0], [0, INF, INF]]


def test_protect_leaves_its_input_alone():
    scores = torch.zeros(1, 1, 4)
    protect(scores, sinks=2)
    assert scores.eq(0).all()


def test_protections_beyond_the_budget_stay_and_show_in_the_width():
    scores = protect(torch.zeros(1, 2, 8), sinks=2, recent=3)
    assert protected_counts(scores).tolist() == [[5, 5]]
    assert top_indices(scores, 3).tolist() == [[[0, 1, 5, 6, 7]] * 2]
    index, lengths = ragged_indices(scores, torch.tensor([[1, 6]]))
    assert lengths.tolist() == [5, 6]
    assert index.tolist() == [0, 1, 5, 6, 7, 0, 1, 2, 5, 6, 7]


def test_padding_is_never_selected_raggedly():
    scores = protect(torch.zeros(1, 1, 5), padding=torch.tensor([3]))
    index, lengths = ragged_indices(scores, torch.tensor([[4]]))
    assert (index.tolist(), lengths.tolist()) == ([3, 4], [2])


def test_a_budget_of_everything_selects_everything():
    scores = torch.randn(2, 3, 5)
    assert top_indices(scores, 9).equal(torch.arange(5).expand(2, 3, 5))


def test_kept_sets_are_nested_in_the_budget():
    scores = torch.randn(1, 2, 50, generator=torch.Generator().manual_seed(1))
    small, large = (top_mask(scores, torch.full((1, 2), n)) for n in (10, 20))
    assert not bool((small & ~large).any())


def test_scaling_scores_changes_nothing():
    scores = torch.rand(1, 2, 50, generator=torch.Generator().manual_seed(2))
    assert top_indices(scores, 9).equal(top_indices(scores * 7.5, 9))


@pytest.mark.parametrize("n", [[2, 2], [1, 4]])
def test_nth_largest_value_of_each_row(n):
    scores = torch.tensor([[3.0, 1, 2, 2], [9, 7, 8, 6]])
    expected = [sorted(row, reverse=True)[i - 1] for row, i in zip(scores.tolist(), n, strict=True)]
    assert nth_largest(scores, torch.tensor(n)).tolist() == expected
