"""Frames: what goes in comes out, in place; what cannot be trusted is refused in words."""

import mmap
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recollect.errors import StoreError
from recollect.store.exactness import Exactness
from recollect.store.frames import FrameHeader, decode_layer, encode_layers, pack, unpack
from recollect.store.frames.container import ALIGN, DTYPES, PREFIX

HEADER = FrameHeader(model="m", tokens=40, first_position=256)
FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


def layers(dtype=torch.float32, tokens=40, count=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [
        tuple(torch.randn(2, tokens, d, generator=draw).to(dtype) for d in (32, 16))
        for _ in range(count)
    ]


def packed(*arguments, **keywords):
    return b"".join(encode_layers(*arguments, **keywords))


def refused(data, match, **arguments):
    with pytest.raises(StoreError, match=match):
        unpack(data, **arguments)


# -- round trips ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_any_tensor_comes_back_bit_for_bit(dtype):
    x = torch.randint(0, 2, (3, 0, 5)), torch.randint(0, 2, (3, 5)), torch.tensor(1)
    sections = {str(i): t.to(dtype) for i, t in enumerate(x)} | {"raw": b"abc", "none": b""}
    frame = unpack(b"".join(pack(HEADER, sections)))
    for name in "012":
        found = frame.section(name)
        assert found.dtype == dtype
        assert torch.equal(found.to(torch.float64), sections[name].to(torch.float64))
    assert bytes(frame.view("raw")) == b"abc"
    assert frame.section("none").shape == (0,)


@given(
    st.dictionaries(st.text(max_size=8), st.binary(max_size=200), max_size=5),
    st.integers(0, 2**40),
    st.sampled_from(list(Exactness)),
    st.sampled_from(["post-rope", "pre-rope"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
        max_leaves=5,
    ),
)
def test_every_header_reads_back_equal(sections, tokens, exactness, form, fact):
    header = FrameHeader("m", tokens, tokens, exactness, form, "c", 3, {"fact": fact})
    frame = unpack(b"".join(pack(header, sections)))
    assert frame.header == header
    assert {name: bytes(frame.view(name)) for name in frame.sections} == sections


def test_tensors_are_views_of_a_memory_mapped_file(tmp_path):
    path = tmp_path / "frame"
    path.write_bytes(packed(layers(), HEADER))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        frame = unpack(mapped, verify=False)
        k, _ = decode_layer(frame, 1)
        start = torch.frombuffer(memoryview(mapped), dtype=torch.uint8).data_ptr()
        assert start < k.data_ptr() < start + frame.nbytes
        assert torch.equal(k, layers()[1][0])
        assert all(section.offset % ALIGN == 0 for section in frame.sections.values())


def test_packing_does_not_copy_tensors():
    x = torch.randn(1000)
    buffers = pack(HEADER, {"x": x})
    assert any(
        isinstance(buffer, memoryview)
        and torch.frombuffer(buffer, dtype=torch.float32).data_ptr() == x.data_ptr()
        for buffer in buffers
    )


@FLOATS
def test_dense_layers_are_bit_identical(dtype):
    frame = unpack(packed(layers(dtype), HEADER), model="m", dtype=dtype)
    assert frame.header.is_exact
    for i, pair in enumerate(layers(dtype)):
        for found, expected in zip(decode_layer(frame, i), pair, strict=True):
            assert found.dtype == dtype
            assert torch.equal(found, expected)


@FLOATS
@pytest.mark.parametrize("tokens", [1, 31, 40, 64])
def test_more_bits_are_closer_and_within_half_a_step(dtype, tokens):
    pairs = layers(dtype, tokens)
    header, errors = replace(HEADER, tokens=tokens), []
    for bits in (1, 2, 4, 8):
        frame = unpack(packed(pairs, header, f"int{bits}"))
        assert not frame.header.is_exact
        k, v = decode_layer(frame, 2)
        assert k.dtype == dtype
        assert v.shape == pairs[2][1].shape
        spread = max(float(x.max() - x.min()) for x in pairs[2])
        for found, x in zip((k, v), pairs[2], strict=True):
            worst = (found.float() - x.float()).abs().max()
            assert worst <= spread / (2**bits - 1) * 0.5 + spread * 0.02
        errors.append(float((v.float() - pairs[2][1].float()).norm()))
    assert errors == sorted(errors, reverse=True)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 3), st.integers(0, 70), st.sampled_from(["dense", "int4"]))
def test_any_number_of_layers_and_tokens(count, tokens, codec):
    pairs = layers(tokens=tokens, count=count)
    frame = unpack(packed(pairs, replace(HEADER, tokens=tokens), codec))
    assert frame.header.layers == count
    for i, (k, v) in enumerate(pairs):
        found_k, found_v = decode_layer(frame, i)
        assert found_k.shape == k.shape
        assert found_v.shape == v.shape


