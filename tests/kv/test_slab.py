"""The slab: rows of many lengths, grown, gathered, reordered and cropped without losing a token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recollect.kv.slab import Slab


def tokens(batch=2, heads=3, length=7, width=4, start=0):
    """k where every element tells batch, head and token; v is its negative, one wider."""
    b, h, t = torch.meshgrid(
        torch.arange(batch), torch.arange(heads), torch.arange(start, start + length), indexing="ij"
    )
    k = (b * 1e4 + h * 1e3 + t).float()[..., None].expand(-1, -1, -1, width)
    return k.contiguous(), -k[..., :1].expand(-1, -1, -1, width + 1).contiguous()


def contents(slab):
    """Token numbers of every segment."""
    return [
        slab.k[s : s + n, 0].remainder(1000).int().tolist()
        for s, n in zip(slab.starts.tolist(), slab.lengths.tolist(), strict=True)
    ]


def test_a_dense_slab_is_seen_through_views():
    k, v = tokens()
    slab = Slab.from_dense(k, v, slack=2)
    seen_k, seen_v = slab.dense()
    assert torch.equal(seen_k, k)
    assert torch.equal(seen_v, v)
    assert seen_k.untyped_storage().data_ptr() == slab.k.untyped_storage().data_ptr()


def test_appending_grows_without_changing_what_is_there():
    slab = Slab.from_dense(*tokens(length=3))
    for t in range(3, 120):
        slab.append(*tokens(length=1, start=t), position=t)
    assert contents(slab) == [list(range(120))] * 6


def test_growth_is_amortized():
    slab = Slab.from_dense(*tokens(length=1))
    copies = 0
    for t in range(1, 2000):
        before = slab.k.data_ptr()
        slab.append(*tokens(length=1, start=t), position=t)
        copies += slab.k.data_ptr() != before
    assert copies < 50


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=6, max_size=6), st.integers(0, 5), st.data())
def test_gather_keeps_exactly_the_chosen_tokens(lengths, slack, data):
    chosen = [sorted(data.draw(st.permutations(range(7)))[:n]) for n in lengths]
    k, v = tokens()
    index = torch.tensor([t for row in chosen for t in row], dtype=torch.int64)
    column = torch.arange(7).expand(2, 3, 7)
    slab = Slab.gather(k, v, index, torch.tensor(lengths), {"position": column}, slack)
    assert contents(slab) == chosen
    assert len(slab.k) == sum(lengths) + 6 * slack
    slab.append(*tokens(length=2, start=7), position=7)
    assert contents(slab) == [[*row, 7, 8] for row in chosen]
    for s, n in zip(slab.starts.tolist(), slab.lengths.tolist(), strict=True):
        assert (
            slab.columns["position"][s : s + n].tolist()
            == slab.k[s : s + n, 0].remainder(1000).int().tolist()
        )


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "fused", "odd"])
def test_gather_reads_any_layout_of_keys(layout):
    k, v = tokens(width=4)
    if layout == "transposed":
        k = k.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "fused":
        k = torch.cat([k, k + 0.5], -1)[..., :4]
    if layout == "odd":
        k = torch.cat([k, k[..., :3]], -1)[..., :4]
    index = torch.tensor([1, 4, 6] * 6)
    slab = Slab.gather(k, v, index, torch.full((6,), 3))
    assert contents(slab) == [[1, 4, 6]] * 6


def test_gather_frees_what_was_dropped():
    k, v = tokens(length=700)
    slab = Slab.gather(k, v, torch.tensor([5, 9] * 6), torch.full((6,), 2))
    assert slab.k.untyped_storage().nbytes() == 6 * 2 * 4 * 4
    assert slab.nbytes == 6 * 2 * (4 + 5) * 4 + 2 * 6 * 8


def test_aligned_puts_every_head_s_tokens_at_the_end():
    k, v = tokens(batch=1)
    slab = Slab.gather(k, v, torch.tensor([1, 2, 3, 0, 5, 6]), torch.tensor([3, 1, 2]))
    seen, _, padding, _ = slab.aligned()
    assert padding.tolist() == [[0, 2, 1]]
    assert seen[0, 0, :, 0].remainder(1000).tolist() == [1, 2, 3]
    assert seen[0, 1, 2:, 0].remainder(1000).tolist() == [0]
    assert seen[0, 2, 1:, 0].remainder(1000).tolist() == [5, 6]


def test_rows_are_selected_repeated_and_reordered():
    k, v = tokens()
    slab = Slab.gather(k, v, torch.arange(7).repeat(6)[:21], torch.tensor([7, 3, 4, 1, 4, 2]))
    before = contents(slab)
    picked = slab.select_batch(torch.tensor([1, 1, 0]))
    assert contents(picked) == [*before[3:], *before[3:], *before[:3]]


def test_newest_and_late_tokens_can_be_dropped():
    k, v = tokens(batch=1, heads=2)
    position = torch.arange(7).expand(1, 2, 7)
    slab = Slab.gather(
        k, v, torch.tensor([0, 3, 6, 2]), torch.tensor([3, 1]), {"position": position}
    )
    slab.append(*tokens(batch=1, heads=2, length=2, start=7), position=7)
    slab.drop_newest(1)
    assert contents(slab) == [[0, 3, 6, 7], [2, 7]]
    slab.drop_positions_from(6)
    assert contents(slab) == [[0, 3], [2]]


def test_oldest_tokens_can_be_dropped_and_their_rows_are_freed():
    slab = Slab.from_dense(*tokens(batch=1, heads=2, length=500))
    slab.drop_oldest(torch.tensor([490, 495]))
    assert contents(slab) == [list(range(490, 500)), list(range(495, 500))]
    assert len(slab.k) < 100
