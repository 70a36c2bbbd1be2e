"""Attention statistics against a plain softmax over the expanded heads."""

import math

import pytest
import torch

from recollect.core import attention_stats
from recollect.core.attention_stats import column_mass, last_row, window_attention

B, H, K, T, D = 2, 6, 2, 19, 8
SCALE = 1 / math.sqrt(D)


@pytest.fixture
def qk():
    draw = torch.Generator().manual_seed(0)
    return torch.randn(B, H, T, D, generator=draw), torch.randn(B, K, T, D, generator=draw)


def brute_force(q, k):
    """Causal softmax of the last queries, heads expanded, in float64."""
    q, k = q.double(), k.double().repeat_interleave(q.shape[1] // k.shape[1], 1)
    logits = q @ k.transpose(2, 3) * SCALE
    queries, total = logits.shape[2:]
    column, row = torch.arange(total), torch.arange(total - queries, total)[:, None]
    return logits.masked_fill(column > row, -torch.inf).softmax(-1).float()


@pytest.mark.parametrize("queries", [1, 5, T])
def test_window_attention_is_a_causal_softmax(qk, queries):
    q, k = qk
    found = window_attention(q[:, :, T - queries :], k, SCALE)
    torch.testing.assert_close(found, brute_force(q[:, :, T - queries :], k))


@pytest.mark.parametrize("tile", [1, 4, 7, 256])
@pytest.mark.parametrize("queries", [1, 6, T])
def test_column_mass_is_the_sum_over_queries_whatever_the_tile(qk, tile, queries):
    q, k = qk
    q = q[:, :, T - queries :]
    found = column_mass(q, k, SCALE, tile=tile)
    torch.testing.assert_close(found, brute_force(q, k).sum(2))


def test_column_mass_shrinks_its_tile_to_bound_memory(qk, monkeypatch):
    q, k = qk
    monkeypatch.setattr(attention_stats, "_TILE_ELEMENTS", 3 * B * H * T)
    widest = []
    attend = attention_stats._attend
    monkeypatch.setattr(
        attention_stats, "_attend", lambda *a: widest.append(a[0].shape[2]) or attend(*a)
    )
    torch.testing.assert_close(column_mass(q, k, SCALE), brute_force(q, k).sum(2))
    assert max(widest) == 3


def test_uniform_attention_worked_example():
    # T=6 with equal logits: column t receives Σ 1/(i+1) over the queries i >= t.
    zeros = torch.zeros(1, 1, 6, 4)
    mass = column_mass(zeros, zeros, 1.0)[0, 0]
    expected = torch.tensor([2.45, 1.45, 0.95, 0.617, 0.367, 0.167])
    torch.testing.assert_close(mass, expected, atol=5e-4, rtol=0)


def test_last_row_is_the_newest_query(qk):
    q, k = qk
    torch.testing.assert_close(last_row(q, k, SCALE), brute_force(q, k)[:, :, -1])


@pytest.mark.parametrize("statistic", [window_attention, column_mass, last_row])
def test_a_left_padded_row_is_the_row_alone(qk, statistic):
    q, k = qk
    padding = torch.tensor([0, 5])
    found = statistic(q, k, SCALE, padding)
    plain = statistic(q, k, SCALE)
    alone = statistic(q[1:, :, 5:], k[1:, :, 5:], SCALE)
    torch.testing.assert_close(found[:1], plain[:1])
    torch.testing.assert_close(found[1:, ..., -T + 5 :][..., -alone.shape[-2] :, :], alone)
    assert found[1, ..., :5].eq(0).all()
    assert found.isfinite().all()


def test_padding_queries_give_no_attention(qk):
    q, k = qk
    found = window_attention(q[:, :, -4:], k, SCALE, torch.tensor([0, T - 2]))
    torch.testing.assert_close(found.sum(-1)[1, 0], torch.tensor([0.0, 0, 1, 1]))


def test_low_precision_inputs_are_softmaxed_in_float32(qk):
    q, k = (x.bfloat16() for x in qk)
    found = window_attention(q, k, SCALE)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, brute_force(q.float(), k.float()))


def test_permuting_batch_rows_permutes_the_result(qk):
    q, k = qk
    order = torch.tensor([1, 0])
    padding = torch.tensor([3, 0])
    found = column_mass(q[order], k[order], SCALE, padding[order])
    torch.testing.assert_close(found, column_mass(q, k, SCALE, padding)[order])
