"""Scores: the papers' worked examples, and the invariants every score shares."""

import math

import pytest
import torch

from recollect.core import attention_stats, scores
from recollect.core.rope import apply_rope, mean_rotation
from recollect.core.select import protect

B, H, K, T, D = 2, 4, 2, 24, 8
SCALE = 1 / math.sqrt(D)


def tensors(seed=0):
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(B, H, T, D, generator=draw)
    k = torch.randn(B, K, T, D, generator=draw)
    v = torch.randn(B, K, T, D, generator=draw)
    return q, k, v


def rotation_at(start, n=16):
    phase = torch.arange(start, start + n)[:, None] * 10.0 ** -torch.arange(0.0, 4)
    return mean_rotation(*(torch.cat((f(phase), f(phase)), -1) for f in (torch.cos, torch.sin)), D)


@pytest.mark.parametrize(
    ("pool", "pooled"),
    [
        ("avg", [0.033, 0.033, 0.167, 0.167, 0.167, 0.067, 0.133, 0.133]),
        ("max", [0.1, 0.1, 0.5, 0.5, 0.5, 0.2, 0.2, 0.2]),
        ("none", [0.1, 0, 0, 0.5, 0, 0, 0.2, 0.2]),
    ],
)
def test_snapkv_pooling_worked_example(pool, pooled):
    row = torch.tensor([0.1, 0, 0, 0.5, 0, 0, 0.2, 0.2, 9.0])  # the last column is the window
    found = scores.snapkv(row.view(1, 1, 1, 9), 1, pool=pool, kernel=3)[0, 0]
    torch.testing.assert_close(found[:8], torch.tensor(pooled), atol=5e-4, rtol=0)
    assert found[8] == found[:8].max() + 1


def test_snapkv_window_ranks_first_and_its_reduction_does_not_change_the_ranking():
    q, k, _ = tensors()
    attention = attention_stats.window_attention(q[:, :, -6:], k, SCALE)
    mean, total = (scores.snapkv(attention, K, reduce=r) for r in ("mean", "sum"))
    assert mean.shape == (B, K, T)
    assert bool((mean[..., -6:] > mean[..., :-6].amax((1, 2), keepdim=True)).all())
    assert mean[..., :-6].argsort(stable=True).equal(total[..., :-6].argsort(stable=True))


def test_snapkv_needs_no_more_than_the_column_mass_of_its_window():
    q, k, _ = tensors()
    attention = attention_stats.window_attention(q[:, :, -6:], k, SCALE)
    mass = attention_stats.column_mass(q[:, :, -6:], k, SCALE)
    votes = scores.window_votes(mass / 6, K, window=6)
    torch.testing.assert_close(votes, scores.snapkv(attention, K))


