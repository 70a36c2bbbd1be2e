"""Parity: any one slice comes back from the others, whatever its length."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recollect.core.parity import bounds, parity, parity_holder, rebuild, slice_length, xor_into


def test_worked_example_of_three_bytes():
    data = bytes.fromhex("5a3cf0")
    total = parity([data[i : i + 1] for i in range(3)], 1)
    assert total.tobytes().hex() == "96"
    assert rebuild([b"\x5a", b"\xf0", total], 1, 1).tobytes().hex() == "3c"


@given(st.binary(max_size=200), st.integers(1, 7))
def test_any_lost_slice_is_rebuilt_byte_for_byte(data, count):
    length = slice_length(len(data), count)
    slices = [data[first:end] for first, end in bounds(len(data), count)]
    assert b"".join(slices) == data
    total = parity(slices, length)
    assert len(total) == length
    for lost, missing in enumerate(slices):
        others = [*slices[:lost], *slices[lost + 1 :], total]
        assert rebuild(others, length, len(missing)).tobytes() == missing


@given(st.binary(min_size=1, max_size=100), st.integers(1, 5), st.integers(1, 40))
def test_parity_grows_with_the_data_as_they_arrive(data, count, step):
    length = slice_length(len(data), count)
    running = np.zeros(length, np.uint8)
    for first, end in bounds(len(data), count):
        for at in range(first, end, step):
            xor_into(running, data[at : min(at + step, end)], at - first)
    slices = [data[first:end] for first, end in bounds(len(data), count)]
    assert running.tobytes() == parity(slices, length).tobytes()


def test_parity_goes_round_over_the_holders():
    holders = [parity_holder(key.to_bytes(32, "big"), 4) for key in range(4000)]
    assert set(holders) == {0, 1, 2, 3}
    rng = np.random.default_rng(0)
    random = [parity_holder(rng.bytes(32), 4) for _ in range(4000)]
    assert min(np.bincount(random)) > 850


def test_nothing_to_cut_is_refused():
    with pytest.raises(ValueError, match="0 slices"):
        slice_length(10, 0)
