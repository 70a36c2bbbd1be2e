"""Attention over rows: all implementations equal brute force, and read nothing they do not own."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recollect.core import kernels
from recollect.core.codecs.affine import PackedKV
from recollect.errors import RecipeError

IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["reference", "numba"])


def brute_force(q, k, v, starts, lengths, scale, bias=None, causal=True):
    """float64 attention, one segment and one query row at a time."""
    batch, heads, new, _ = q.shape
    per = batch * heads // len(lengths)
    out = torch.zeros(batch, heads, new, v.shape[-1], dtype=torch.float64)
    lse = torch.full((batch, heads, new), -math.inf, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            s = (b * heads + h) // per
            for i in range(new):
                seen = int(lengths[s]) - new + 1 + i if causal else int(lengths[s])
                if seen <= 0:
                    continue
                rows = slice(int(starts[s]), int(starts[s]) + seen)
                logits = k[rows].double() @ q[b, h, i].double() * scale
                if bias is not None:
                    logits = logits + bias[rows].double()
                out[b, h, i] = logits.softmax(0) @ v[rows].double()
                lse[b, h, i] = logits.logsumexp(0)
    return out, lse


def ragged(lengths, width, value_width, dtype=torch.float32, slack=3, seed=0):
    """Rows with NaN in the slack around the segments."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(lengths)
    capacities = lengths + slack
    starts = torch.cumsum(capacities, 0) - capacities + 1
    total = int(capacities.sum()) + 1
    k = torch.full((total, width), math.nan)
    v = torch.full((total, value_width), math.nan)
    bias = torch.full((total,), math.nan)
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        rows = slice(start, start + length)
        k[rows] = torch.randn(length, width, generator=draw)
        v[rows] = torch.randn(length, value_width, generator=draw)
        bias[rows] = torch.rand(length, generator=draw) * 3
    return k.to(dtype), v.to(dtype), bias, starts, lengths


def assert_close(result, expected, tolerance):
    out, lse = (x.double() for x in result)
    scale = max(1.0, float(expected[0].abs().max()))
    assert torch.isfinite(out).all()
    assert float((out - expected[0]).abs().max()) <= tolerance * scale
    empty = expected[1] == -math.inf
    assert torch.equal(lse == -math.inf, empty)
    torch.testing.assert_close(lse[~empty], expected[1][~empty], atol=1e-5, rtol=1e-5)


@IMPLEMENTATIONS
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 5, 31, 32, 33, 70, 300]), min_size=1, max_size=4),
    per=st.integers(1, 8),
    new=st.integers(1, 5),
    width=st.sampled_from([4, 16, 20, 40]),
    value_width=st.sampled_from([3, 16, 48]),
    biased=st.booleans(),
    causal=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_ragged_attention_is_brute_force(
    implementation, lengths, per, new, width, value_width, biased, causal, dtype
):
    k, v, bias, starts, counts = ragged(lengths, width, value_width, dtype)
    q = torch.randn(1, len(lengths) * per, new, width, dtype=torch.float32).to(dtype)
    options = {"bias": bias if biased else None, "causal": causal}
    result = kernels.ragged_attention(
        q, k, v, starts, counts, scale=0.4, implementation=implementation, **options
    )
    assert result[0].dtype == dtype
    assert result[1].dtype == torch.float32
    expected = brute_force(q, k, v, starts, counts, 0.4, **options)
    assert_close(result, expected, 2e-5 if dtype == torch.float32 else 1e-2)


@IMPLEMENTATIONS
@pytest.mark.parametrize("layout", ["contiguous", "view into a buffer", "token-major"])
def test_dense_attention_reads_strided_caches_in_place(implementation, layout):
    q = torch.randn(2, 6, 3, 32)
    if layout == "token-major":
        k, v = torch.randn(2, 70, 2, 32).transpose(1, 2), torch.randn(2, 70, 2, 24).transpose(1, 2)
    else:
        k, v = torch.randn(2, 2, 90, 32), torch.randn(2, 2, 90, 24)
        k[:, :, 70:], v[:, :, 70:] = math.nan, math.nan
        k, v = k[:, :, :70], v[:, :, :70]
        if layout == "contiguous":
            k, v = k.contiguous(), v.contiguous()
    bias = torch.rand(2, 2, 70)
    mask = torch.ones(3, 70, dtype=torch.bool).tril(67)
    weights = torch.where(mask, bias.repeat_interleave(3, 1)[:, :, None], -math.inf)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=weights, scale=0.3, enable_gqa=True
    )
    out, _ = kernels.dense_attention(q, k, v, scale=0.3, bias=bias, implementation=implementation)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=2e-6)


def test_numba_agrees_with_torch_within_1e_5():
    q, k, v = torch.randn(1, 8, 1, 128), torch.randn(1, 2, 3000, 128), torch.randn(1, 2, 3000, 128)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    out, _ = kernels.dense_attention(q, k, v, scale=128**-0.5, implementation="numba")
    assert float((out - expected).norm() / expected.norm()) < 1e-5


def test_many_threads_agree_with_one():
    k, v, bias, starts, lengths = ragged([9000, 10, 0, 7000], 64, 64)
    q = torch.randn(1, 8, 2, 64)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 3):
        torch.set_num_threads(count)
        results.append(kernels.ragged_attention(q, k, v, starts, lengths, scale=0.2, bias=bias))
    torch.set_num_threads(threads)
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