@pytest.mark.parametrize("group", ["mean", "sum", "max"])
def test_snapkv_group_reduction(group):
    q, k, _ = tensors()
    attention = attention_stats.window_attention(q[:, :, -6:], k, SCALE)
    found = scores.snapkv(attention, K, pool="none", group=group)[..., :-6]
    by_head = attention[..., :-6].mean(2).view(B, K, H // K, -1)
    expected = by_head.max(2).values if group == "max" else getattr(by_head, group)(2)
    torch.testing.assert_close(found, expected)


def test_snapkv_of_nothing_but_the_window_ranks_all_alike():
    attention = torch.rand(1, H, 3, 3)
    assert scores.snapkv(attention, K).eq(1).all()


def test_tova_shares_one_ranking_over_all_heads():
    q, k, _ = tensors()
    row = attention_stats.last_row(q, k, SCALE)
    found = scores.tova(row, K)
    assert found.shape == (B, K, T)
    assert found[:, 0].equal(found[:, 1])
    torch.testing.assert_close(found[:, 0], row.mean(1))


def test_heavy_hitters_average_the_group():
    mass = torch.tensor([[[1.0, 2], [3, 4], [10, 20], [30, 40]]])
    assert scores.heavy_hitters(mass, 2).tolist() == [[[2, 3], [20, 30]]]


def test_key_norm_does_not_change_under_rotation():
    _, k, _ = tensors()
    turned = torch.linalg.qr(torch.randn(D, D)).Q
    torch.testing.assert_close(scores.key_norm(k @ turned), scores.key_norm(k))
    assert scores.key_norm(torch.tensor([[[[3.0, 4.0]]]])).item() == -5


def test_keydiff_keeps_the_outlier_first():
    k = torch.tensor([[1.0, 0], [1, 0], [0, 1]]).view(1, 1, 3, 2)
    expected = torch.tensor([-0.894, -0.894, -0.447])
    torch.testing.assert_close(scores.keydiff(k)[0, 0], expected, atol=5e-4, rtol=0)


def test_keydiff_of_a_zero_key_is_finite():
    assert scores.keydiff(torch.zeros(1, 1, 3, 4)).eq(0).all()


def test_keydiff_of_a_padded_row_is_the_row_alone():
    _, k, _ = tensors()
    found = scores.keydiff(k, torch.tensor([0, 5]))
    torch.testing.assert_close(found[1:, :, 5:], scores.keydiff(k[1:, :, 5:]))
    torch.testing.assert_close(found[:1], scores.keydiff(k[:1]))
    assert found[1, :, :5].eq(-torch.inf).all()


def test_value_reweight_multiplies_by_the_value_norm():
    v = torch.tensor([[[[3.0, 4], [0, 1]]]])
    found = scores.value_reweight(torch.tensor([[[0.5, 0.2]]]), v, eps=0.1)
    torch.testing.assert_close(found, torch.tensor([[[3.0, 0.3]]]))


def test_query_statistics_are_mean_and_biased_covariance_after_the_sinks():
    q, _, _ = tensors()
    mean, covariance = scores.query_statistics(q, n_sink=4)
    torch.testing.assert_close(mean, q[:, :, 4:].mean(2))
    torch.testing.assert_close(covariance[1, 2], torch.cov(q[1, 2, 4:].T, correction=0))


def test_query_sums_of_chunks_add_up_to_those_of_the_whole():
    q, _, _ = tensors()
    parts = [scores.query_sums(q[:, :, :10], 4), scores.query_sums(q[:, :, 10:], 0)]
    added = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    for chunked, whole in zip(
        scores.query_moments(added), scores.query_statistics(q, 4), strict=True
    ):
        torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-6)


