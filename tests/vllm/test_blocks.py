"""Block codecs: what a kernel wrote comes out in logical order, and what is put in stays put."""

import platform

import pytest
import torch

from recollect.errors import HostError
from recollect.vllm.blocks import CpuAmx, CpuVec, Plain, codec_for

BLOCKS, HEADS, SLOTS = 5, 2, 32
CODECS = [
    Plain(64, 64), Plain(64, 32), Plain(96, 0), CpuVec(32, 32), CpuVec(64, 64), CpuVec(80, 80),
    CpuAmx(64, 64), CpuAmx(96, 96),
]  # fmt: skip


def cache_of(codec, dtype=torch.float32):
    return torch.randn(BLOCKS, HEADS, SLOTS, codec.width + codec.value_width).to(dtype)


def rows(codec, n, dtype=torch.float32):
    shapes = ((HEADS, n * SLOTS, width) for width in (codec.width, codec.value_width))
    return [torch.randn(shape).to(dtype) for shape in shapes]


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_read_back_and_other_blocks_stay(codec, dtype):
    cache = cache_of(codec, dtype)
    before = cache.clone()
    k, v = rows(codec, 3, dtype)
    codec.write(cache, [4, 1, 2], k, v)
    found = codec.read(cache, [4, 1, 2])
    assert torch.equal(found[0], k)
    assert torch.equal(found[1], v)
    assert torch.equal(cache[[0, 3]], before[[0, 3]])
    assert codec.read(cache, [1])[0].equal(k[:, SLOTS : 2 * SLOTS])


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_every_element_of_a_block_belongs_to_one_key_or_value(codec):
    """Reading and writing a block permutes it: nothing is left out or taken twice."""
    size = codec.width + codec.value_width
    cache = torch.arange(HEADS * SLOTS * size, dtype=torch.float32).view(1, HEADS, SLOTS, size)
    k, v = codec.read(cache, [0])
    found = torch.cat([k.flatten(), v.flatten()]).sort().values
    assert torch.equal(found, cache.flatten())


def test_the_cpu_kernel_keeps_keys_transposed_and_values_straight():
    cache = torch.arange(SLOTS * 64, dtype=torch.float32).view(1, 1, SLOTS, 64)
    k, v = CpuVec(32, 32).read(cache, [0])
    plane = cache.flatten()
    assert k[0, 5, 7] == plane[7 * SLOTS + 5]
    assert v[0, 5, 7] == plane[SLOTS * 32 + 5 * 32 + 7]


def test_amx_tiles_hold_pairs():
    cache = torch.arange(SLOTS * 64, dtype=torch.float32).view(1, 1, SLOTS, 64)
    k, v = CpuAmx(32, 32).read(cache, [0])
    plane = cache.flatten()
    keys = plane[: SLOTS * 32].view(SLOTS // 16, 16, 16, 2)
    values = plane[SLOTS * 32 :].view(2, SLOTS // 2, 16, 2)
    assert k[0, 21, 13] == keys[1, 6, 5, 1]
    assert v[0, 21, 13] == values[0, 10, 13, 1]


def test_a_cache_with_foreign_strides_reads_the_same():
    """On CUDA the physical order of blocks, heads and layers varies; the logical view does not."""
    codec = Plain(64, 64)
    straight = cache_of(codec)
    other = straight.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    assert other.stride() != straight.stride()
    assert all(map(torch.equal, codec.read(straight, [3, 0]), codec.read(other, [3, 0])))
    k, v = rows(codec, 1)
    codec.write(other, [2], k, v)
    assert codec.read(other, [2])[0].equal(k)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the CPU codecs are those of x86-64")
def test_the_codec_is_chosen_by_device_and_format():
    assert codec_for(cache_of(CpuVec(64, 64)), 64, 64) == CpuVec(64, 64)
    assert type(codec_for(cache_of(CpuVec(80, 80), torch.bfloat16), 80, 80)) is CpuVec


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        (torch.zeros(2, 4, 2, 32, 64), "not supported"),
        (torch.zeros(4, 2, 32, 96), "not supported"),
        (torch.zeros(4, 2, 32, 64, dtype=torch.uint8), "kv-cache-dtype auto"),
        (torch.zeros(4, 2, 32, 64, device="meta"), "no block codec"),
        (torch.zeros(4, 32, 2, 64).transpose(1, 2), "one run"),
    ],
)
def test_unknown_layouts_are_refused(cache, message):
    with pytest.raises(HostError, match=message):
        codec_for(cache, 32, 32)
