"""`RecollectOffloadingSpec`: vLLM's own offloading framework with our policies and tiers.

vLLM ships host offloading for CUDA and XPU alone; the framework itself needs only a worker that
copies pages, which is all this file adds for CPU engines.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

from recollect.errors import HostError
from recollect.vllm.plugin import register
from recollect.vllm.versions import require

register()  # names of policies and tiers, where the entry point did not run


class PageCopier(OffloadingWorker):
    """Copies pages between the engine's blocks and the host tier's chunks, in the calling thread.

    A chunk holds `per_chunk` blocks; the first and the last chunk of a group may be partial.
    """

    def __init__(
        self,
        caches: CanonicalKVCaches,
        hosts: list[torch.Tensor],
        per_chunk: int,
        region: SharedOffloadRegion | None = None,
    ) -> None:
        """`hosts` are int8 (chunks, per_chunk · page), one for each tensor of `caches`."""
        pages = [(t.tensor.view(torch.int8), t.page_size_bytes) for t in caches.tensors]
        self._pages = [tensor.reshape(-1, size) for tensor, size in pages]
        for (tensor, _), page in zip(pages, self._pages, strict=True):
            if page.data_ptr() != tensor.data_ptr():
                raise HostError("the engine's KV cache is not in pages; offloading cannot copy it")
        self._hosts = [h.view(len(h), per_chunk, -1) for h in hosts]
        self._references, self._per_chunk = caches.group_data_refs, per_chunk
        self._region = region
        self._done: list[TransferResult] = []

    def submit_store(
        self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec
    ) -> bool:
        return self._copy(job_id, src_spec, dst_spec, to_host=True)

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        return self._copy(job_id, dst_spec, src_spec, to_host=False)

    def get_finished(self) -> list[TransferResult]:
        done, self._done = self._done, []
        return done

    def wait(self, job_ids: set[int]) -> None:
        """Everything is done when it was submitted."""

    def shutdown(self) -> None:
        if self._region is not None:
            self._hosts.clear()
            self._region.cleanup()
            self._region = None

    def _copy(
        self, job: int, blocks: GPULoadStoreSpec, chunks: LoadStoreSpec, *, to_host: bool
    ) -> bool:
        assert isinstance(chunks, CPULoadStoreSpec)
        started, moved, block_at, chunk_at = time.perf_counter(), 0, 0, 0
        groups = zip(blocks.group_sizes, blocks.block_indices, self._references, strict=True)
        for size, first, references in groups:
            skip = first % self._per_chunk
            for n in range(size):
                chunk = chunks.chunk_ids[chunk_at + (skip + n) // self._per_chunk]
                block, offset = blocks.block_ids[block_at + n], (skip + n) % self._per_chunk
                for reference in references:
                    page = self._pages[reference.tensor_idx][block]
                    slot = self._hosts[reference.tensor_idx][chunk, offset]
                    slot.copy_(page) if to_host else page.copy_(slot)
                    moved += page.numel()
            block_at += size
            chunk_at += -(-(skip + size) // self._per_chunk)
        self._done.append(TransferResult(job, True, moved, time.perf_counter() - started))
        return True


class RecollectOffloadingSpec(TieringOffloadingSpec):
    """Host tier, and below it any number of `secondary_tiers`; see docs/vllm.md.

    ``eviction_policy`` is any name of `core.replacement`; a tier ``{"type": "recollect", …}`` is a
    recollect store, on disk or remote.
    """

    def __init__(self, config: Any) -> None:
        require()
        super().__init__(config)
        self._worker: OffloadingWorker | None = None

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        if not current_platform.is_cpu():
            return super().get_worker(kv_caches)
        if self._worker is None:
            region = SharedOffloadRegion(
                engine_id=self._engine_id,
                num_chunks=self.num_chunks,
                rank=self.config.parallel.rank,
                kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker,
            )
            sizes = [t.page_size_bytes * self.blocks_per_chunk for t in kv_caches.tensors]
            hosts = [region.create_next_worker_view(size) for size in sizes]
            self._worker = PageCopier(kv_caches, hosts, self.blocks_per_chunk, region)
        return self._worker