def test_a_large_common_offset_of_the_queries_does_not_drown_their_covariance():
    q, _, _ = tensors()
    _, plain = scores.query_statistics(q)
    _, shifted = scores.query_statistics(q + 1000)
    torch.testing.assert_close(shifted, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tile", [1, 1 << 20])
def test_query_sums_undo_the_rotation_block_by_block(tile, monkeypatch):
    monkeypatch.setattr("recollect.core.scores.expected._TILE_ELEMENTS", tile)  # blocks of 16, all
    q, _, _ = tensors()
    angles = torch.randn(2, T, D // 2).repeat(1, 1, 2).unbind()
    expected = scores.query_sums(q, 4)
    found = scores.query_sums(apply_rope(q, *angles), 4, angles=angles)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-3)


def test_query_sums_of_no_queries_are_zero():
    q, _, _ = tensors()
    found = scores.query_sums(q[:, :, :3], n_sink=4)
    assert all(value.eq(0).all() for value in found.values())


def test_query_statistics_of_a_padded_row_are_those_of_the_row_alone():
    q, _, _ = tensors()
    found = scores.query_statistics(q, 4, torch.tensor([0, 5]))
    alone = scores.query_statistics(q[1:, :, 5:], 4)
    for padded, expected in zip(found, alone, strict=True):
        torch.testing.assert_close(padded[1:], expected)


def test_expected_exponential_has_the_closed_form():
    draw = torch.Generator().manual_seed(0)
    k = torch.randn(D, generator=draw)
    mean, root = torch.randn(D, generator=draw) * 0.3, torch.randn(D, D, generator=draw) * 0.4
    covariance = root @ root.T
    samples = mean + torch.randn(200_000, D, generator=draw) @ root.T
    monte_carlo = (samples @ k * SCALE).exp().mean().log()
    closed = mean @ k * SCALE + k @ covariance @ k * SCALE**2 / 2
    assert abs(monte_carlo - closed) < 0.01
    # and it is what ranks two keys: log-ratio of expected attention = difference of closed forms
    k2 = torch.stack((k, torch.zeros(D))).view(1, 1, 2, D)
    found = scores.expected_attention(
        mean.view(1, 1, D),
        covariance.view(1, 1, D, D),
        k2,
        torch.ones(1, 1, 2, 1),
        torch.eye(D),
        n_sink=0,
    )
    torch.testing.assert_close((found[0, 0, 0] / found[0, 0, 1]).log(), closed)


def test_expected_attention_of_a_padded_row_is_the_row_alone():
    q, k, v = tensors()
    padding = torch.tensor([0, 5])
    rotation = torch.stack((rotation_at(T), rotation_at(T - 5)))
    mean, covariance = scores.query_statistics(q, 4, padding)
    found = scores.expected_attention(mean, covariance, k, v, rotation, padding=padding)
    moments = scores.query_statistics(q[1:, :, 5:], 4)
    alone = scores.expected_attention(*moments, k[1:, :, 5:], v[1:, :, 5:], rotation_at(T - 5))
    torch.testing.assert_close(found[1:, :, 5:], alone)
    assert found[1, :, :5].eq(-torch.inf).all()


def test_expected_attention_ranks_sinks_first_even_where_there_is_nothing_else():
    q, k, v = tensors()
    mean, covariance = scores.query_statistics(q)
    found = scores.expected_attention(mean, covariance, k, v, torch.eye(D), n_sink=4)
    assert bool((found[..., :4] > found[..., 4:].amax()).all())
    only = scores.expected_attention(mean, covariance, k[:, :, :3], v[:, :, :3], torch.eye(D))
    assert only.eq(1).all()


def test_expected_attention_without_covariance_uses_the_mean_alone():
    q, k, v = tensors()
    mean, covariance = scores.query_statistics(q)
    found = scores.expected_attention(mean, None, k, v, torch.eye(D))
    zero = scores.expected_attention(mean, torch.zeros_like(covariance), k, v, torch.eye(D))
    torch.testing.assert_close(found, zero)


def every_score(q, k, v, padding=None):
    window = attention_stats.window_attention(q[:, :, -6:], k, SCALE, padding)
    moments = scores.query_statistics(q, 4, padding)
    return {
        "snapkv": scores.snapkv(window, K),
        "tova": scores.tova(attention_stats.last_row(q, k, SCALE, padding), K),
        "h2o": scores.heavy_hitters(attention_stats.column_mass(q, k, SCALE, padding), K),
        "knorm": scores.key_norm(k),
        "keydiff": scores.keydiff(k, padding),
        "expected": scores.expected_attention(*moments, k, v, torch.eye(D), padding=padding),
    }


@pytest.mark.parametrize("name", ["snapkv", "tova", "h2o", "knorm", "keydiff", "expected"])
def test_every_score_is_batched_row_by_row_and_ignores_padding(name):
    q, k, v = tensors()
    padding = torch.tensor([0, 7])
    found = protect(every_score(q, k, v, padding)[name], padding=padding)
    assert found.dtype == torch.float32
    assert found.shape == (B, K, T)
    order = torch.tensor([1, 0])
    swapped = every_score(q[order], k[order], v[order], padding[order])[name]
    torch.testing.assert_close(protect(swapped, padding=padding[order]), found[order])
    alone = every_score(q[1:, :, 7:], k[1:, :, 7:], v[1:, :, 7:])[name]
    torch.testing.assert_close(found[1:, :, 7:], alone)