# -- refusals ---------------------------------------------------------------------------------


def test_another_model_is_refused_by_name():
    refused(packed(layers(), HEADER), "belongs to model m, not to other", model="other")


def test_another_dtype_is_refused_by_name():
    data = packed(layers(torch.bfloat16), HEADER)
    refused(data, "holds bfloat16, but torch.float32 is wanted", dtype=torch.float32)


def test_a_newer_schema_is_refused_by_number():
    data = bytearray(packed(layers(), HEADER))
    data[8:12] = (2).to_bytes(4, "little")
    refused(data, "schema 2, newer than the 1")


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 200, -1])
def test_truncated_frames_are_refused(n):
    refused(packed(layers(), HEADER)[:n], "truncated|should have|no frame")


def test_trailing_bytes_are_refused():
    refused(packed(layers(), HEADER) + b"\0", "should have")


def test_every_single_byte_is_covered_by_a_checksum():
    data = packed(layers(tokens=2, count=1), replace(HEADER, tokens=2), "int8")
    for i in range(len(data)):
        broken = bytearray(data)
        broken[i] ^= 0x40
        refused(broken, ".")


def test_unverified_sections_are_checked_when_read():
    data = bytearray(packed(layers(), HEADER))
    place = unpack(data).sections["1.k"]
    data[place.offset + 5] ^= 1
    frame = unpack(data, verify=False)
    decode_layer(frame, 0)
    with pytest.raises(StoreError, match=r"section '1\.k' is corrupt"):
        decode_layer(frame, 1)
    with pytest.raises(StoreError, match="corrupt"):
        frame.verify()


def test_missing_names_and_layers_are_refused():
    frame = unpack(packed(layers(), HEADER))
    with pytest.raises(StoreError, match="no section 'x'"):
        frame.section("x")
    for layer in (-1, 3):
        with pytest.raises(StoreError, match="layers 0 to 2"):
            decode_layer(frame, layer)


def test_frames_of_unknown_codecs_open_but_do_not_decode():
    frame = unpack(b"".join(pack(replace(HEADER, codec="zip", layers=1), {})))
    with pytest.raises(StoreError, match="unknown frame codec 'zip'; there are: dense"):
        decode_layer(frame, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_lossy_codecs_refuse_what_is_not_finite_and_dense_keeps_it(bad):
    pairs = layers()
    pairs[1][1][0, 3, 2] = bad
    with pytest.raises(StoreError, match="not finite"):
        encode_layers(pairs, HEADER, "int8")
    _, v = decode_layer(unpack(packed(pairs, HEADER)), 1)
    assert torch.equal(v.view(torch.int32), pairs[1][1].view(torch.int32))


def test_shapes_dtypes_and_facts_that_do_not_fit_are_refused():
    pairs = layers()
    with pytest.raises(StoreError, match="unknown frame codec 'int3'"):
        encode_layers(pairs, HEADER, "int3")
    with pytest.raises(StoreError, match=r"expected keys \(K, 41, D\)"):
        encode_layers(pairs, replace(HEADER, tokens=41))
    with pytest.raises(StoreError, match="share one float dtype"):
        encode_layers([(k, v.half()) for k, v in pairs], HEADER)
    with pytest.raises(StoreError, match="plain JSON"):
        pack(replace(HEADER, facts={"x": object()}), {})
    with pytest.raises(StoreError, match="tokens = -1"):
        pack(replace(HEADER, tokens=-1), {})
    with pytest.raises(StoreError, match="complex64"):
        pack(HEADER, {"x": torch.zeros(2, dtype=torch.complex64)})


@pytest.mark.parametrize("codec", ["dense", "int8", "cachegen-1"])
@pytest.mark.parametrize(
    "shape", [[2**40, 8, 8], [-1, 8, 8], [2, 8], [2, True, 8], [2, 9, 8], None]
)
def test_claims_of_impossible_shapes_cost_no_memory(codec, shape):
    header = replace(HEADER, tokens=0)
    data = packed([(torch.zeros(2, 0, 8), torch.zeros(2, 0, 8))], header, codec)
    frame = unpack(data)
    facts = {**frame.header.facts, "shapes": [shape]}
    sections = {name: frame.section(name) for name in frame.sections}
    forged = unpack(b"".join(pack(replace(frame.header, facts=facts), sections)))
    with pytest.raises(StoreError):
        decode_layer(forged, 0)


def test_prefix_is_one_alignment_wide():
    assert PREFIX.size == ALIGN
