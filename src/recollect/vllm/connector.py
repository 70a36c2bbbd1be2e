"""`RecollectConnector`: vLLM's KV connector over a recollect store.

A thin shell. The scheduler's half is `planner.Planner`, the workers' half `mover.Mover`; this file
only translates vLLM's hooks into their calls. A hook that fails costs a cache hit, never a request.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
)
from vllm.v1.kv_cache_interface import AttentionSpec
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from recollect.errors import HostError
from recollect.vllm.blocks import codec_for
from recollect.vllm.events import EventBook
from recollect.vllm.identity import ChunkKeys, fingerprint, hashing
from recollect.vllm.messages import Orders, Report
from recollect.vllm.planner import Planner, Policy
from recollect.vllm.presence import Presence
from recollect.vllm.settings import Settings
from recollect.vllm.stats import RecollectPrometheus, RecollectStats
from recollect.vllm.versions import require
from recollect.vllm.worth import Always, Measured

if TYPE_CHECKING:
    from recollect.vllm.mover import Mover

logger = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class OrdersMetadata(KVConnectorMetadata):
    """What the scheduler sends with every step."""

    orders: Orders = field(default_factory=Orders)


@dataclass
class ReportMetadata(KVConnectorWorkerMetadata):
    """What a worker sends back."""

    report: Report

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        assert isinstance(other, ReportMetadata)
        self.report.merge(other.report)
        return self


def guarded(default: Any) -> Callable[[F], F]:
    """A hook that answers `default` when it fails: an exception there would end the engine.

    Not for hooks after which the engine counts on something having happened.
    """

    def wrap(hook: F) -> F:
        @functools.wraps(hook)
        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return hook(*arguments, **named)
            except Exception:
                logger.exception("%s failed; going on without it", hook.__name__)
                return default

        return call  # type: ignore[return-value]

    return wrap


class RecollectConnector(KVConnectorBase_V1):
    """Loads and saves KV of whole chunks under exact keys; see `Settings` for what can be set."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        """Raises HostError for anything that could make a hit wrong or a miss an error."""
        require()
        super().__init__(vllm_config, role, kv_cache_config)
        transfer, cache = self._kv_transfer_config, vllm_config.cache_config
        parallel = vllm_config.parallel_config
        if transfer.kv_load_failure_policy != "recompute":
            raise HostError(
                'set "kv_load_failure_policy": "recompute" in --kv-transfer-config: '
                "a cache must not turn a miss into a failed request"
            )
        self._settings = Settings.read(transfer.kv_connector_extra_config)
        self._specs = _layer_specs(kv_cache_config)
        self._block: int = next(iter(self._specs.values())).block_size
        self._chunk = self._settings.chunk_tokens(self._block)
        for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
            if getattr(parallel, name, 1) > 1:
                raise HostError(f"{name} > 1 spreads a block over workers: not supported")
        self._workers = parallel.world_size
        self._model = fingerprint(
            vllm_config.model_config, cache_dtype=cache.cache_dtype, ranks=self._workers
        )
        self._planner: Planner | None = None
        self._mover: Mover | None = None
        self._events: EventBook | None = None
        if role == KVConnectorRole.SCHEDULER:
            self._planner = self._plan(kv_cache_config, hashing(cache.prefix_caching_hash_algo))

    def _plan(self, kv_cache_config: Any, algorithm: str) -> Planner:
        settings, transfer = self._settings, self._kv_transfer_config
        hashed = kv_cache_config.hash_block_size or self._block
        if self._chunk % hashed:
            raise HostError(f"chunk {self._chunk} is no multiple of the {hashed} tokens of a hash")
        keys = ChunkKeys(
            f"{self._model}/{algorithm}", namespace=settings.namespace, salt=settings.salt,
            chunk=self._chunk, hashed=hashed,
        )  # fmt: skip
        # A failed load must not meet a forward of other workers, which would save what follows.
        sync = settings.load != "async" and self._workers == 1
        if settings.load == "sync" and not sync:
            raise HostError('with several workers per model, set "load": "async" or "auto"')
        later = settings.load != "sync"
        if settings.load == "auto" and settings.host in (None, 0, "0"):
            sync = False
        policy = Policy(
            chunk=self._chunk, block=self._block, sync=sync, later=later,
            loads=transfer.is_kv_consumer, saves=transfer.is_kv_producer,
            hands_off=transfer.is_kv_producer and not transfer.is_kv_consumer,
            save_generated=settings.save_generated,
            lookup_seconds=settings.lookup_seconds, handoff_seconds=settings.handoff_seconds,
        )  # fmt: skip
        on_save = None
        events = self._vllm_config.kv_events_config
        if events is not None and events.enable_kv_cache_events:
            self._events = EventBook(chunk=self._chunk, hashed=hashed, shared=settings.is_shared)
            on_save = self._events.ordered
        shared = settings.open_store(private=False) if settings.is_shared else None
        return Planner(
            policy, keys, Presence(shared), worth=self._worth(), near=settings.nearest,
            workers=self._workers, on_save=on_save,
        )  # fmt: skip

    def _worth(self) -> Always:
        settings = self._settings
        if settings.admission == "always":
            return Always(settings.min_load_tokens or 0)
        page = sum(spec.page_size_bytes for spec in self._specs.values())
        return Measured(
            nbytes=page * self._chunk // self._block, chunk=self._chunk, near=settings.nearest,
            min_load_tokens=settings.min_load_tokens,
        )  # fmt: skip

    @property
    def requires_kv_delivery(self) -> bool:
        """A dropped save is a later miss: nothing is computed again for it."""
        return False

    # Scheduler

    @guarded(None)
    def on_new_request(self, request: Any) -> None:
        self._plans.arrived(request)

    @guarded((0, False))
    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        return self._plans.matched(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens > 0:
            self._plans.allocated(request, blocks.get_block_ids()[0], num_external_tokens)

    @guarded({})
    def get_external_cache_hit_sources(
        self, request: Any, num_external_tokens: int
    ) -> dict[CacheHitSource, int]:
        ours, others = self._plans.sources(request, num_external_tokens)
        elsewhere = (
            CacheHitSource.EXTERNAL_UNSPECIFIED if self._settings.remote else CacheHitSource.DISK
        )
        near = CacheHitSource.HOST if self._settings.host else elsewhere
        counts = {near: ours}
        counts[elsewhere] = counts.get(elsewhere, 0) + others
        return {source: count for source, count in counts.items() if count}

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        state = scheduler_output.kv_connector_block_state

        def blocks(request: str) -> list[int] | None:
            tables = state.get_block_ids(request)
            return tables[0] if tables else None

        return OrdersMetadata(self._plans.orders(scheduler_output.num_scheduled_tokens, blocks))

    @guarded(None)
    def update_connector_output(self, connector_output: Any) -> None:
        told = connector_output.kv_connector_worker_meta
        if told is None:
            return
        whole = self._plans.reported(told.report)
        if self._events is not None:
            self._events.committed(whole)
            self._events.lost(told.report.lost)

    @guarded((False, None))
    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        return False, self._plans.finished(request)

    @guarded(())
    def take_events(self) -> Iterable[Any]:
        return self._events.take() if self._events is not None else ()

    @guarded(False)
    def reset_cache(self) -> bool:
        """After this, what was stored before is out of reach of this engine."""
        self._plans.reset(os.urandom(16))
        return True

    # Worker

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        # Not earlier: it imports numba, and vLLM stumbles over numba's modules when it sets up its
        # kernels in a process that has them.
        from recollect.vllm.mover import LayerCache, Mover

        caches = {}
        for name, cache in kv_caches.items():
            spec = self._specs[name]
            if cache.ndim != 4 or cache.shape[2] != spec.block_size:
                raise HostError(f"the KV cache of {name} is {tuple(cache.shape)}: unknown layout")
            caches[name] = LayerCache(cache, codec_for(cache, spec.head_size, spec.head_size_v))
        dtypes = {str(x.cache.dtype) for x in caches.values()}
        if len(dtypes) > 1:
            raise HostError(f"layers keep KV in different formats: {', '.join(sorted(dtypes))}")
        self._mover = Mover(
            self._settings.open_store(private=True), caches, model=self._model,
            chunk=self._chunk, block=self._block, staging=self._settings.staging,
            rank=self._vllm_config.parallel_config.rank,
        )  # fmt: skip

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        if self._mover is not None:
            self._mover.begin()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        if self._mover is not None:
            self._mover.start(self._orders)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are whole before the forward starts."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Blocks are copied when all layers are done, in `wait_for_save`."""

    @guarded(None)
    def wait_for_save(self) -> None:
        if self._mover is not None:
            self._mover.save(self._orders)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        return None, self._mover.take_arrived() if self._mover is not None else None

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._mover.take_bad_blocks() if self._mover is not None else set()

    @guarded(None)
    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        report = self._mover.take_report() if self._mover is not None else None
        return ReportMetadata(report) if report is not None else None

    # Both

    @guarded(None)
    def get_kv_connector_stats(self) -> RecollectStats | None:
        if self._mover is not None:
            counts = self._mover.take_counts()
        else:
            counts = self._planner.take_counts() if self._planner is not None else {}
        return RecollectStats(data=counts) if counts else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> RecollectStats:
        return RecollectStats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: Any, metric_types: Any, labelnames: Any, per_engine_labelvalues: Any
    ) -> RecollectPrometheus:
        return RecollectPrometheus(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    @guarded(None)
    def shutdown(self) -> None:
        if self._mover is not None:
            self._mover.close()
        if self._planner is not None:
            self._planner.close()

    @property
    def _plans(self) -> Planner:
        assert self._planner is not None, "a hook of the scheduler was called in a worker"
        return self._planner

    @property
    def _orders(self) -> Orders:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, OrdersMetadata)
        return metadata.orders


def _layer_specs(kv_cache_config: Any) -> dict[str, Any]:
    """Layer name -> attention spec. Raises HostError for caches that are not K/V by position."""
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        raise HostError(
            f"the model has {len(groups)} groups of KV caches; only models with one are supported "
            "(start vLLM with --disable-hybrid-kv-cache-manager)"
        )
    group = groups[0]
    each = getattr(group.kv_cache_spec, "kv_cache_specs", None)
    specs = {name: (each[name] if each else group.kv_cache_spec) for name in group.layer_names}
    for name, spec in specs.items():
        if not isinstance(spec, AttentionSpec) or spec.tokens_per_state != 1:
            raise HostError(f"{name} keeps {type(spec).__name__}, which is no K/V by position")
        if spec.kv_quant_mode != 0:
            raise HostError(f"{name} keeps quantized KV; use --kv-cache-dtype auto")
    return specs
