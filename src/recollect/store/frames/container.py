"""Packed frames: one self-describing, checksummed run of bytes that holds named tensors.

A frame is a prefix of 64 bytes (magic, schema, lengths, digest), a JSON header, and sections, each
starting at a multiple of 64 bytes so that tensors are views of a memory-mapped file. The prefix's
digest covers prefix and header; the header holds one digest per section, its padding included: no
byte goes unchecked. Sections lie one behind the other, so their places follow from their sizes and
cannot overlap. Nothing is ever unpickled.
"""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch

from recollect.errors import StoreError
from recollect.store.frames.header import MOST, FrameHeader, claim, count, dump, load

try:
    from xxhash import xxh3_128
except ImportError as missing:
    raise StoreError("frames are checked with xxhash: pip install recollect[store]") from missing

Buffer: TypeAlias = bytes | bytearray | memoryview

SCHEMA = 1
MAGIC = b"RECOLLCT"
PREFIX = struct.Struct("<8sIIQ24x16s")  # magic, schema, header bytes, frame bytes, -, digest
DIGEST_AT = PREFIX.size - 16
ALIGN = 64
MOST_DIMENSIONS = 8
BYTES = "bytes"
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn,
        torch.float8_e5m2, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32,
        torch.int64, torch.bool,
    )
}  # fmt: skip

with warnings.catch_warnings():
    # torch warns once that it cannot mark a tensor read-only. Frames say so in their docstring.
    warnings.simplefilter("ignore")
    torch.frombuffer(b"\0", dtype=torch.uint8)


