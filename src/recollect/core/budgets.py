"""Budgets: from what the user asked to keep to whole numbers of tokens per layer and head.

Every split is in integers and sums to the total exactly: what is reported is what is held.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch

from recollect.core.select import nth_largest
from recollect.errors import RecipeError

_ROUNDING = 1e-9  # 0.1 * 30 is 3.0000000000000004, 0.29 * 100 is 28.999999999999996: mean 3 and 29


def check_keep(keep: float | int) -> None:
    """Raise `RecipeError` unless `keep` is a fraction in (0, 1] or a whole number of tokens."""
    number = isinstance(keep, (int, float)) and not isinstance(keep, bool)
    if number and (keep >= 1 if isinstance(keep, int) else 0 < keep <= 1):
        return
    raise RecipeError(
        f"keep must be a fraction in (0, 1] or a number of tokens (int, at least 1), got {keep!r}"
    )


def count_kept(keep: float | int, length: int) -> int:
    """Tokens to keep of `length`: a fraction rounds down, a count is capped; at least 1 of any."""
    check_keep(keep)
    wanted = keep if isinstance(keep, int) else math.floor(keep * length + _ROUNDING)
    return min(max(wanted, 1), length)


def share_exactly(
    total: int,
    weights: Sequence[float],
    *,
    floors: int | Sequence[int] = 0,
    caps: int | Sequence[int] | None = None,
) -> list[int]:
    """Split `total` in proportion to `weights` into integers within [floor, cap].

    Shares that a bound cuts off are redistributed over the others in proportion; what is left after
    rounding down goes to the largest remainders (ties: lower index). The sum is `total` exactly,
    or the sum of the bounds where they leave no room. Arithmetic is in fractions, so no rounding
    error can lose a token. Where all weights are zero the split is equal.
    """
    count = len(weights)
    lowest = [floors] * count if isinstance(floors, int) else list(floors)
    highest = (
        [total] * count if caps is None else [caps] * count if isinstance(caps, int) else list(caps)
    )
    highest = [max(low, high) for low, high in zip(lowest, highest, strict=True)]
    if total <= sum(lowest):
        return lowest
    if total >= sum(highest):
        return highest
    quotas = _bounded_quotas(total, [Fraction(w) for w in weights], lowest, highest)
    shares = [math.floor(q) for q in quotas]
    by_remainder = sorted(range(count), key=lambda i: (shares[i] - quotas[i], i))
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


def _bounded_quotas(
    total: int, weights: list[Fraction], floors: list[int], caps: list[int]
) -> list[Fraction]:
    """Proportional shares clipped to their bounds, summing to `total`.

    Fixes the side that is violated more, then shares the rest anew: each round fixes one at least.
    """
    quotas = [Fraction(0)] * len(weights)
    free = list(range(len(weights)))
    rest = Fraction(total)
    while free:
        scale = sum(weights[i] for i in free)
        for i in free:
            quotas[i] = rest * weights[i] / scale if scale else rest / len(free)
        below = [i for i in free if quotas[i] < floors[i]]
        above = [i for i in free if quotas[i] > caps[i]]
        lacking = sum(floors[i] - quotas[i] for i in below)
        excess = sum(quotas[i] - caps[i] for i in above)
        fixed, bounds = (below, floors) if lacking >= excess else (above, caps)
        if not fixed:
            break
        for i in fixed:
            quotas[i] = Fraction(bounds[i])
            rest -= bounds[i]
        free = [i for i in free if i not in fixed]
    return quotas


def uniform_layers(mean: int, n_layers: int) -> list[int]:
    """Every layer keeps the same."""
    return [mean] * n_layers


def pyramid_layers(mean: int, n_layers: int, length: int, window: int, beta: float) -> list[int]:
    """PyramidKV (2406.02069): tokens per layer, window included, falling linearly with depth.

    The scored part (all but the window) falls from `2m - m/beta` to `m/beta` around its mean
    `m = mean - window`, capped at the scored tokens there are. The sum is `mean * n_layers`
    exactly; the reference overspends by its integer steps.
    """
    if mean >= length or mean <= window:
        return uniform_layers(min(mean, length), n_layers)
    scored = mean - window
    first = min(2 * scored - scored / beta, length - window)
    last = 2 * scored - first
    step = (first - last) / max(n_layers - 1, 1)
    profile = [window + first - layer * step for layer in range(n_layers)]
    return share_exactly(mean * n_layers, profile, floors=window, caps=length)


def pyramid_layers_kvpress(
    keep: float, n_layers: int, length: int, window: int, beta: float
) -> list[int]:
    """PyramidKV by kvpress 0.5.5's rule, for comparison.

    The mean has no window subtracted, and where the smallest layer would fall below the window
    (keep * length < beta * window) all layers keep the same.
    """
    scored = length * keep
    last = scored / beta
    first = 2 * scored - last
    if first >= length - window:
        first = length - window
        last = 2 * scored - first
    if not length >= first >= last >= window:
        return uniform_layers(max(1, round(scored)), n_layers)
    step = (first - last) / (n_layers - 1) if n_layers > 1 else 0.0
    return [round(first - layer * step) for layer in range(n_layers)]


def flat_head_counts(
    scores: torch.Tensor, n_per_head: torch.Tensor | int, floor_share: float
) -> torch.Tensor:
    """Ada-KV (2407.11550): the heads of a layer share K*n tokens by one ranking over all of them.

    Every head is sure of its own best `int(n * floor_share)` tokens (one at least, if the share is
    not 0); the rest goes to the highest scores wherever they are (ties: lower head). This is
    kvpress's rule, which spends K*n exactly; the authors' rounding may lose tokens.

    Args:
        scores: (B, K, T), protected tokens at +inf and padding at -inf. Protected tokens always
            count, so the sum exceeds K*n only where there are more of them; padding never counts.
        n_per_head: budget per head on average, one for all rows or (B,).
        floor_share: in [0, 1]; 1 gives every head the same, 0 guarantees nothing.

    Returns:
        (B, K) int64.
    """
    batch, heads, length = scores.shape
    n = torch.as_tensor(n_per_head, device=scores.device).expand(batch).clamp(max=length)
    safe = (n * floor_share + _ROUNDING).long()
    if floor_share > 0:
        safe = safe.clamp(min=1).minimum(n)
    real = (scores > -torch.inf).sum(-1)
    forced = torch.maximum(safe[:, None].expand(batch, heads), (scores == torch.inf).sum(-1))
    forced = forced.minimum(real)

    # Only how many tokens of a head stand above a threshold matters, not which: a head's forced
    # tokens are its best, so they need no mask, just a count that starts no lower.
    ranked = scores.sort(-1, descending=True).values
    column = torch.arange(length, device=scores.device)
    open_ = ranked.masked_fill(column < forced[..., None], -torch.inf)
    spare = (heads * n).minimum(real.sum(-1)) - forced.sum(-1)
    threshold = nth_largest(open_.flatten(1), spare.clamp(min=1))[:, None, None]
    above = (open_ > threshold).sum(-1)
    ties = (open_ == threshold).sum(-1)
    left = (spare - above.sum(-1))[:, None]
    granted = torch.minimum(ties, (left - (ties.cumsum(-1) - ties)).clamp(min=0))
    return torch.where(spare[:, None] > 0, forced + above + granted, forced)