@IMPLEMENTATIONS
def test_parts_merge_to_the_whole(implementation):
    """Identity (5): attention over a union is the parts weighted by exp(lse)."""
    k, v, _, starts, lengths = ragged([40, 64], 16, 16)
    q = torch.randn(1, 4, 1, 16)
    options = {"scale": 0.5, "causal": False, "implementation": implementation}
    whole = kernels.ragged_attention(q, k, v, starts, lengths, **options)
    cut = torch.tensor([0, 17])
    parts = [
        kernels.ragged_attention(q, k, v, starts, cut, **options),
        kernels.ragged_attention(q, k, v, starts + cut, lengths - cut - 5, **options),
        kernels.ragged_attention(q, k, v, starts + lengths - 5, torch.tensor([5, 5]), **options),
    ]
    torch.testing.assert_close(kernels.merge_partials(parts), whole, rtol=1e-5, atol=1e-6)


def test_merging_nothing_with_nothing_is_nothing():
    empty = torch.zeros(1, 1, 1, 4), torch.full((1, 1, 1), -math.inf)
    something = torch.randn(1, 1, 1, 4), torch.zeros(1, 1, 1)
    out, lse = kernels.merge_partials([empty, empty])
    assert not out.any()
    assert lse.item() == -math.inf
    for parts in ([empty, something], [something, empty]):
        torch.testing.assert_close(kernels.merge_partials(parts), something)


@IMPLEMENTATIONS
def test_a_merged_token_with_log_count_replaces_identical_keys(implementation):
    """Identity (6): n identical keys are one key with the mean value and bias log n."""
    key, values = torch.randn(1, 8), torch.randn(5, 8)
    others_k, others_v = torch.randn(4, 8), torch.randn(4, 8)
    q = torch.randn(1, 2, 1, 8)
    start = torch.tensor([0])
    options = {"scale": 0.4, "implementation": implementation}
    apart = kernels.ragged_attention(
        q, torch.cat([others_k, key.expand(5, 8)]), torch.cat([others_v, values]),
        start, torch.tensor([9]), **options,
    )  # fmt: skip
    bias = torch.tensor([0.0, 0.0, 0.0, 0.0, math.log(5)])
    merged = kernels.ragged_attention(
        q, torch.cat([others_k, key]), torch.cat([others_v, values.mean(0, keepdim=True)]),
        start, torch.tensor([5]), bias=bias, **options,
    )  # fmt: skip
    torch.testing.assert_close(merged, apart, rtol=1e-5, atol=1e-6)


@IMPLEMENTATIONS
@settings(max_examples=25, deadline=None)
@given(
    groups=st.lists(st.integers(0, 9), min_size=2, max_size=4).filter(any),
    group=st.sampled_from([4, 8, 32, 64]),
    bits=st.sampled_from([2, 4, 8]),
    width=st.sampled_from([16, 64, 80]),
    value_width=st.sampled_from([64, 128]),
    per=st.integers(1, 4),
    new=st.integers(1, 3),
)
def test_packed_attention_is_decode_then_attend(
    implementation, groups, group, bits, width, value_width, per, new
):
    k, v, _, starts, lengths = ragged([g * group for g in groups], width, value_width)
    packed = PackedKV.encode_ragged(
        k, v, starts, lengths, batch=1, heads=len(groups), bits_k=bits, group=group
    )
    q = torch.randn(1, per * len(groups), new, width)
    decoded = [packed.decode_segment(s) for s in range(len(groups))]
    expected = brute_force(
        q,
        torch.cat([d[0] for d in decoded]),
        torch.cat([d[1] for d in decoded]),
        torch.cumsum(lengths, 0) - lengths,
        lengths,
        0.2,
        causal=False,
    )
    result = kernels.packed_attention(q, packed, scale=0.2, implementation=implementation)
    assert_close(result, expected, 1e-4)


def test_reference_is_differentiable_and_chosen_when_gradients_are_wanted():
    q = torch.randn(1, 2, 2, 8, requires_grad=True)
    k, v = torch.randn(1, 1, 5, 8), torch.randn(1, 1, 5, 8)
    kernels.dense_attention(q, k, v, scale=1.0)[0].sum().backward()
    assert torch.isfinite(q.grad).all()


def test_available_names_the_implementation():
    assert kernels.available("cpu", torch.float32) == "numba"
    assert kernels.available("cpu", torch.float64) == "reference"
    assert kernels.available("cpu", torch.float32, rows=100_000) == "reference"
    assert kernels.is_fast("cpu", torch.bfloat16, 4)
    with pytest.raises(RecipeError, match="reference, numba, triton"):
        kernels.dense_attention(*torch.zeros(3, 1, 1, 1, 4), scale=1.0, implementation="cuda")


@pytest.mark.slow
def test_compiled_loops_are_kept_between_processes(tmp_path):
    """NUMBA_CACHE_DIR is respected, one specialization per loop serves every dtype."""
    script = """
import torch
from recollect.core import kernels
from recollect.core.kernels import cpu_loops
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    q, k = torch.randn(1, 4, 1, 16).to(dtype), torch.randn(1, 2, 40, 16).to(dtype)
    for bias in (None, torch.zeros(1, 2, 40)):
        kernels.dense_attention(q, k, k, scale=1.0, bias=bias)
        kernels.ragged_attention(q, k[0, 0], k[0, 0], torch.tensor([0, 20]),
                                 torch.tensor([20, 20]), scale=1.0)
print(len(cpu_loops.attend_rows.signatures), len(cpu_loops.reduce_units.signatures),
      sum(cpu_loops.attend_rows.stats.cache_hits.values()))
"""
    env = {"NUMBA_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    runs = [
        subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert runs[0] == ["1", "1", "0"]
    assert runs[1] == ["1", "1", "1"]
