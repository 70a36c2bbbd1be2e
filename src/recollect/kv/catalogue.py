"""The recipes of this room, side by side: a table of contents of the field."""

from __future__ import annotations

from recollect.kv.arena import VirtualSlots
from recollect.kv.budgets import FlatHeads, HeadClasses, PyramidLayers
from recollect.kv.codecs import IntCodec
from recollect.kv.merges import ClusterMerge
from recollect.kv.policy import Positions, Protect
from recollect.kv.schedules import EverySteps
from recollect.kv.scores import (
    AttentionMass,
    ExpectedAttention,
    KeyNorm,
    LastQueryAttention,
    Recency,
    WindowAttention,
)
from recollect.recipe import Recipe, register

register(
    Recipe(
        name="full",
        title="Everything is kept, as the host does",
        authors="baseline 2017",
        arxiv="1706.03762",
        area="kv",
        summary="The host's own cache on faster kernels; the reference for all others.",
    ),
    Recipe(
        name="streaming-llm",
        title="Efficient Streaming Language Models with Attention Sinks",
        authors="Xiao et al. 2023",
        arxiv="2309.17453",
        area="kv",
        summary="First tokens and the most recent ones, at contiguous positions.",
        stages={
            "score": Recency(),
            "protect": Protect(sinks=4),
            "positions": Positions(contiguous=True),
            "schedule": EverySteps(steps=16),
        },
        needs=("rope",),
        reported="stable perplexity over 4 M tokens; up to 22.2x per-token speed against "
        "sliding-window recomputation",
    ),
    Recipe(
        name="h2o",
        title="H2O: Heavy-Hitter Oracle for Efficient Generative Inference of LLMs",
        authors="Zhang et al. 2023",
        arxiv="2306.14048",
        area="kv",
        summary="Tokens that received most attention so far, and as many recent ones; every step.",
        stages={"score": AttentionMass(), "schedule": EverySteps(steps=1)},
        needs=("queries",),
        reported="20% of the cache: up to 29x throughput over DeepSpeed and Accelerate on "
        "OPT-6.7B/30B; 5-10x smaller cache without quality loss on HELM",
    ),
    Recipe(
        name="tova",
        title="Transformers are Multi-State RNNs",
        authors="Oren et al. 2024",
        arxiv="2401.06104",
        area="kv",
        summary="Drops what the newest query attends to least, the same tokens in every head.",
        stages={"score": LastQueryAttention(), "schedule": EverySteps(steps=1)},
        needs=("queries",),
        reported="close to full at 1/8 of the cache in most long-range tasks",
        status="experimental",
    ),
    Recipe(
        name="snapkv",
        title="SnapKV: LLM Knows What You are Looking for Before Generation",
        authors="Li et al. 2024",
        arxiv="2404.14469",
        area="kv",
        summary="Prompt tokens that the last 64 queries attend to, pooled along the sequence.",
        stages={"score": WindowAttention()},
        needs=("queries",),
        reported="3.6x generation speed and 8.2x memory at 16k tokens",
    ),
    Recipe(
        name="pyramidkv",
        title="PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling",
        authors="Cai et al. 2024",
        arxiv="2406.02069",
        area="kv",
        summary="Early layers keep more than late ones; tokens chosen as in SnapKV.",
        stages={"layers": PyramidLayers()},
        fallback={"score": WindowAttention()},
        needs=("queries",),
        reported="matches the full cache with 12% kept on LongBench (LLaMA-3-8B)",
        status="experimental",
    ),
    Recipe(
        name="adakv",
        title="Ada-KV: Adaptive Budget Allocation for Head-wise KV Eviction",
        authors="Feng et al. 2024",
        arxiv="2407.11550",
        area="kv",
        summary="Heads share a layer's budget by one ranking; they really hold different lengths.",
        stages={"heads": FlatHeads()},
        fallback={"score": WindowAttention()},
        needs=("queries",),
        reported="LongBench, Mistral-7B, 128/1024 tokens: SnapKV 34.55/41.35 -> 35.48/41.61; "
        "RULER-4k at 20% kept: 39.0 -> 46.0",
        status="experimental",
    ),
    Recipe(
        name="expected-attention",
        title="Expected Attention: KV Cache Compression by Estimating Attention from Future "
        "Queries Distribution",
        authors="Devoto et al. 2025",
        arxiv="2510.00636",
        area="kv",
        summary="Attention that Gaussian future queries would pay, weighted by the value norm.",
        stages={"score": ExpectedAttention()},
        needs=("queries", "rope"),
        reported="query-agnostic compression ahead of SnapKV on RULER and LongBench at 50% kept",
    ),
    Recipe(
        name="knorm",
        title="A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression",
        authors="Devoto et al. 2024",
        arxiv="2406.11430",
        area="kv",
        summary="Tokens whose keys have a small norm; no queries needed.",
        stages={"score": KeyNorm()},
        reported="Qwen3-8B on RULER-4k with 25/50/75/88% removed: 86.4/69.3/34.7/7.7 (kvpress)",
        status="experimental",
    ),
    Recipe(
        name="kivi",
        title="KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache",
        authors="Liu et al. 2024",
        arxiv="2402.02750",
        area="kv",
        summary="Keys per channel, values per token in 2, 4 or 8 bits; recent tokens exact.",
        stages={"codec": IntCodec()},
        reported="2.6x less peak memory, 2.35-3.47x throughput; LongBench, Mistral-7B: "
        "43.54 full, 42.43 at 2 bit, 43.53 at 4 bit",
    ),
    Recipe(
        name="vattention",
        title="vAttention: Dynamic Memory Management for Serving LLMs without PagedAttention",
        authors="Prabhu et al. 2024",
        arxiv="2405.04437",
        area="kv",
        summary="Whole sequences in a virtual arena: they grow in place, page by page.",
        stages={"storage": VirtualSlots()},
        reported="decode up to 1.97x vLLM's paged kernels; prefill up to 3.92x and 1.45x paged "
        "FlashAttention and FlashInfer",
    ),
    Recipe(
        name="chelsea",
        title="Efficient Long-Context LLM Inference via KV Cache Clustering",
        authors="Hu et al. 2025",
        arxiv="2506.11418",
        area="kv",
        summary="Neighbours with similar keys are averaged, and weigh what they stand for.",
        stages={"merge": ClusterMerge()},
        reported="up to 80% smaller cache, 3.19x decode, 2.72x end to end",
    ),
    Recipe(
        name="duo-attention",
        title="DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming "
        "Heads",
        authors="Xiao et al. 2024",
        arxiv="2410.10819",
        area="kv",
        summary="Retrieval heads, found by trained gates, keep all; others sinks and recents.",
        stages={
            "score": Recency(),
            "heads": HeadClasses(),
            "protect": Protect(sinks=4),
            "schedule": EverySteps(steps=64),
        },
        needs=("artefact",),
        reported="with 25% (MHA) / 50% (GQA) full heads: memory /2.55 and /1.67, decode x2.18 and "
        "x1.50, near-full quality",
    ),
)
