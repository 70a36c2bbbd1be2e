"""CacheGen's codec: error bounds, the choice between anchors and direct coding, hostile bytes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recollect.core.codecs import cachegen_released as released
from recollect.core.codecs.cachegen import (
    ANCHOR_FINENESS,
    GROUP,
    LEVELS,
    PREFIX,
    bin_width,
    decode,
    encode,
)
from recollect.errors import StoreError

MODES = pytest.mark.parametrize("mode", ["auto", "direct", "delta"])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def autoregressive(correlation, heads=2, tokens=256, width=16):
    """Channels whose neighbouring tokens correlate."""
    x = noise(heads, tokens, width)
    for t in range(1, tokens):
        x[:, t] = correlation * x[:, t - 1] + (1 - correlation**2) ** 0.5 * x[:, t]
    return x


def decoded(data, x):
    return decode(np.frombuffer(data, np.uint8), *x.shape)


def step_of(data):
    """The layer's step; channels eight times as wide as usual have a larger one."""
    return PREFIX.unpack(data[: PREFIX.size])[-1]


def steps_of(data):
    """Of every channel (C,)."""
    flags, channels = (PREFIX.unpack(data[: PREFIX.size])[i] for i in (3, 5))
    at = PREFIX.size + 2 * channels
    exponents = list(data[at : at + channels]) if flags else [0] * channels
    return step_of(data) * torch.tensor(exponents, dtype=torch.float32).exp2()


# -- quality ----------------------------------------------------------------------------------


@MODES
@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 70),
    width=st.integers(1, 20),
    bins=st.sampled_from([0.01, 0.25, 1.0, 3.0]),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    offset=st.sampled_from([0.0, 5.0, -900.0]),
    group=st.sampled_from([2, 10, 255]),
)
def test_no_value_is_further_off_than_half_a_step(mode, tokens, width, bins, scale, offset, group):
    x = (noise(2, tokens, width) + offset) * scale
    x[:, :, 0] *= 50  # one wide channel
    data = encode(x, bins, mode=mode, group=group)
    found = decoded(data, x)
    assert found.shape == x.shape
    allowed = steps_of(data).view(2, 1, width) * 0.501 + 1e-6 * x.abs()
    assert ((found - x).abs() <= allowed).all()


def test_anchors_are_exact_as_their_bin_goes_to_zero():
    x = autoregressive(0.9)
    errors = [
        float((decoded(encode(x, width, mode="delta"), x) - x).abs().max())
        for width in (1.0, 1e-2, 1e-4, 1e-6)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6


def test_anchors_are_finer_than_what_is_predicted_from_them():
    x = noise(4, 255, 16)
    data = encode(x, 1.0, mode="delta")
    off = (decoded(data, x) - x).abs()
    half = step_of(data) / 2
    assert float(off[:, ::GROUP].max()) <= half / ANCHOR_FINENESS * 1.001
    assert float(off.max()) > half / ANCHOR_FINENESS


@MODES
@pytest.mark.parametrize("value", [0.0, 3.25, -1e-3, 1e6])
def test_constant_channels_cost_next_to_nothing_and_come_back(mode, value):
    x = torch.full((2, 256, 8), value)
    data = encode(x, 0.5, mode=mode)
    torch.testing.assert_close(decoded(data, x), x, rtol=2**-8, atol=1e-7)
    assert len(data) < 300


def test_an_outlier_token_costs_only_itself():
    x = noise(2, 256, 32)
    plain = len(encode(x, 0.5))
    x[:, 0] *= 300  # the first token of a sequence often looks like this
    data = encode(x, 0.5)
    assert len(data) - plain < 2 * 32 * 8 + 0.1 * plain
    assert float((decoded(data, x) - x).abs().amax()) <= step_of(data) * 0.501


def test_a_level_costs_about_the_same_whatever_the_scale_of_channels():
    flat = noise(2, 256, 32)
    uneven = flat * torch.logspace(-0.8, 0.8, 32)
    assert abs(len(encode(uneven, 0.5)) / len(encode(flat, 0.5)) - 1) < 0.05


@MODES
def test_very_wide_and_dead_channels_neither_cost_much_nor_disturb_the_others(mode):
    flat = noise(2, 256, 32)
    uneven = flat.clone()
    uneven[:, :, 3] *= 1000
    uneven[:, :, 5] *= 1e-9
    data = encode(uneven, 0.5, mode=mode)
    assert len(data) < 1.06 * len(encode(flat, 0.5, mode=mode))
    off = (decoded(data, uneven) - uneven).abs()
    assert float(off[:, :, 6:].max()) < 0.3
    assert float(off[:, :, 3].max()) < 0.5 * 1000 / 8


def test_levels_trade_size_for_error_and_later_layers_are_coarser():
    x = noise(2, 256, 32)
    streams = [encode(x, bin_width(level, 0, 3)) for level in range(len(LEVELS))]
    sizes = [len(data) for data in streams]
    errors = [float((decoded(data, x) - x).norm()) for data in streams]
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    assert sizes[0] * 8 / x.numel() < 4.3  # log2(4 sqrt(2 pi e)) = 4.05 and side information
    thirds = [bin_width(1, layer, 6) for layer in range(6)]
    assert thirds == [0.5, 0.5, 1.0, 1.0, 1.5, 1.5]
    with pytest.raises(StoreError, match="levels 0 to 3"):
        bin_width(4, 0, 1)


# -- anchors or not ---------------------------------------------------------------------------


def test_deltas_win_on_correlated_tokens_and_lose_on_white_noise():
    for correlation, better in ((0.0, "direct"), (0.99, "delta")):
        x = autoregressive(correlation)
        sizes = {mode: len(encode(x, 0.5, mode=mode)) for mode in ("direct", "delta")}
        assert min(sizes, key=sizes.get) == better
        assert len(encode(x, 0.5)) <= min(sizes.values()) * 1.01


def test_variance_of_deltas_follows_the_lag():
    """Var(x_t - x_0) = 2 (1 - rho^t): below the variance itself up to lag 6 for rho = 0.9."""
    x = autoregressive(0.9, tokens=40_000, width=2)
    for lag in (1, 6, 7, 9):
        ratio = float((x[:, lag:] - x[:, :-lag]).var() / x.var())
        assert ratio == pytest.approx(2 * (1 - 0.9**lag), abs=0.06)
        assert (ratio < 1) == (lag <= 6)


def test_each_channel_chooses_for_itself():
    x = torch.cat([autoregressive(0.995), noise(2, 256, 16, seed=1)], dim=-1)
    mixed = len(encode(x, 0.5))
    assert mixed < 0.97 * min(len(encode(x, 0.5, mode=mode)) for mode in ("direct", "delta"))


# -- refusals ---------------------------------------------------------------------------------


def test_values_too_far_apart_are_refused():
    with pytest.raises(StoreError, match="too far apart"):
        encode(noise(1, 64, 8), 1e-10)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**9))