class Section(NamedTuple):
    """Where a section lies and what it holds; `dtype` is "bytes" for what is no tensor."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    digest: bytes


class Frame:
    """A frame that passed its checks. Tensors are views of the buffer: read-only, and valid only
    as long as the lease of that buffer is held.

    Attributes:
        header: what the frame says about itself.
        sections: by name, in the order they were packed.
        nbytes: size of the whole frame.
    """

    def __init__(
        self, header: FrameHeader, sections: Mapping[str, Section], data: memoryview
    ) -> None:
        self.header = header
        self.sections = sections
        self.nbytes = len(data)
        self._data = data
        self._unverified = set(sections)

    def section(self, name: str) -> torch.Tensor:
        """The tensor of that name, without a copy (uint8 (n,) for plain bytes).

        Raises:
            StoreError: there is no such section, or it is corrupt.
        """
        found = self._find(name)
        dtype = torch.uint8 if found.dtype == BYTES else DTYPES[found.dtype]
        if not found.nbytes:
            return torch.empty(found.shape, dtype=dtype)
        return torch.frombuffer(self.view(name), dtype=dtype).view(found.shape)

    def view(self, name: str) -> memoryview:
        """The bytes of that section, without a copy. Raises StoreError like `section`."""
        found = self._find(name)
        if name in self._unverified:
            _check(self._data, name, found)
            self._unverified.discard(name)
        return self._data[found.offset : found.offset + found.nbytes]

    def span(self, prefix: str) -> tuple[int, int]:
        """Where the sections whose names begin so lie: first byte, and the one behind the last."""
        own = [section for name, section in self.sections.items() if name.startswith(prefix)]
        if not own:
            return 0, 0
        ends = [s.offset + s.nbytes + -s.nbytes % ALIGN for s in own]
        return min(section.offset for section in own), max(ends)

    def verify(self) -> None:
        """Check every section that was not read yet. Raises StoreError."""
        for name in list(self._unverified):
            self.view(name)

    def _find(self, name: str) -> Section:
        if name not in self.sections:
            raise StoreError(f"the frame has no section '{name}'")
        return self.sections[name]


def pack(header: FrameHeader, sections: Mapping[str, torch.Tensor | Buffer]) -> list[Buffer]:
    """A frame as buffers to be written one behind the other; contiguous CPU tensors are not copied.

    The tensors must not change before the buffers are written.

    Raises:
        StoreError: a dtype or a fact that frames cannot hold.
    """
    table, body = [], []
    for name, content in sections.items():
        dtype, shape, data = _plain(name, content)
        padding = bytes(-len(data) % ALIGN)
        digest = xxh3_128(data)
        digest.update(padding)
        table.append([name, dtype, shape, len(data), digest.hexdigest()])
        body += [part for part in (data, padding) if len(part)]
    claims = dump({**header.to_dict(), "sections": table})
    FrameHeader.from_dict(load(claims))  # what could not be read is not written
    claims += b" " * (-len(claims) % ALIGN)
    total = PREFIX.size + len(claims) + sum(len(part) for part in body)
    prefix = PREFIX.pack(MAGIC, SCHEMA, len(claims), total, bytes(16))
    digest = xxh3_128(prefix[:DIGEST_AT])
    digest.update(claims)
    return [prefix[:DIGEST_AT] + digest.digest() + claims, *body]


def unpack(
    data: Buffer,
    *,
    model: str | None = None,
    dtype: torch.dtype | None = None,
    verify: bool = True,
) -> Frame:
    """Read a frame in place.

    Args:
        data: exactly the bytes of one frame.
        model: refuse frames of another model.
        dtype: refuse frames whose keys and values, once decoded, have another dtype.
        verify: check every section now; otherwise each one when it is first read.

    Raises:
        StoreError: no frame, newer schema, other model or dtype, truncated, corrupt.
    """
    view = memoryview(data).toreadonly().cast("B")
    claims, end = _read_claims(view)
    header = FrameHeader.from_dict(claims)
    if model is not None and header.model != model:
        raise StoreError(f"the frame belongs to model {header.model}, not to {model}")
    stored = header.facts.get("dtype")
    if dtype is not None and stored != str(dtype).removeprefix("torch."):
        raise StoreError(f"the frame holds {stored}, but {dtype} is wanted")
    sections = dict(_read_table(claim(claims, "sections", list), end, len(view)))
    frame = Frame(header, sections, view)
    if verify:
        frame.verify()
    return frame


def head_bytes(data: Buffer) -> int:
    """How many bytes at a frame's beginning `unpack` needs to read what it says about itself.

    `data` has at least the first 64; whatever else they may be, the answer lies within it.
    """
    view = memoryview(data)
    if len(view) < PREFIX.size:
        return len(view)
    return min(PREFIX.size + PREFIX.unpack(view[: PREFIX.size])[2], len(view))


def nbytes(buffers: list[Buffer]) -> int:
    """Bytes of a packed frame."""
    return sum(len(buffer) for buffer in buffers)


def _plain(name: str, content: torch.Tensor | Buffer) -> tuple[str, list[int], memoryview]:
    """Name of the dtype, shape, and the bytes themselves."""
    if not isinstance(content, torch.Tensor):
        data = memoryview(content).cast("B")
        return BYTES, [len(data)], data
    dtype = str(content.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise StoreError(f"section '{name}' is {dtype}, which frames cannot hold")
    flat = content.detach().cpu().contiguous().reshape(-1)
    return dtype, list(content.shape), flat.view(torch.uint8).numpy().data


def _read_claims(view: memoryview) -> tuple[dict[str, Any], int]:
    """The checked header and where it ends."""
    if len(view) < PREFIX.size:
        raise StoreError(f"{len(view)} bytes are no frame: truncated")
    magic, schema, length, total, digest = PREFIX.unpack(view[: PREFIX.size])
    if magic != MAGIC:
        raise StoreError("this is not a frame of recollect")
    if schema != SCHEMA:
        age = "newer" if schema > SCHEMA else "older"
        raise StoreError(
            f"the frame has schema {schema}, {age} than the {SCHEMA} this version reads"
        )
    if total != len(view):
        raise StoreError(f"the frame should have {total} bytes and has {len(view)}")
    end = PREFIX.size + length
    if end > total or length % ALIGN:
        raise StoreError("the frame's header runs past its end: corrupt")
    found = xxh3_128(view[:DIGEST_AT])
    found.update(view[PREFIX.size : end])
    if found.digest() != digest:
        raise StoreError("the frame's header is corrupt: its checksum does not match")
    return load(bytes(view[PREFIX.size : end])), end


def _read_table(table: list[Any], offset: int, total: int) -> Iterator[tuple[str, Section]]:
    """Every section, in bounds and as large as its shape says."""
    seen = set()
    for row in table:
        if type(row) is not list or len(row) != 5:
            raise StoreError("the frame's list of sections is malformed")
        claims = dict(zip(("name", "dtype", "shape", "nbytes", "digest"), row, strict=True))
        name, dtype = claim(claims, "name", str), claim(claims, "dtype", str)
        size, shape = count(claims, "nbytes"), claim(claims, "shape", list)
        if name in seen:
            raise StoreError(f"the frame has two sections '{name}'")
        seen.add(name)
        if dtype != BYTES and dtype not in DTYPES:
            raise StoreError(f"section '{name}' is of unknown dtype '{dtype}'")
        if len(shape) > MOST_DIMENSIONS or any(type(d) is not int for d in shape):
            raise StoreError(f"section '{name}' has no valid shape")
        itemsize = 1 if dtype == BYTES else DTYPES[dtype].itemsize
        if not all(0 <= d <= MOST for d in shape) or math.prod(shape) * itemsize != size:
            raise StoreError(f"section '{name}' of shape {shape} cannot have {size} bytes")
        end = offset + size + -size % ALIGN
        if end > total:
            raise StoreError(f"section '{name}' runs past the end of the frame")
        try:
            digest = bytes.fromhex(claim(claims, "digest", str))
        except ValueError:
            raise StoreError(f"section '{name}' has no valid checksum") from None
        yield name, Section(dtype, tuple(shape), offset, size, digest)
        offset = end
    if offset != total:
        raise StoreError("the frame has bytes that belong to no section")


def _check(data: memoryview, name: str, section: Section) -> None:
    padded = section.nbytes + -section.nbytes % ALIGN
    found = xxh3_128(data[section.offset : section.offset + padded])
    if found.digest() != section.digest:
        raise StoreError(f"section '{name}' is corrupt: its checksum does not match")
