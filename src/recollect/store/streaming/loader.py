"""Layers of stored chunks, one after the other, decoded ahead of the model that consumes them.

While the model computes layer l, the bytes of layer l + 1 are read (from a memory-mapped file: from
disk), checked and decoded in another thread. Reading, checking and decoding release the interpreter
lock, so the two really overlap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import torch

from recollect.errors import StoreError
from recollect.store.frames import Frame, decode_layer, unpack


class Holder(Protocol):
    """What keeps bytes in place: a `Lease`, or anything like one."""

    data: memoryview

    def release(self) -> None: ...


class Layer(NamedTuple):
    """Keys (K, T, D) and values (K, T, Dv) of all chunks together; they belong to the caller."""

    number: int
    k: torch.Tensor
    v: torch.Tensor


class LayerStream:
    """Iterates over the layers of consecutive chunks; a context manager.

        with LayerStream(leases, model=fingerprint) as layers:
            for layer in layers: ...

    Args:
        leases: of the chunks' frames, in order; released when the stream closes.
        model: refuse frames of another model.
        dtype: refuse frames of another dtype.
        ahead: layers decoded before they are asked for; at most that many wait in memory.
        threads: layers decoded at once.

    Raises:
        StoreError: no frames, of another model or dtype, not consecutive, or of different depth. A
            corrupt layer is reported when it is reached.
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
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="recollect-layers")
        try:
            self._frames = [
                unpack(lease.data, model=model, dtype=dtype, verify=False) for lease in leases
            ]
            self.layers = _depth(self._frames)
        except StoreError:
            self.close()
            raise
        self.tokens = sum(frame.header.tokens for frame in self._frames)

    def __iter__(self) -> Iterator[Layer]:
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

    def _load(self, number: int) -> Layer:
        pairs = [decode_layer(frame, number) for frame in self._frames]
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
