"""The longest stored prefix of a batch, layer by layer, bit for bit as it was computed.

Its layers may still be on their way when the model's forward pass begins. Each is checked before it
is handed out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch

from recollect.errors import StoreError
from recollect.store.prefix.calls import Prompt
from recollect.store.prefix.chunks import KV, ChunkFormat
from recollect.store.prefix.report import PrefixReport
from recollect.store.store import Store
from recollect.store.streaming.loader import BrokenChunk, Layer, LayerStream
from recollect.store.tiers.base import Lease

AHEAD = 4  # layers that may wait for the model
TRIES = 8  # of finding a prefix without damaged entries


class BrokenPrefix(StoreError):
    """An entry of the prefix cannot be used. If it was damaged, it is out of the way now."""


@dataclass
class _Run:
    """The leading chunks of one prompt."""

    keys: list[bytes]
    leases: list[Lease]

    def cut(self, chunks: int) -> None:
        """Keep so many."""
        for lease in self.leases[chunks:]:
            lease.release()
        del self.leases[chunks:]


class Found:
    """The first `columns` columns of every row of a batch.

    Attributes:
        columns: padding included.
        padding: columns in front of each row.
        waited: seconds spent on waiting for layers.
        is_complete: whether all layers are there.
    """

    def __init__(
        self,
        columns: int,
        padding: tuple[int, ...],
        rows: Sequence[Iterator[Layer] | None],
        depth: int,
    ) -> None:
        """`rows` has an iterator for each, the same for equal rows, None for padding alone."""
        self.columns, self.padding, self.waited = columns, padding, 0.0
        self._rows, self._depth = rows, depth
        self._layers: list[KV] = []

    @property
    def is_complete(self) -> bool:
        return len(self._layers) == self._depth

    @property
    def matched(self) -> int:
        """Real tokens of all rows."""
        return sum(max(self.columns - padding, 0) for padding in self.padding)

    def layer(self, index: int) -> KV:
        """Keys (B, K, columns, D) and values of a layer; zeros stand for padding.

        Raises:
            StoreError: it, or one before it, cannot be had.
        """
        began = time.perf_counter()
        while len(self._layers) <= index:
            self._layers.append(self._next())
        self.waited += time.perf_counter() - began
        return self._layers[index]

    def _next(self) -> KV:
        arrived = {row: next(row) for row in dict.fromkeys(self._rows) if row is not None}
        like = next(iter(arrived.values()))
        rows = []
        for row, padding in zip(self._rows, self.padding, strict=True):
            layer = like if row is None else arrived[row]
            front = min(padding, self.columns)
            rows.append([self._shaped(x, front) for x in (layer.k, layer.v)])
        k, v = (x[0][None] if len(x) == 1 else torch.stack(x) for x in zip(*rows, strict=True))
        return k, v

    def _shaped(self, x: torch.Tensor, front: int) -> torch.Tensor:
        """(K, T, D) -> (K, columns, D), behind `front` columns of zeros."""
        if front == 0:
            return x[:, : self.columns]
        zeros = x.new_zeros(x.shape[0], front, x.shape[2])
        return torch.cat([zeros, x[:, : self.columns - front]], dim=1)


class Finder:
    """Looks for prompts in a store.

    Args:
        form: of the chunks.
        store: where they are.
        report: told what was loaded, declined and unusable.
    """

    def __init__(self, form: ChunkFormat, store: Store, report: PrefixReport) -> None:
        self._form, self._store, self._report = form, store, report

    def find(self, prompt: Prompt, *, later: bool) -> Found | None:
        """The longest stored prefix that all rows have and that is worth loading.

        At least one token is always left to compute: its logits are what the call is for.

        Args:
            later: layers that come from far, or have to be decoded, may come while the model
                computes: such a prefix is not complete. Otherwise all are there, and sound.
        """
        for _ in range(TRIES):
            with suppress(BrokenPrefix):
                return self._try(prompt, later)
        return None

    def _try(self, prompt: Prompt, later: bool) -> Found | None:
        size, padding = self._form.tokens, prompt.padding
        rows = [tuple(prompt.row(row)) for row in range(len(prompt.ids))]
        runs = {row: self._load(row, whole=not later) for row in dict.fromkeys(rows)}
        reach = [p + len(runs[row].leases) * size for p, row in zip(padding, rows, strict=True)]
        columns = min(*reach, prompt.width - 1)
        for row, front in zip(rows, padding, strict=True):
            runs[row].cut(-(-max(columns - front, 0) // size))
        if columns <= min(padding):
            return None
        leases = [lease for run in runs.values() for lease in run.leases]
        far = self._form.codec != "dense" or any(lease.tier != "host" for lease in leases)
        self._report.entries += len(leases)
        self._report.loaded += sum(lease.nbytes for lease in leases)
        streams = {row: self._stream(run, int(later and far)) for row, run in runs.items()}
        found = Found(columns, padding, [streams[row] for row in rows], self._form.layers)
        if not (later and far):
            found.layer(self._form.layers - 1)
        return found

    def _load(self, row: Sequence[int], whole: bool) -> _Run:
        form, store = self._form, self._store
        keys = form.keys(store, row)
        leases = store.load(keys, len(row), nbytes=form.nbytes, chunk=form.tokens, whole=whole)
        if len(leases) < len(keys):
            self._report.declined += (store.longest(keys) - len(leases)) * form.tokens
        return _Run(keys, leases)

    def _stream(self, run: _Run, threads: int) -> Iterator[Layer] | None:
        if not run.leases:
            return None
        form = self._form
        with self._blaming(run.keys):
            stream = LayerStream(
                run.leases, model=form.model, dtype=form.dtype, ahead=AHEAD, threads=threads
            )
            for index, header in enumerate(stream.headers):
                try:
                    form.check(header, index)
                except StoreError as error:
                    raise BrokenChunk(error, index, is_lost=False) from error
        return self._layers(run.keys, stream)

    def _layers(self, keys: list[bytes], stream: LayerStream) -> Iterator[Layer]:
        with stream, self._blaming(keys):
            yield from stream

    @contextmanager
    def _blaming(self, keys: list[bytes]) -> Iterator[None]:
        """Take a damaged entry out of the way."""
        try:
            yield
        except BrokenChunk as error:
            if not error.is_lost:
                self._store.set_aside(keys[error.chunk])
                self._report.unusable += 1
            raise BrokenPrefix(str(error)) from error
        except StoreError as error:
            raise BrokenPrefix(str(error)) from error
