"""Affine codec: the spec's examples, stability, error ordering, packing, and storage that grows."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recollect.core.codecs.affine import PackedKV
from recollect.core.codecs.packing import pack, pack_words, unpack, unpack_words
from recollect.core.codecs.quantize import (
    dequantize_channels,
    dequantize_tokens,
    quantize_channels,
    quantize_tokens,
)
from recollect.errors import RecipeError

BITS = pytest.mark.parametrize("bits", [1, 2, 4, 8])


def dense(length=64, width=32, value_width=16, batch=2, heads=3):
    draw = torch.Generator().manual_seed(0)
    k = torch.randn(batch, heads, length, width, generator=draw)
    return k, torch.randn(batch, heads, length, value_width, generator=draw)


def channel_error(x, bits, group):
    return relative(dequantize_channels(*quantize_channels(x, bits, group), group), x)


def token_error(x, bits, group):
    return relative(dequantize_tokens(*quantize_tokens(x, bits, group), group), x)


def relative(decoded, x):
    return float((decoded - x).norm() / x.norm())


# -- mathematics ------------------------------------------------------------------------------


def test_worked_example_of_the_spec():
    codes, scale, minimum = quantize_tokens(torch.tensor([[0.0, 1.0, 2.0, 10.0]]), 2, 4)
    assert codes.tolist() == [[0, 0, 1, 3]]
    assert scale.item() == torch.tensor(10 / 3).half().item()
    decoded = dequantize_tokens(codes, scale, minimum, 4)
    torch.testing.assert_close(decoded, torch.tensor([[0, 0, 10 / 3, 10.0]]), rtol=1e-3, atol=0)


@BITS
@pytest.mark.parametrize("value", [0.0, 3.25, -60000.0, 1e-9, 5001.0])
def test_constant_groups_have_scale_one_and_codes_zero(bits, value):
    codes, scale, minimum = quantize_channels(torch.full((8, 4), value), bits, 8)
    assert not codes.any()
    assert (scale == 1).all()
    assert (minimum == torch.tensor(value).half()).all()


@BITS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    offset=st.sampled_from([0.0, 0.1, 8.0, -8.0, 300.0]),
    spread=st.sampled_from([0.01, 1.0, 30.0]),
)
def test_encoding_what_was_decoded_changes_nothing(bits, dtype, seed, offset, spread):
    # A 16-bit tensor whose spread is a few of its own steps has no room for a grid of ours.
    assume(spread > abs(offset) * torch.finfo(dtype).eps * 16)
    draw = torch.Generator().manual_seed(seed)
    x = (torch.randn(32, 16, generator=draw) * spread + offset).to(dtype)
    for quantize, dequantize, group in (
        (quantize_channels, dequantize_channels, 16),
        (quantize_tokens, dequantize_tokens, 8),
    ):
        first = quantize(x, bits, group)
        decoded = dequantize(*first, group)
        second = quantize(decoded, bits, group)
        if bool((first.scale < 2.0**-14).any()):
            continue  # a subnormal scale has too few bits to return to itself
        assert torch.equal(dequantize(*second, group), decoded)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), bits=st.sampled_from([2, 4, 8]))
def test_error_is_at_most_half_a_step_and_the_rounding_of_the_parameters(seed, bits):
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(seed)) * 5
    quantized = quantize_channels(x, bits, 32)
    error = (dequantize_channels(*quantized, 32) - x).abs().view(2, 32, 8).amax(1)
    step = quantized.scale.float()
    rounding = quantized.minimum.float().abs() * 2**-11 + step * 2**-11 * (2**bits - 1)
    assert (error <= step / 2 + rounding + 1e-6).all()


def test_keys_with_offset_channels_rank_the_groupings_as_in_the_spec():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(512, 128, generator=draw)
    x[:, :4] = x[:, :4] * 2 + torch.tensor([8.0, -8.0, 8.0, -8.0])
    for bits, expected in ((2, (0.22, 0.28, 0.65, 1.22)), (4, (0.044, 0.057, 0.12, 0.21))):
        errors = (
            channel_error(x, bits, 32),
            channel_error(x, bits, 128),
            token_error(x, bits, 32),
            token_error(x, bits, 128),
        )
        assert list(errors) == sorted(errors)
        assert errors == pytest.approx(expected, rel=0.25)


def test_kivi_axes_beat_the_other_pairings_at_two_bits():
    draw = torch.Generator().manual_seed(0)
    k, v = torch.randn(512, 128, generator=draw), torch.randn(512, 128, generator=draw)
    k[:, :4] = k[:, :4] * 2 + 8.0
    q = torch.randn(64, 128, generator=draw)

    def both(x):
        return (
            dequantize_channels(*quantize_channels(x, 2, 32), 32),
            dequantize_tokens(*quantize_tokens(x, 2, 32), 32),
        )

    def attend(k, v):
        return (q @ k.T / math.sqrt(128)).softmax(-1) @ v

    exact = attend(k, v)
    errors = {
        (a, b): relative(attend(keys, values), exact)
        for a, keys in zip("ct", both(k), strict=True)
        for b, values in zip("ct", both(v), strict=True)
    }
    assert errors["c", "t"] < min(errors["t", "t"], errors["t", "c"])


# -- packing ----------------------------------------------------------------------------------


@BITS
def test_packing_is_lossless(bits):
    codes = torch.randint(0, 2**bits, (5, 64), dtype=torch.uint8)
    assert torch.equal(unpack(pack(codes, bits), bits), codes)
    assert torch.equal(unpack_words(pack_words(codes, bits), bits), codes)


def test_packing_is_planar():
    codes = torch.arange(8, dtype=torch.uint8)
    assert pack(codes, 4).tolist() == [[0 | 4 << 4, 1 | 5 << 4, 2 | 6 << 4, 3 | 7 << 4]][0]
    assert pack(codes % 4, 2).tolist() == [0b10_00_10_00 & 0xFF, 0b11_01_11_01]


def test_kivi_words_hold_neighbours_first_lowest():
    codes = torch.arange(16, dtype=torch.uint8) % 4
    word = sum(int(c) << (2 * i) for i, c in enumerate(codes))
    assert pack_words(codes, 2).item() == word - (1 << 32 if word >= 1 << 31 else 0)


@pytest.mark.parametrize("bits", [2, 4])
def test_kivi_layout_holds_the_same_codes(bits):
    """Bit for bit what KIVI's formula gives in float32, packed as KIVI packs it."""
    k, v = (x.half() for x in dense(length=64, width=32, value_width=32))
    k_words, k_scale, k_min, v_words, _, _ = PackedKV.encode_dense(k, v, bits, bits, 32).to_kivi()
    groups = k.transpose(2, 3).float().unflatten(-1, (-1, 32))
    minimum = groups.amin(-1)
    scale = ((groups.amax(-1) - minimum) / (2**bits - 1)).half()
    codes = ((groups - minimum[..., None]) / scale[..., None]).round().clamp(0, 2**bits - 1)
    assert torch.equal(k_scale, scale)
    assert torch.equal(k_min, minimum.half())
    assert torch.equal(unpack_words(k_words, bits), codes.flatten(-2).to(torch.uint8))
    assert v_words.shape == (2, 3, 64, 32 * bits // 32)


# -- storage ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_dense_and_ragged_encoding_agree(bits):
    k, v = dense()
    one = PackedKV.encode_dense(k.transpose(1, 2).contiguous().transpose(1, 2), v, bits, group=16)
    rows = [x.reshape(-1, x.shape[-1]) for x in (k, v)]
    starts, lengths = torch.arange(6) * 64, torch.full((6,), 64)
    two = PackedKV.encode_ragged(*rows, starts, lengths, batch=2, heads=3, bits_k=bits, group=16)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name


def test_long_inputs_are_encoded_in_parts(monkeypatch):
    k, v = dense(length=128)
    whole = PackedKV.encode_dense(k, v, 4, group=16)
    for chunk in (16 * 32, 48 * 32, 200 * 32):
        monkeypatch.setattr("recollect.core.codecs.affine.CHUNK", chunk)
        parts = PackedKV.encode_dense(k, v, 4, group=16)
        assert torch.equal(parts.k_codes, whole.k_codes)
        assert torch.equal(parts.v_min, whole.v_min)


def test_appending_in_steps_equals_encoding_at_once():
    k, v = dense(length=96)
    whole = PackedKV.encode_dense(k, v, 4, group=16)
    packed = PackedKV.encode_dense(k[:, :, :16], v[:, :, :16], 4, group=16)
    for t in range(16, 96, 16):
        packed.append(k[:, :, t : t + 16], v[:, :, t : t + 16])
    assert packed.lengths.tolist() == [96] * 6
    for segment in range(6):
        for got, expected in zip(
            packed.decode_segment(segment), whole.decode_segment(segment), strict=True
        ):
            assert torch.equal(got, expected)


def test_slack_stays_small_and_appends_rarely_copy():
    k, v = dense(length=1024, batch=1, heads=2)
    packed = PackedKV.encode_dense(k, v, 4, group=16)
    moves = 0
    for _ in range(16):
        before = packed.k_codes.data_ptr()
        packed.append(k[:, :, :16], v[:, :, :16])
        moves += before != packed.k_codes.data_ptr()
        assert len(packed.k_codes) <= 2 * (1280 * 17 // 16 + 16)
    assert moves <= 4


def test_ragged_segments_may_be_empty_and_grow_apart():
    k, v = torch.randn(48, 16), torch.randn(48, 8)
    packed = PackedKV.encode_ragged(
        k, v, torch.tensor([0, 32, 32]), torch.tensor([32, 0, 16]), batch=1, heads=3, group=16
    )
    packed.append(k[:48].view(1, 3, 16, 16), v.view(1, 3, 16, 8))
    assert packed.lengths.tolist() == [48, 16, 32]
    tile = packed.decode_tile(16, 40)
    assert tile.valid.sum(1).tolist() == [24, 0, 16]
    assert not tile.k[~tile.valid].any()
    assert torch.equal(tile.v[0, :24], packed.decode_segment(0, 16, 40)[1])


def test_nothing_encoded_yet_can_be_read_and_appended_to():
    k, v = dense(length=16)
    packed = PackedKV.encode_dense(k[:, :, :0], v[:, :, :0], 4, group=16)
    assert packed.decode_tile(0, 4).k.shape == (6, 4, 32)
    packed.append(k, v)
    assert packed.lengths.tolist() == [16] * 6


def test_batches_are_selected_and_state_goes_round():
    k, v = dense()
    packed = PackedKV.encode_dense(k, v, 4, 2, group=16)
    chosen = packed.select_batch(torch.tensor([1, 1, 0]))
    assert chosen.batch == 3
    assert torch.equal(chosen.decode_segment(0)[0], packed.decode_segment(3)[0])
    copy = PackedKV.from_state_dict(packed.state_dict())
    assert copy.bits_v == 2
    assert torch.equal(copy.decode_tile(0, 64).v, packed.decode_tile(0, 64).v)


def test_bytes_are_those_of_the_format():
    """4 bits and fp16 scale and minimum per 32 values: 5 bits per element."""
    k, v = torch.randn(1, 2, 256, 128), torch.randn(1, 2, 256, 128)
    packed = PackedKV.encode_dense(k, v, 4, group=32)
    addresses = 2 * 2 * 8
    assert packed.nbytes == 2 * 2 * 256 * 128 * 5 // 8 + addresses


@pytest.mark.parametrize(
    ("width", "value_width", "bits", "length", "message"),
    [
        (30, 32, 2, 32, "use 8 bits"),
        (32, 40, 4, 32, "choose a group that divides it"),
        (32, 32, 3, 32, "bits is one of"),
        (32, 32, 4, 33, "multiples of the group of 32"),
    ],
)
def test_what_does_not_fit_says_what_to_change(width, value_width, bits, length, message):
    k, v = torch.randn(1, 1, length, width), torch.randn(1, 1, length, value_width)
    with pytest.raises(RecipeError, match=message):
        PackedKV.encode_dense(k, v, bits, group=32)