def test_hostile_streams_raise_or_decode_to_the_asked_shape(seed):
    """Flips, cuts, splices, and headers that lie: a frame's checksum is not counted on here."""
    draw = np.random.default_rng(seed)
    x = noise(2, 20, 4, seed=seed % 5)
    data = bytearray(encode(x, 0.5, mode=["direct", "delta"][seed % 2]))
    for _ in range(draw.integers(1, 4)):
        at = int(draw.integers(len(data)))
        match draw.integers(4):
            case 0:
                data[at] ^= 1 << int(draw.integers(8))
            case 1:
                del data[at : at + int(draw.integers(1, 9))]
            case 2:
                data[at:at] = draw.bytes(int(draw.integers(1, 9)))
            case 3:
                at = int(draw.integers(4, PREFIX.size - 4))
                data[at : at + 4] = draw.choice([b"\xff" * 4, b"\0\0\0\x80", b"\0\0\1\0"])
        if not data:
            break
    try:
        found = decoded(bytes(data), x)
    except StoreError:
        return
    assert found.shape == x.shape


@pytest.mark.parametrize("shape", [(2, 20, 5), (2, 21, 4), (1, 20, 4), (2**20, 2**20, 4)])
def test_streams_of_another_shape_are_refused(shape):
    data = np.frombuffer(encode(noise(2, 20, 4), 0.5), np.uint8)
    with pytest.raises(StoreError, match="shape"):
        decode(data, *shape)


# -- the released code ------------------------------------------------------------------------


def test_worked_example_of_the_released_quantizer():
    x = torch.tensor([[0.5, -1.0, 0.25, 2.0]])
    symbols, largest = released.quantize(x, 16)
    assert symbols.tolist() == [[9, 4, 8, 14]]
    expected = torch.tensor([[4 / 7, -6 / 7, 2 / 7, 2.0]])
    torch.testing.assert_close(released.dequantize(symbols, largest, 16), expected)
    assert released.quantize(torch.zeros(1, 4), 16)[0].tolist() == [[7] * 4]


def test_released_tables_rise_strictly_and_weigh_what_the_specification_says():
    symbols, _ = released.quantize(noise(256, 8), 32)
    table = released.cumulative(symbols, 32)
    assert (table.diff(dim=-1) >= 1).all()
    assert table.max() <= 2**16 - 1
    side = released.chunk_bits(symbols, 32) - released.payload_bits(symbols, 32)
    assert (side - 16 * 256) / symbols.numel() == pytest.approx(2.19, abs=0.01)


def test_we_are_smaller_than_the_released_form_at_no_more_error():
    x = noise(8, 256, 32)
    flat = x.transpose(0, 1).reshape(256, -1)
    symbols, largest = released.quantize(flat, 32)
    theirs = float((released.dequantize(symbols, largest, 32) - flat).norm())
    data = encode(x, 0.2)
    assert float((decoded(data, x) - x).norm()) <= theirs
    assert 8 * len(data) < released.chunk_bits(symbols, 32)
