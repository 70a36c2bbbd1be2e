"""vLLM's statistics hooks: counters per step, summed over workers, for its log line and Prometheus.

Everything is a counter of whole numbers (times in microseconds): vLLM's offline metrics cut
fractions off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

COUNTERS = {
    "loaded_tokens": "Tokens whose KV came from the store.",
    "loaded_bytes": "Bytes read from the store.",
    "loaded_chunks": "Entries read from the store.",
    "loaded_us": "Microseconds spent on reading entries and filling blocks.",
    "loads_failed": "Loads that broke off; what was missing was computed again.",
    "saved_tokens": "Tokens whose KV was written to the store.",
    "saved_bytes": "Bytes written to the store.",
    "saved_chunks": "Entries written to the store.",
    "saved_us": "Microseconds from the end of a forward until an entry was written.",
    "saves_put_off": "Entries not saved in a step, to be offered again.",
    "saves_failed": "Entries that the store did not take.",
    "saves_declined": "Entries not saved because their reuse was not expected to pay for it.",
    "declined_tokens": "Tokens that were stored, and quicker to compute than to load.",
    "hit_tokens": "Tokens that requests were promised from the store.",
}


@dataclass
class RecollectStats(KVConnectorStats):
    """Counts of one interval by the names in `COUNTERS`."""

    def reset(self) -> None:
        self.data.clear()

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        for name, count in other.data.items():
            self.data[name] = self.data.get(name, 0) + count
        return self

    def reduce(self) -> dict[str, int | float]:
        """The counts, and how fast entries moved."""
        line: dict[str, int | float] = dict(sorted(self.data.items()))
        for what in ("loaded", "saved"):
            if spent := self.data.get(f"{what}_us"):
                line[f"{what} MB/s"] = round(self.data[f"{what}_bytes"] / spent, 1)
        return line

    def is_empty(self) -> bool:
        return not any(self.data.values())


class RecollectPrometheus(KVConnectorPromMetrics):
    """One counter `vllm:recollect_NAME` for each of `COUNTERS`, labelled by engine."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._counters = {}
        for name, about in COUNTERS.items():
            counter = self._counter_cls(
                name=f"vllm:recollect_{name}", documentation=about, labelnames=self._labelnames
            )
            self._counters[name] = {
                engine: counter.labels(*values)
                for engine, values in self.per_engine_labelvalues.items()
            }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for name, count in transfer_stats_data.items():
            if name in self._counters:
                self._counters[name][engine_idx].inc(count)
