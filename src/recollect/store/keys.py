"""Keys of token chunks: each digest covers the chunk, everything before it, and whose it is.

Two processes, machines or Python versions make equal keys for equal prompts: digests are SHA-256
over canonical CBOR, the scheme vLLM calls `sha256_cbor`. The same function makes vLLM's own block
hashes when it starts from vLLM's root; ours start from a root of their own for every namespace,
salt and model, so that those share nothing.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from recollect.errors import StoreError

SCHEME = "recollect.keys/1"


@functools.lru_cache(maxsize=64)
def root(model: str, *, namespace: str = "default", salt: str = "", chunk: int = 256) -> bytes:
    """The parent of a first chunk: 32 bytes that differ for every argument.

    `model` is the model's fingerprint with whatever else the bytes depend on (adapter, dtype,
    whether a BOS token leads).
    """
    parts = [SCHEME, model, namespace, salt, str(chunk)]
    return hashlib.sha256(_array(_text(part) for part in parts)).digest()


def chain(
    parent: bytes,
    tokens: Sequence[int] | np.ndarray,
    chunk: int,
    extra: Sequence[Sequence[str | int]] = (),
) -> list[bytes]:
    """Keys of the full chunks of `tokens`; a partial last one has none.

    Key i is ``SHA-256(CBOR([key i-1, tokens of chunk i, extra]))``; `extra` enters the first
    chunk and through it all the others, e.g. ``[("cache_salt", "tenant-7")]``.

    Args:
        parent: 32 bytes from `root`, or the last key of the prompt so far.
        tokens: token ids (T,), not negative and below 2**32.
        chunk: tokens per chunk.

    Raises:
        StoreError: `chunk` or a token id is out of range.
    """
    if chunk < 1:
        raise StoreError(f"a chunk has at least one token, not {chunk}")
    count = len(tokens) // chunk
    ids = np.asarray(tokens[: count * chunk])
    if count and (ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= 1 << 32):
        raise StoreError("token ids are whole numbers from 0 to 2**32 - 1")
    encoded, ends = _integers(ids.astype(np.uint32))
    head = _head(0x80, 3) + b"\x58\x20"  # an array of three; the first has 32 bytes
    length = _head(0x80, chunk)
    none = b"\xf6"
    tail = _array(_array(_item(part) for part in group) for group in extra) if extra else none
    keys, start = [], 0
    for end in ends[chunk - 1 :: chunk].tolist():
        parent = hashlib.sha256(head + parent + length + encoded[start:end] + tail).digest()
        keys.append(parent)
        start, tail = end, none
    return keys


def _integers(ids: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Canonical CBOR of unsigned integers (T,), joined, and where each of them ends (T,)."""
    sizes = np.select([ids < 24, ids < 1 << 8, ids < 1 << 16], [1, 2, 3], 5)
    ends = np.cumsum(sizes)
    out = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    out[ends[sizes == 1] - 1] = ids[sizes == 1]
    for size, code in ((2, 0x18), (3, 0x19), (5, 0x1A)):
        here = sizes == size
        out[ends[here] - size] = code
        for byte in range(size - 1):
            out[ends[here] - 1 - byte] = (ids[here] >> (8 * byte)) & 0xFF
    return out.tobytes(), ends


def _head(major: int, value: int) -> bytes:
    """The head of a CBOR item of one of the major types 0x00, 0x20 … 0xE0."""
    if value < 24:
        return bytes([major | value])
    size = 1 if value < 1 << 8 else 2 if value < 1 << 16 else 4
    return bytes([major | 0x17 + size.bit_length()]) + value.to_bytes(size, "big")


def _item(value: str | int) -> bytes:
    return _head(0, value) if isinstance(value, int) else _text(value)


def _text(text: str) -> bytes:
    raw = text.encode()
    return _head(0x60, len(raw)) + raw


def _array(items: Iterable[bytes]) -> bytes:
    parts = list(items)
    return _head(0x80, len(parts)) + b"".join(parts)
