"""Merging: the worked example, a loop as oracle, and what may never change."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recollect.core.merge import bipartite_merge, chelsea_rounds


def example():
    """A = (1,0),(0,1),(1,.05) at even places, B = (.9,.1),(.1,.9),(-1,0) at odd ones."""
    even, odd = [(1, 0), (0, 1), (1, 0.05)], [(0.9, 0.1), (0.1, 0.9), (-1, 0)]
    tokens = [t for pair in zip(even, odd, strict=True) for t in pair]
    return torch.tensor(tokens, dtype=torch.float32).view(1, 1, 6, 2)


def ones_like(k):
    return torch.ones(k.shape[:3])


def test_worked_example_keeps_the_best_edge_and_the_first_of_the_tied():
    k = example()
    merged, _, counts, index = bipartite_merge(k, k, ones_like(k), chunk=6, merges_per_chunk=2)
    # Edges 2→0 (0.998) and 0→0 (0.994, tied with 1→1): tokens 0, 1 and 4 become one at place 1.
    assert index.tolist() == [[[1, 2, 3, 5]]]
    assert counts.tolist() == [[[3, 1, 1, 1]]]
    torch.testing.assert_close(merged[0, 0, 0], torch.tensor([2.9, 0.15]) / 3)
    assert merged[0, 0, 1:].equal(k[0, 0, [2, 3, 5]])


def test_no_merges_is_identity():
    k = torch.randn(1, 2, 11, 4)
    merged, v, counts, index = bipartite_merge(k, k + 1, ones_like(k), chunk=4, merges_per_chunk=0)
    assert merged.equal(k)
    assert v.equal(k + 1)
    assert counts.eq(1).all()
    assert index.equal(torch.arange(11).expand(1, 2, 11))


def merge_chunk_by_loops(k, v, counts, merges):
    """One chunk of one head, as the paper tells it."""
    even, odd = list(range(0, len(k), 2)), list(range(1, len(k), 2))
    unit = torch.nn.functional.normalize(k, dim=-1)
    edges = []
    for a in even:
        likeness = [float(unit[a] @ unit[b]) for b in odd]
        if likeness:
            best = max(likeness)
            edges.append((-best, a, odd[likeness.index(best)]))
    chosen = {a: b for _, a, b in sorted(edges)[: min(merges, len(k) // 2)]}
    kept = [t for t in range(len(k)) if t not in chosen]
    groups = [[t, *(a for a, b in chosen.items() if b == t)] for t in kept]
    weight = torch.stack([counts[g].sum() for g in groups])
    mean = [(counts[g, None] * x[g]).sum(0) for x in (k, v) for g in groups]
    keys, values = torch.stack(mean).view(2, len(kept), -1) / weight[:, None]
    return keys, values, weight, kept


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 23), st.sampled_from([2, 4, 8]), st.integers(0, 5), st.integers(0, 10_000))
def test_agrees_with_loops_over_chunks(total, chunk, merges, seed):
    draw = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, 2, 3, total, 4, generator=draw)
    counts = torch.randint(1, 5, (2, 3, total), generator=draw).float()
    found = bipartite_merge(k, v, counts, chunk=chunk, merges_per_chunk=merges)
    for b in range(2):
        for h in range(3):
            expected = [[], [], [], []]
            for start in range(0, total, chunk):
                part = slice(start, start + chunk)
                result = merge_chunk_by_loops(
                    k[b, h, part], v[b, h, part], counts[b, h, part], merges
                )
                result = (*result[:3], torch.tensor(result[3]) + start)
                for whole, piece in zip(expected, result, strict=True):
                    whole.append(piece)
            for ours, pieces in zip(found, expected, strict=True):
                torch.testing.assert_close(ours[b, h], torch.cat(pieces), rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_rounds_reach_the_target_exactly_and_preserve_what_was_counted(data):
    total = data.draw(st.integers(1, 40))
    target = data.draw(st.integers(1, total))
    chunk = data.draw(st.sampled_from([2, 4, 8, 64]))
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 10_000)))
    k, v = torch.randn(2, 2, 2, total, 4, generator=draw)
    counts = torch.randint(1, 4, (2, 2, total), generator=draw).float()
    keys, values, new_counts, index = chelsea_rounds(k, v, counts, target=target, chunk=chunk)
    assert keys.shape == values.shape == (2, 2, target, 4)
    torch.testing.assert_close(new_counts.sum(-1), counts.sum(-1))
    torch.testing.assert_close(
        (new_counts[..., None] * values).sum(2),
        (counts[..., None] * v).sum(2),
        rtol=1e-4,
        atol=1e-4,
    )
    assert bool((index.diff(dim=-1) > 0).all())
    untouched = new_counts == counts.gather(2, index)
    original = k.gather(2, index[..., None].expand(-1, -1, -1, 4))
    assert keys[untouched].equal(original[untouched])


def test_merging_equal_keys_with_log_counts_is_exact():
    k = torch.randn(1, 1, 4, 8).repeat_interleave(4, 2)  # every key four times in a row
    v, q = torch.randn(1, 1, 16, 8), torch.randn(8)
    keys, values, counts, _ = chelsea_rounds(k, v, ones_like(k), target=4, chunk=4)
    assert counts.eq(4).all()
    before = (k[0, 0] @ q).softmax(0) @ v[0, 0]
    after = (keys[0, 0] @ q + counts[0, 0].log()).softmax(0) @ values[0, 0]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_batch_rows_do_not_interact():
    k, v = torch.randn(2, 3, 2, 20, 4)
    order = torch.tensor([2, 0, 1])
    whole = chelsea_rounds(k, v, ones_like(k), target=7, chunk=8)
    permuted = chelsea_rounds(k[order], v[order], ones_like(k), target=7, chunk=8)
    for a, b in zip(whole, permuted, strict=True):
        torch.testing.assert_close(a[order], b)


def test_similarity_may_be_the_dot_product():
    k = torch.tensor([[1.0, 0], [0.5, 0], [0.1, 0], [9, 9]]).view(1, 1, 4, 2)
    cosine = bipartite_merge(k, k, ones_like(k), chunk=4, merges_per_chunk=1)
    dot = bipartite_merge(k, k, ones_like(k), chunk=4, merges_per_chunk=1, similarity="dot")
    assert cosine[2].tolist() == [[[2, 1, 1]]]  # 0 joins its parallel neighbour
    assert dot[2].tolist() == [[[1, 1, 2]]]  # 0 joins the largest key


def test_dtype_is_kept():
    k = torch.randn(1, 1, 8, 4).bfloat16()
    keys, values, counts, _ = chelsea_rounds(k, k.half(), ones_like(k), target=3, chunk=4)
    assert (keys.dtype, values.dtype, counts.dtype) == (
        torch.bfloat16,
        torch.float16,
        torch.float32,
    )


def test_a_target_of_nothing_is_refused():
    with pytest.raises(ValueError, match="target must be at least 1"):
        chelsea_rounds(*[torch.ones(1, 1, 4, 2)] * 2, torch.ones(1, 1, 4), target=0)
