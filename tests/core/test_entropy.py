"""Entropy coder: lossless, close to the entropy, the same everywhere, and safe on hostile bytes."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recollect.core.codecs.distributions import (
    ESCAPE,
    SHAPES,
    WIDTHS,
    codable,
    family,
    mean_sizes,
    prices,
)
from recollect.core.codecs.entropy import LANES, TOTAL, Tables, decode, encode
from recollect.errors import RecipeError, StoreError

UNIFORM = Tables.from_counts(np.ones((1, 256)))


def coded(symbols, tables=UNIFORM, which=0):
    rows = np.array([len(symbols)]), np.array([which])
    return encode(np.asarray(symbols, np.uint8), tables, *rows), rows


def entropy(counts):
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum() * counts.sum())


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_symbols_under_any_complete_tables_come_back(data):
    """Also symbols the table never saw, rows of any length, and tables of one symbol."""
    size = data.draw(st.integers(1, 256))
    counts = data.draw(
        st.lists(
            st.lists(st.integers(0, 10**6), min_size=size, max_size=size), min_size=1, max_size=3
        )
    )
    tables = Tables.from_counts(np.array(counts))
    lengths = data.draw(st.lists(st.integers(0, 100), max_size=5))
    draw = np.random.default_rng(data.draw(st.integers(0, 99)))
    symbols = draw.integers(0, size, sum(lengths)).astype(np.uint8)
    rows = np.array(lengths, np.int64), draw.integers(0, len(counts), len(lengths))
    assert (decode(encode(symbols, tables, *rows), tables, *rows) == symbols).all()


def test_every_frequency_is_at_least_one_and_they_sum_up():
    for counts in ([1], [0, 0], [10**9, 0, 1], list(range(256)), [0] * 255 + [7]):
        frequencies = Tables.from_counts(np.array([counts])).frequencies[0]
        assert frequencies[: len(counts)].min() >= 1
        assert not frequencies[len(counts) :].any()
        assert frequencies.sum() == TOTAL


@pytest.mark.parametrize("spread", [0.7, 2.0, 8.0, 30.0])
@pytest.mark.parametrize("alphabet", [64, 256])
def test_payload_is_within_one_percent_of_the_entropy(spread, alphabet):
    """And 16 bits for each of the interleaved states."""
    middle = alphabet // 2
    draw = np.random.default_rng(0).normal(middle, spread, 40_000)
    symbols = np.clip(np.rint(draw), 0, alphabet - 1).astype(np.uint8)
    counts = np.bincount(symbols, minlength=alphabet)
    stream, _ = coded(symbols, Tables.from_counts(counts[None]))
    assert 8 * len(stream) <= 1.01 * entropy(counts) + 16 * LANES + 16
    assert 8 * len(stream) >= entropy(counts)


def test_symbols_without_a_slot_are_refused_by_the_encoder():
    tables = Tables(np.array([[TOTAL, *[0] * 255]], np.uint16))
    with pytest.raises(RecipeError, match="frequency 0"):
        coded([0, 0, 1], tables)
    stream, rows = coded([0] * 1000, tables)
    assert len(stream) == 4 * LANES
    assert not decode(stream, tables, *rows).any()


def test_rows_and_tables_that_do_not_fit_are_refused():
    for lengths, which in (([3], [1]), ([3], [-1]), ([2], [0]), ([4, -1], [0, 0]), ([3], [0, 0])):
        with pytest.raises(RecipeError):
            encode(np.zeros(3, np.uint8), UNIFORM, np.array(lengths), np.array(which))
    with pytest.raises(RecipeError, match="must sum to"):
        Tables(np.zeros((1, 256), np.uint16))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120), st.integers(0, 2000), st.integers(0, SHAPES * WIDTHS - 1))
def test_random_bytes_never_decode_to_anything(data, length, table):
    with pytest.raises(StoreError):
        decode(data, family(), np.array([length]), np.array([table]))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["flip", "cut", "grow"]))
def test_damaged_streams_are_noticed_or_harmless(seed, damage):
    """A coder is no checksum: what it must not do is crash, or read or write out of bounds."""
    draw = np.random.default_rng(seed)
    symbols = draw.integers(0, 256, 300).astype(np.uint8)
    stream, rows = coded(symbols)
    broken = bytearray(stream)
    if damage == "flip":
        broken[draw.integers(len(broken))] ^= 1 << draw.integers(8)
    elif damage == "cut":
        del broken[draw.integers(len(broken)) :]
    else:
        broken += draw.bytes(2)
    try:
        found = decode(bytes(broken), UNIFORM, *rows)
    except StoreError:
        return
    assert damage == "flip"
    assert len(found) == len(symbols)


# -- the fixed family -----------------------------------------------------------------------------


def test_the_family_is_the_same_on_every_machine():
    """Stored streams depend on it: another digest needs another family number."""
    digest = hashlib.sha256(family().frequencies.astype("<u2").tobytes()).hexdigest()
    assert digest == "bcbf2b9188dcc5609919e8be447cfa6d8a20166f721974850ce164fb167594ff"


def test_no_table_of_the_family_makes_a_symbol_free():
    assert family().frequencies[:, ESCAPE].min() >= 8
    assert family().frequencies.max() < TOTAL
    assert np.isfinite(prices()).all()
    assert not codable()[:, ESCAPE].any()


def test_mean_sizes_rise_with_the_width():
    assert (np.diff(mean_sizes(), axis=1) >= 0).all()


@pytest.mark.parametrize("law", ["normal", "laplace"])
@pytest.mark.parametrize("spread", [0.5, 1.5, 5.0, 20.0])
def test_some_table_of_the_family_is_near_the_entropy(law, spread):
    """Within 2% and 0.02 bit of the empirical entropy, which knows the very sample."""
    draw = getattr(np.random.default_rng(0), law)(0, spread, 100_000)
    symbols = np.clip(np.rint(draw), -127, 127).astype(int) + 128
    counts = np.bincount(symbols, minlength=256)
    best = (prices() @ counts).min()
    assert best <= 1.02 * entropy(counts) + 0.02 * len(symbols)
