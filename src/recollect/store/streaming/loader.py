"""Layers of stored chunks, one after the other, decoded ahead of the model that consumes them.

While the model computes layer l, the bytes of layer l + 1 are read (from a memory-mapped file: from
disk; from a `PartialLease`: over the network), checked and decoded in another thread. Reading,
checking and decoding release the interpreter lock, so the two really overlap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import torch

from recollect.errors import StoreError
from recollect.store.frames import Frame, FrameHeader, decode_layer, head_bytes, unpack
from recollect.store.tiers.partial import PartialLease

KV = tuple[torch.Tensor, torch.Tensor]


class Holder(Protocol):
    """What keeps bytes in place: a `Lease`, or anything like one."""

    @property
    def data(self) -> memoryview: ...

    def release(self) -> None: ...


class Layer(NamedTuple):
    """Keys (K, T, D) and values (K, T, Dv) of all chunks together; they belong to the caller."""

    number: int
    k: torch.Tensor
    v: torch.Tensor


class BrokenChunk(StoreError):
    """One of the chunks cannot be used.

    Attributes:
        chunk: its number, from 0.
        is_lost: its bytes did not come; nothing is known to be wrong with them.
    """

    def __init__(self, error: StoreError, chunk: int, is_lost: bool) -> None:
        super().__init__(str(error))
        self.chunk, self.is_lost = chunk, is_lost


class LayerStream:
    """Iterates over the layers of consecutive chunks; a context manager.

        with LayerStream(leases, model=fingerprint) as layers:
            for layer in layers: ...

    Args:
        leases: of the chunks' frames, in order; released when the stream closes.
        model: refuse frames of another model.
        dtype: refuse frames of another dtype.
        ahead: layers decoded before they are asked for; at most that many wait in memory.
        threads: layers decoded at once; with 0 each one is decoded when it is asked for.

    Raises:
        StoreError: no frames, not consecutive, or of different depth.
        BrokenChunk: a frame is damaged, or of another model or dtype. A corrupt layer is reported
            when it is reached.
    """

    def __init__(
        self,
        leases: Sequence[Holder],
        *,
        model: str | None = None,
        dtype: torch.dtype | None = None,
        ahead: int = 2,
        threads: int = 1,
    ) -> None:
        self._leases = list(leases)
        self._ahead = max(1, ahead)
        self._pool = ThreadPoolExecutor(threads, "recollect-layers") if threads else None
        self._frames: list[Frame] = []
        try:
            for lease in leases:
                self._frames.append(self._open(lease, model, dtype))
            self.layers = _depth(self._frames)
        except StoreError:
            self.close()
            raise
        self.tokens = sum(frame.header.tokens for frame in self._frames)

    @property
    def headers(self) -> list[FrameHeader]:
        """What the chunks say about themselves."""
        return [frame.header for frame in self._frames]

    def __iter__(self) -> Iterator[Layer]:
        if self._pool is None:
            yield from map(self._load, range(self.layers))
            return
        waiting: deque[Future[Layer]] = deque()
        try:
            for number in range(self.layers):
                waiting.append(self._pool.submit(self._load, number))
                if len(waiting) > self._ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """Stop decoding and give the leases back. Idempotent."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._frames = []
        while self._leases:
            self._leases.pop().release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self, lease: Holder, model: str | None, dtype: torch.dtype | None) -> Frame:
        chunk, come = len(self._frames), False
        try:
            if isinstance(lease, PartialLease):
                lease.require(0, min(lease.nbytes, 64))
                lease.require(0, head_bytes(lease.data))
            come = True
            return unpack(lease.data, model=model, dtype=dtype, verify=False)
        except StoreError as error:
            raise BrokenChunk(error, chunk, not come) from error

    def _decode(self, chunk: int, number: int) -> KV:
        frame, lease, come = self._frames[chunk], self._leases[chunk], False
        try:
            if isinstance(lease, PartialLease):
                lease.require(*frame.span(f"{number}."))
            come = True
            return decode_layer(frame, number)
        except StoreError as error:
            raise BrokenChunk(error, chunk, not come) from error

    def _load(self, number: int) -> Layer:
        pairs = [self._decode(chunk, number) for chunk in range(len(self._frames))]
        k, v = (torch.cat(parts, dim=1) for parts in zip(*pairs, strict=True))
        return Layer(number, k, v)


def _depth(frames: Sequence[Frame]) -> int:
    """How many layers all of them have. Raises StoreError unless they are one run of tokens."""
    if not frames:
        raise StoreError("there is nothing to stream: no frames")
    headers = [frame.header for frame in frames]
    position = headers[0].first_position
    for header in headers:
        if header.layers != headers[0].layers or header.form != headers[0].form:
            raise StoreError("the chunks do not fit together: layers or forms differ")
        if header.first_position != position:
            raise StoreError(
                f"a chunk begins at position {header.first_position}, not {position} as expected"
            )
        position += header.tokens
    return headers[0].layers
