"""Head classes: which KV heads retrieve from afar and which only look nearby (2410.10819)."""

from __future__ import annotations

import math

import torch


def head_classes(alpha: torch.Tensor, sparsity: float) -> torch.Tensor:
    """True for retrieval heads: those with the highest gates, an exact number of them.

    DuoAttention takes a quantile of the gates after adding noise against ties; ranking gives the
    same classes without the noise. The number of streaming heads is rounded up, so that retrieval
    heads never take more memory than asked for.

    Args:
        alpha: (L, K) gates of all layers, higher = needs the full cache.
        sparsity: share of the heads that stream, in [0, 1].

    Returns:
        (L, K) bool.
    """
    streaming = math.ceil(sparsity * alpha.numel() - 1e-9)
    order = alpha.flatten().argsort(descending=True, stable=True)
    retrieval = torch.ones(alpha.numel(), dtype=torch.bool, device=alpha.device)
    retrieval[order[alpha.numel() - streaming :]] = False
    return retrieval.view_as(alpha)
