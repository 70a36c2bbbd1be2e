"""Chunk keys: golden values of vLLM's scheme, and what must and must not change a key."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recollect.errors import StoreError
from recollect.store.keys import chain, root

# vLLM 0.32, sha256_cbor: the root is the digest of the CBOR text "vllm-none-hash"
VLLM_ROOT = hashlib.sha256(b"\x6evllm-none-hash").digest()

extras = st.lists(st.tuples(st.text(max_size=30), st.integers(0, 2**32 - 1)), max_size=2)
token_lists = st.lists(st.integers(0, 2**32 - 1), max_size=40)


def reference(
    parent: bytes, tokens: list[int], chunk: int, extra: list[tuple[str, int]]
) -> list[bytes]:
    """The same keys, one token at a time, from the CBOR standard (RFC 8949)."""

    def item(major: int, value: int) -> bytes:
        if value < 24:
            return bytes([major << 5 | value])
        size, code = next(
            (size, code) for size, code in ((1, 24), (2, 25), (4, 26)) if value < 1 << (8 * size)
        )
        return bytes([major << 5 | code]) + value.to_bytes(size, "big")

    keys = []
    for i in range(len(tokens) // chunk):
        ids = b"".join(item(0, token) for token in tokens[i * chunk : (i + 1) * chunk])
        groups = b"".join(
            item(4, 2) + item(3, len(text.encode())) + text.encode() + item(0, number)
            for text, number in extra
        )
        tail = item(4, len(extra)) + groups if extra and i == 0 else b"\xf6"
        parent = hashlib.sha256(
            item(4, 3) + item(2, 32) + parent + item(4, chunk) + ids + tail
        ).digest()
        keys.append(parent)
    return keys


def test_keys_are_those_of_vllm():
    assert VLLM_ROOT.hex() == "9bd96a485ad84efdafb72ee48a1d7a69bcead0f8f0433173941b276b9581eef0"
    first, second = chain(VLLM_ROOT, range(32), 16)
    assert first.hex() == "dc918a88b139e5afe60b88eda27508d4aee16c10fdc354791efea06206ac0749"
    salted = chain(VLLM_ROOT, range(16), 16, [("cache_salt", "s")])[0]
    assert salted.hex() == "67e9f72522b34138a0f4be0e3a68d9d49b1e50aea0af7762f6170ad7eebbdeaf"
    assert second.hex() == "c300ec275d7bf08af8fc63e76cdc0086911bbc7091e03c5cf892553bef84ef0c"


@given(token_lists, st.integers(1, 30), extras)
def test_keys_follow_the_cbor_standard(tokens, chunk, extra):
    assert chain(VLLM_ROOT, tokens, chunk, extra) == reference(VLLM_ROOT, tokens, chunk, extra)


@given(token_lists, token_lists, st.integers(1, 8))
def test_a_prompt_that_goes_on_keeps_its_first_keys(tokens, more, chunk):
    keys = chain(VLLM_ROOT, tokens, chunk)
    assert len(keys) == len(tokens) // chunk
    assert chain(VLLM_ROOT, tokens + more, chunk)[: len(keys)] == keys


@pytest.mark.parametrize(("length", "full"), [(255, 0), (256, 1), (257, 1), (511, 1), (512, 2)])
def test_only_full_chunks_have_keys(length, full):
    assert len(chain(VLLM_ROOT, range(length), 256)) == full


@given(token_lists.filter(lambda tokens: len(tokens) >= 4), st.data())
def test_a_changed_token_changes_its_key_and_all_later_ones(tokens, data):
    place = data.draw(st.integers(0, len(tokens) // 4 * 4 - 1))
    changed = list(tokens)
    changed[place] ^= 1
    before, after = chain(VLLM_ROOT, tokens, 4), chain(VLLM_ROOT, changed, 4)
    same = [a == b for a, b in zip(before, after, strict=True)]
    assert same == [i < place // 4 for i in range(len(before))]


def test_namespace_salt_model_chunk_and_scope_share_nothing():
    roots = [
        root("model"),
        root("other"),
        root("model", namespace="b"),
        root("model", salt="s"),
        root("model", chunk=128),
        root("model", namespace="s"),
    ]
    keys = [chain(parent, range(8), 8)[0] for parent in roots]
    keys += [
        chain(roots[0], range(8), 8, [("cache_salt", scope)])[0] for scope in ("tenant", "other")
    ]
    assert len(set(keys)) == len(keys)


def test_where_one_argument_ends_matters():
    assert root("ab", namespace="c") != root("a", namespace="bc")


def test_lists_arrays_and_wide_integers_make_equal_keys():
    tokens = [5, 300, 70_000, 2**31]
    assert (
        chain(VLLM_ROOT, tokens, 2)
        == chain(VLLM_ROOT, np.array(tokens, np.int64), 2)
        == chain(VLLM_ROOT, tuple(tokens), 2)
    )


def test_another_process_makes_equal_keys():
    code = (
        "from recollect.store.keys import chain, root;"
        "print(chain(root('m', namespace='n'), list(range(600)), 256)[-1].hex())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {chain(root("m", namespace="n"), range(600), 256)[-1].hex()}


@pytest.mark.parametrize("tokens", [[-1, 2], [2**32, 0], [0.5, 1.0], ["a", "b"]])
def test_token_ids_out_of_range_are_refused(tokens):
    with pytest.raises(StoreError, match="token ids"):
        chain(VLLM_ROOT, tokens, 2)


def test_a_chunk_of_no_tokens_is_refused():
    with pytest.raises(StoreError, match="at least one token"):
        chain(VLLM_ROOT, [1], 0)
