"""The worker's half of the connector: copies blocks to entries of the store, and back.

Saves are snapshots: the forward's blocks are copied out at once, checksums and writing happen in a
thread. Loads either run before the forward or in a thread. Nothing here raises into the engine:
what goes wrong is reported, and recomputed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

import torch

from recollect.errors import StoreError
from recollect.store.exactness import Exactness
from recollect.store.frames import Buffer, Frame, FrameHeader, decode_layer, pack, unpack
from recollect.store.frames.header import JSON
from recollect.store.tiers.base import Lease
from recollect.vllm.blocks import BlockCodec
from recollect.vllm.identity import of_rank
from recollect.vllm.messages import Load, Measured, Orders, Part, Report
from recollect.vllm.processors import background_price, move_thread, others
from recollect.vllm.timing import ForwardTimer

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 30.0
LOADERS = 2


class Entries(Protocol):
    """The part of Store that a worker uses."""

    def put(self, key: bytes, data: Sequence[Buffer], *, tokens: int) -> bool: ...
    def get(self, key: bytes) -> Lease | None: ...
    def delete(self, key: bytes) -> bool: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class LayerCache:
    """One layer's cache (B, H, N, C) and how to read it."""

    cache: torch.Tensor
    codec: BlockCodec


class Mover:
    """Moves KV between a worker's caches and a store."""

    def __init__(
        self,
        store: Entries,
        caches: Mapping[str, LayerCache],
        *,
        model: str,
        chunk: int,
        block: int,
        rank: int = 0,
        staging: int = 256 * 2**20,
    ) -> None:
        """`model` is its fingerprint; `chunk` and `block` are in tokens, `staging` in bytes."""
        self.counts: Counter[str] = Counter()
        self._store, self._layers = store, list(caches.values())
        self._model, self._chunk, self._block, self._rank = model, chunk, block, rank
        self._staging, self._staged = staging, 0
        apart = others()
        self._price = background_price(apart)
        self._saver = ThreadPoolExecutor(1, "recollect-save", move_thread, (apart,))
        self._loader = ThreadPoolExecutor(LOADERS, "recollect-load", move_thread, (apart,))
        self._lock = threading.Lock()  # guards all below
        self._saving: dict[bytes, Future[None]] = {}
        self._arrived: set[str] = set()
        self._bad: set[int] = set()
        self._report = Report()
        device = self._layers[0].cache.device
        self._timer = ForwardTimer(device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self) -> None:
        """A step begins: what follows is the forward, but for what is done here."""
        self._timer.begin()

    def start(self, orders: Orders) -> None:
        """Carry out the loads: those the forward needs now, the others in the background."""
        started = time.perf_counter()
        for load in orders.loads:
            if load.later:
                self._loader.submit(self._load_later, load)
            elif not self._load(load):
                with self._lock:
                    self._report.taint += 1
        for key in orders.probes:
            self._loader.submit(self._probe, key)
        self._timer.leave_out(time.perf_counter() - started)

    def save(self, orders: Orders) -> None:
        """Copy what the forward just completed, to be written in the background."""
        self._timer.end(orders)
        for part in orders.saves:
            # Behind a failed load the forward computed garbage, for all who share blocks with it.
            if orders.taint < self._report.taint or not self._has_room():
                with self._lock:
                    self.counts["saves_put_off"] += 1
                    self._report.refused.add(part.key)
                continue
            self._save(part)

    def take_arrived(self) -> set[str]:
        """Requests whose background load ended, well or not, since the last call."""
        with self._lock:
            arrived, self._arrived = self._arrived, set()
        return arrived

    def take_bad_blocks(self) -> set[int]:
        """Blocks that could not be filled, since the last call."""
        with self._lock:
            bad, self._bad = self._bad, set()
        return bad

    def take_report(self) -> Report | None:
        """What the scheduler has not heard yet, or None."""
        with self._lock:
            report = self._report
            self._report = Report(taint=report.taint)
        report.forwards += self._timer.take()
        return report if report.is_news() else None

    def take_counts(self) -> dict[str, int]:
        """Counters since the last call."""
        with self._lock:
            counts, self.counts = self.counts, Counter()
        return dict(counts)

    def close(self) -> None:
        """Finish what was begun, within reason, and close the store."""
        self._loader.shutdown(wait=True, cancel_futures=True)
        wait(list(self._saving.values()), timeout=CLOSE_SECONDS)
        self._saver.shutdown(wait=False, cancel_futures=True)
        self._store.close()

    # Loading

    def _load_later(self, load: Load) -> None:
        try:
            self._load(load)
        finally:
            with self._lock:
                self._arrived.add(load.request)

    def _load(self, load: Load) -> bool:
        """Fill the blocks. False: from some part on they are not filled, and reported."""
        for at, part in enumerate(load.parts):
            try:
                self._fetch(part)
            except Exception as error:
                logger.warning("computing %d parts again: %s", len(load.parts) - at, error)
                with self._lock:
                    self._bad.update(block for rest in load.parts[at:] for block in rest.blocks)
                    self._report.lost.add(part.key)
                    self._report.failed.add(load.request)
                    self.counts["loads_failed"] += 1
                return False
        return True

    def _fetch(self, part: Part) -> None:
        """One entry into its blocks, or StoreError before any block was touched."""
        started = time.perf_counter()
        with self._lock:
            being_saved = self._saving.get(part.key)
        if being_saved is not None:
            being_saved.result(CLOSE_SECONDS)
        key = of_rank(part.key, self._rank)
        lease = self._store.get(key)
        if lease is None:
            raise StoreError("an entry is gone")
        with lease:
            try:
                frame = unpack(lease.data, model=self._model)
                self._check(frame, part)
            except StoreError:
                self._store.delete(key)  # or nothing better could take its place
                raise
            first = part.skip * self._block
            rows = slice(first, first + len(part.blocks) * self._block)
            self._on_stream(lambda: self._write(frame, part.blocks, rows))
            tier = lease.tier
        self._count("loaded", frame.nbytes, len(part.blocks) * self._block, started)
        with self._lock:
            seconds = time.perf_counter() - started
            self._report.reads.append(Measured(tier, frame.nbytes, seconds))

    def _probe(self, key: bytes) -> None:
        """Read an entry, to report what that takes."""
        try:
            self._fetch(Part(key, ()))
        except Exception as error:
            logger.warning("a probe failed: %s", error)
            with self._lock:
                self._report.lost.add(key)

    def _check(self, frame: Frame, part: Part) -> None:
        header = frame.header
        if header.facts.get("key") != part.key.hex():
            raise StoreError("an entry lies under another's key")
        if not header.is_exact or header.form != "post-rope" or header.tokens != self._chunk:
            raise StoreError(f"an entry is {header.exactness}, {header.codec}, {header.form}")
        if any(header.facts.get(name) != value for name, value in self._shapes().items()):
            raise StoreError("an entry has other shapes than this engine's cache")

    def _write(self, frame: Frame, blocks: Sequence[int], rows: slice) -> None:
        for at, layer in enumerate(self._layers):
            k, v = decode_layer(frame, at)
            layer.codec.write(layer.cache, blocks, k[:, rows], v[:, rows])

    # Saving

    def _save(self, part: Part) -> None:
        started = time.perf_counter()
        kv = [layer.codec.read(layer.cache, part.blocks) for layer in self._layers]
        ready = torch.cuda.Event() if self._stream is not None else None
        if ready is not None:
            ready.record()
        size = sum(k.nbytes + v.nbytes for k, v in kv)
        with self._lock:
            self._staged += size
            self._saving[part.key] = self._saver.submit(
                self._write_out, part.key, kv, size, ready, started, time.perf_counter() - started
            )

    def _write_out(
        self,
        key: bytes,
        kv: list[tuple[torch.Tensor, torch.Tensor]],
        size: int,
        ready: torch.cuda.Event | None,
        started: float,
        waited: float,
    ) -> None:
        kept, begun = False, time.thread_time()
        try:
            if ready is not None:
                ready.synchronize()
            sections: dict[str, torch.Tensor] = {}
            self._on_stream(lambda: sections.update(_on_host(kv)))
            buffers = pack(self._header(key), sections)
            kept = self._store.put(of_rank(key, self._rank), buffers, tokens=self._chunk)
        except Exception as error:
            logger.warning("an entry was not saved: %s", error)
        finally:
            with self._lock:
                self._staged -= size
                self._saving.pop(key, None)
                if kept:
                    self._report.committed.append(key)
                else:
                    self._report.refused.add(key)
                    self.counts["saves_failed"] += 1
                cost = waited + self._price * (time.thread_time() - begun)
                self._report.writes.append(Measured("", size, cost))
        if kept:
            self._count("saved", size, self._chunk, started)

    def _header(self, key: bytes) -> FrameHeader:
        return FrameHeader(
            model=self._model,
            tokens=self._chunk,
            exactness=Exactness.EXACT,
            layers=len(self._layers),
            facts={"key": key.hex(), **self._shapes()},
        )

    def _shapes(self) -> dict[str, JSON]:
        """What a dense frame says of its layers."""
        layers = self._layers
        shapes: list[JSON] = [
            [x.cache.shape[1], x.codec.width, x.codec.value_width] for x in layers
        ]
        return {"dtype": str(layers[0].cache.dtype).removeprefix("torch."), "shapes": shapes}

    def _has_room(self) -> bool:
        return self._staged < self._staging

    def _on_stream(self, work: Callable[[], None]) -> None:
        """On CUDA, copies of a thread go to a stream of their own and are waited for."""
        if self._stream is None or threading.current_thread() is threading.main_thread():
            work()
            return
        with torch.cuda.stream(self._stream):
            work()
        self._stream.synchronize()

    def _count(self, what: str, nbytes: int, tokens: int, started: float) -> None:
        with self._lock:
            self.counts[f"{what}_bytes"] += nbytes
            self.counts[f"{what}_tokens"] += tokens
            self.counts[f"{what}_chunks"] += 1
            self.counts[f"{what}_us"] += round((time.perf_counter() - started) * 1e6)


def _on_host(kv: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The sections of a dense frame."""
    return {
        f"{at}.{n}": x.cpu() for at, own in enumerate(kv) for n, x in zip("kv", own, strict=True)
    }
