"""Triton kernels: in triton's interpreter where there is no GPU, for real where there is one."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton", reason="needs triton (pip install triton), which GPU builds bring")

from recollect.core import kernels
from recollect.core.codecs.affine import PackedKV

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def on_device(*tensors):
    return [x.to(DEVICE) for x in tensors]


def assert_same(call, tolerance=2e-5):
    out, lse = call("triton")
    expected, expected_lse = call("reference")
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("width", "value_width"), [(16, 16), (40, 24)])
def test_dense(new, biased, width, value_width):
    q = torch.randn(2, 6, new, width)
    k, v = torch.randn(2, 400, 2, width), torch.randn(2, 400, 2, value_width)
    bias = torch.rand(2, 2, 300)
    q, k, v, bias = on_device(q, k, v, bias)
    k, v = k.transpose(1, 2)[:, :, :300], v.transpose(1, 2)[:, :, :300]
    assert_same(
        lambda name: kernels.dense_attention(
            q, k, v, scale=0.3, bias=bias if biased else None, implementation=name
        )
    )


@pytest.mark.parametrize("causal", [True, False])
def test_ragged_with_empty_segments_and_nan_in_the_slack(causal):
    lengths = torch.tensor([300, 0, 1, 65])
    starts = torch.tensor([2, 310, 310, 320])
    k, v = torch.full((400, 16), float("nan")), torch.full((400, 32), float("nan"))
    for start, length in zip(starts, lengths, strict=True):
        k[start : start + length] = torch.randn(int(length), 16)
        v[start : start + length] = torch.randn(int(length), 32)
    q, k, v = on_device(torch.randn(2, 4, 2, 16), k, v)
    assert_same(
        lambda name: kernels.ragged_attention(
            q, k, v, starts, lengths, scale=0.3, causal=causal, implementation=name
        )
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("group", "width"), [(32, 64), (16, 48), (128, 64)])
def test_packed(bits, group, width):
    lengths = torch.tensor([512, 0, 128, 384])
    k, v = on_device(torch.randn(1024, width), torch.randn(1024, 128))
    packed = PackedKV.encode_ragged(
        k,
        v,
        torch.cumsum(lengths, 0) - lengths,
        lengths,
        batch=2,
        heads=2,
        bits_k=bits,
        group=group,
    )
    (q,) = on_device(torch.randn(2, 4, 1, width))
    assert_same(
        lambda name: kernels.packed_attention(q, packed, scale=0.2, implementation=name), 1e-4
    )


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_real_hardware(dtype):
    q = torch.randn(2, 32, 1, 128, device="cuda", dtype=dtype)
    k, v = torch.randn(2, 2, 8, 5000, 128, device="cuda", dtype=dtype)
    k, v = k[:, :, :4992], v[:, :, :4992]
    scale = 128**-0.5
    assert kernels.available("cuda", dtype) == "triton"
    assert_same(
        lambda name: kernels.dense_attention(q, k, v, scale=scale, implementation=name), 2e-2
    )
    packed = PackedKV.encode_dense(k, v, 4, group=32)
    assert_same(
        lambda name: kernels.packed_attention(q, packed, scale=scale, implementation=name), 2e-2
    )
