"""Speed of a cache against the host's own, in the same run: prefill with compression, and decode.

Times of this machine mean little; the ratio to the host's cache, taken in turns in the same rounds,
does. A round times every variant once, the host first, so that a busy neighbour hits all alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from recollect.evaluate.caches import Variant, open_cache
from recollect.evaluate.subject import Subject


def rounds(
    subject: Subject, variants: list[Variant], context_ids: torch.Tensor, *, steps: int, count: int
) -> Iterator[dict[str, Any]]:
    """One record per variant and round; a first round only warms up and is not reported.

    Args:
        context_ids: (T,) what every cache holds before it decodes.
        steps: tokens decoded, one at a time.
        count: rounds reported.
    """
    for number in range(-1, count):
        for variant in variants:
            times = measure(subject, variant, context_ids, min(steps, 4) if number < 0 else steps)
            if number >= 0:
                yield {"recipe": variant.recipe, "keep": variant.keep, "round": number, **times}


@torch.inference_mode()
def measure(
    subject: Subject, variant: Variant, context_ids: torch.Tensor, steps: int
) -> dict[str, Any]:
    """Seconds of prefill (compression included) and of one decode step, and bytes held."""
    cache = open_cache(subject.model, variant)
    try:
        started = time.perf_counter()
        token = _step(subject, cache, context_ids[None])
        prefill = time.perf_counter() - started
        each = []
        for _ in range(steps):
            started = time.perf_counter()
            token = _step(subject, cache, token)
            each.append(time.perf_counter() - started)
        return {
            "prefill_seconds": prefill,
            "compress_seconds": cache.report().seconds,
            "step_seconds": statistics.median(each),
            "nbytes": cache.nbytes,
            "dense_nbytes": cache.dense_nbytes,
        }
    finally:
        cache.close()


def _step(subject: Subject, cache: Any, ids: torch.Tensor) -> torch.Tensor:
    """The likeliest next token (1, 1); `.cpu()` waits for a device to finish."""
    out = subject.model(
        input_ids=ids.to(subject.device), past_key_values=cache, use_cache=True, logits_to_keep=1
    )
    return out.logits[:, -1:].argmax(-1).cpu()
