"""`StoreTier`: a recollect store as a secondary tier of vLLM's offloading framework.

Configured as ``{"type": "recollect", "path": "/srv/kv"}`` or ``{"type": "recollect", "remote":
"redis://…"}``. Runs in the scheduler's process; every transfer and every lookup in threads.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
from vllm.logger import init_logger
from vllm.v1.kv_offload.base import (
    LookupResult,
    Medium,
    OffloadKey,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
)
from vllm.v1.kv_offload.tiering.async_lookup import AsyncLookupManager
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob

from recollect.vllm.identity import checkpoint_digest
from recollect.vllm.settings import Settings

logger = init_logger(__name__)

THREADS = 4
SECTION = "pages"


class _Lookups(AsyncLookupManager):
    def __init__(self, tier: StoreTier) -> None:
        self._tier = tier
        super().__init__(tier_type=tier.tier_type)

    def batch_lookup(self, keys: list[OffloadKey], req_context: ReqContext) -> Iterable[bool]:
        return [self._tier.store.contains(self._tier.key(key)) for key in keys]


class StoreTier(SecondaryTierManager):
    """Chunks of the host tier as entries of a store. A failed transfer is a miss."""

    medium = Medium.STORAGE

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        **settings: Any,
    ) -> None:
        """`settings` are those of `Settings` that name tiers: path, disk, remote, namespace …"""
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        chosen = Settings.read({"host": None, **settings})
        self.store = chosen.open_store(private=True)
        # A row for each chunk; memoryviews of two dimensions cannot be sliced.
        self._chunks = np.asarray(primary_kv_view).view(np.uint8)
        self._model = _identity(offloading_spec.config, self.block_size_bytes)
        scope = json.dumps([self._model, chosen.namespace, chosen.salt])
        self._root = hashlib.sha256(scope.encode()).digest()
        self._pool = ThreadPoolExecutor(THREADS, f"recollect-{tier_type}")
        self._pending: set[Future[None]] = set()
        self._finished: deque[JobResult] = deque()
        self._loading: dict[int, list[OffloadKey]] = {}
        self._lookups = _Lookups(self)

    def key(self, key: OffloadKey) -> bytes:
        """Under which a chunk lies in the store."""
        return hashlib.blake2b(key, key=self._root, digest_size=32).digest()

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        found = self._lookups.lookup(key, req_context)
        if found is None:
            return LookupResult.RETRY
        return LookupResult.HIT if found else LookupResult.MISS

    def submit_store(self, job_metadata: TransferJob) -> None:
        self._submit(job_metadata, self._store_chunk)

    def submit_load(self, job_metadata: TransferJob) -> None:
        self._loading[job_metadata.job_id] = list(job_metadata.keys)
        self._submit(job_metadata, self._load_chunk)

    def get_finished_jobs(self) -> Iterable[JobResult]:
        results = []
        while self._finished:
            result = self._finished.popleft()
            keys = self._loading.pop(result.job_id, None)
            if keys and not result.success:  # or the scheduler would try the same again
                kept = set(result.successful_keys or ())
                self._lookups.mark_miss([key for key in keys if key not in kept])
            results.append(result)
        return results

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: ReqContext) -> None:
        self._lookups.cleanup(req_context.req_id)

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        self._lookups.flush()

    def drain_jobs(self) -> None:
        wait(list(self._pending))

    def shutdown(self) -> None:
        self._lookups.shutdown()
        self._pool.shutdown(wait=True)
        self.store.close()

    def _submit(self, job: TransferJob, move: Any) -> None:
        future = self._pool.submit(self._run, job, move)
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)

    def _run(self, job: TransferJob, move: Any) -> None:
        started, done = time.perf_counter(), []
        try:
            for key, chunk in zip(job.keys, job.chunk_ids, strict=True):
                if not move(key, int(chunk)):
                    break
                done.append(key)
        except Exception as error:
            logger.warning("tier '%s': %s", self.tier_type, error)
        whole = len(done) == len(job.keys)
        result = JobResult(
            job.job_id,
            whole,
            None if whole or not done else tuple(done),
            time.perf_counter() - started,
            len(done) * self.block_size_bytes,
        )
        self._finished.append(result)

    def _store_chunk(self, key: OffloadKey, chunk: int) -> bool:
        from recollect.store.frames import FrameHeader, pack  # late: see connector.py

        header = FrameHeader(model=self._model, tokens=0, codec="state", facts={"key": key.hex()})
        sections = {SECTION: self._chunks[chunk].data}
        return bool(self.store.put(self.key(key), pack(header, sections)))

    def _load_chunk(self, key: OffloadKey, chunk: int) -> bool:
        from recollect.store.frames import unpack

        lease = self.store.get(self.key(key))
        if lease is None:
            return False
        with lease:
            frame = unpack(lease.data, model=self._model)
            data = frame.view(SECTION)
            if frame.header.facts.get("key") != key.hex() or len(data) != self.block_size_bytes:
                return False
            self._chunks[chunk] = np.frombuffer(data, np.uint8)
        return True


def _identity(config: Any, nbytes: int) -> str:
    """Everything the bytes of a chunk depend on: pages are kept as the engine lays them out."""
    facts = [
        config.model.dtype,
        config.kv_cache_layout,
        [[group.tokens_per_block, group.layer_names] for group in config.groups],
        config.cache.blocks_per_chunk,
        config.parallel.world_size,
        config.parallel.tp_size,
        config.parallel.pp_size,
        nbytes,
        checkpoint_digest(Path(config.model.name)) or config.model.name,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
