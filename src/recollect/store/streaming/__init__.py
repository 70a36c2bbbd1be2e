"""Stored keys and values on their way to the model: what to fetch, and when to decode it.

`controller` chooses, chunk by chunk and under a deadline, between levels of quality and computing
again; `loader` brings the layers of stored chunks one after the other, ahead of the model;
`delivery` does both for a Store.
"""

from recollect.store.streaming.controller import (
    TEXT,
    AdaptivePolicy,
    Bandwidth,
    Chunk,
    Policy,
    Progress,
    ReleasedPolicy,
    Throughput,
)
from recollect.store.streaming.delivery import deliver, level_key
from recollect.store.streaming.loader import BrokenChunk, LayerStream

__all__ = [
    "TEXT",
    "AdaptivePolicy",
    "Bandwidth",
    "BrokenChunk",
    "Chunk",
    "LayerStream",
    "Policy",
    "Progress",
    "ReleasedPolicy",
    "Throughput",
    "deliver",
    "level_key",
]
