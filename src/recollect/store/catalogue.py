"""The recipes of this room, side by side: how keys and values are kept across requests."""

from __future__ import annotations

from recollect.recipe import Recipe, register
from recollect.store.plan import CacheGenFrames, Chunks, DenseFrames, Redundancy

register(
    Recipe(
        name="lmcache",
        title="LMCache: An Efficient KV Cache Layer for Enterprise-Scale LLM Inference",
        authors="Cheng et al. 2025",
        arxiv="2510.09665",
        area="store",
        summary="Whole chunks of 256 tokens under chained keys, bit for bit, on tiers.",
        stages={"chunks": Chunks(chunk=256)},
        fallback={"codec": DenseFrames()},
        reported="up to 15x throughput with vLLM on multi-round questions and document analysis",
    ),
    Recipe(
        name="cachegen",
        title="CacheGen: KV Cache Compression and Streaming for Fast LLM Serving",
        authors="Liu et al. 2024",
        arxiv="2310.07240",
        area="store",
        summary="Chunks quantized more coarsely in later layers, predicted from anchors where that "
        "pays, and entropy-coded, at four levels.",
        stages={"codec": CacheGenFrames()},
        fallback={"chunks": Chunks(chunk=256)},
        reported="3.7-4.3x less bandwidth and 2.7-3x shorter delay at similar quality",
    ),
    Recipe(
        name="reft",
        title="Reliable and Efficient In-Memory Fault Tolerance of Large Language Model "
        "Pretraining",
        authors="Wang et al. 2023",
        arxiv="2310.12670",
        area="store",
        summary="Entries in host memory survive the loss of any one of the segments they lie on, "
        "by parity.",
        stages={"redundancy": Redundancy()},
        fallback={"chunks": Chunks(chunk=256), "codec": DenseFrames()},
        reported="snapshots of training state more than 14x faster than asynchronous "
        "checkpoints, any one node's loss rebuilt",
        status="experimental",
    ),
)
