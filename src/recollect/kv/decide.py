"""From scores to the tokens that stay: rank, protect, share out, select, merge, move."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from recollect.core.select import protect, protected_counts, ragged_indices, top_indices
from recollect.kv.candidates import Candidates, Chunk
from recollect.kv.merges import Merge
from recollect.kv.slab import Slab

if TYPE_CHECKING:
    from recollect.kv.layer import KVLayer


def decide(layer: KVLayer, chunk: Chunk) -> Slab | None:
    """What stays of the candidates, or None when everything does.

    Reads the layer's policy, budget and prompt length; changes nothing but `chunk.candidates`.
    """
    policy, candidates = layer.plan.policy, chunk.candidates
    assert layer.budget is not None
    assert layer.prompt is not None
    device = candidates.k.device
    lengths, budget = candidates.lengths(), layer.budget.to(device)
    if policy.heads.even and bool((budget[:, None] >= lengths).all()):
        return None
    if "position" not in candidates.columns:
        batch, heads, total = candidates.shape
        position = torch.arange(total, dtype=torch.int32, device=device)
        candidates.columns["position"] = position.expand(batch, heads, total)
    slack = policy.schedule.every_steps
    if policy.merge is not None:
        return _merge(policy.merge, candidates, budget, slack)

    assert policy.score is not None
    ranked = policy.score.rank(chunk.even()).view(*candidates.shape)
    ranked = _protect(layer, ranked, candidates, budget)
    counts = policy.heads.counts(ranked, budget, lengths, layer.prompt.to(device), layer.plan.index)
    counts = torch.minimum(torch.maximum(counts, protected_counts(ranked)), lengths)
    if bool((counts >= lengths).all()):
        return None
    if bool((counts == counts.flatten()[0]).all()):
        index = top_indices(ranked, int(counts.flatten()[0])).reshape(-1)
        kept = counts.reshape(-1)
    else:
        index, kept = ragged_indices(ranked, counts)
    slab = Slab.gather(
        candidates.k, candidates.v, index.cpu(), kept.cpu(), candidates.columns, slack
    )
    if policy.positions.contiguous:
        _close_gaps(layer, slab, sinks=policy.protect.sinks)
    return slab


def _protect(
    layer: KVLayer, scores: torch.Tensor, candidates: Candidates, budget: torch.Tensor
) -> torch.Tensor:
    """Scores with +inf on protected and -inf on missing tokens."""
    policy = layer.plan.policy
    assert policy.score is not None
    by_score = torch.tensor([policy.score.protects(n) for n in budget.tolist()])
    sinks = by_score[:, 0].clamp_min(policy.protect.sinks).to(scores.device)
    recent = by_score[:, 1].clamp_min(policy.protect.recent).to(scores.device)
    return protect(scores, sinks, recent, candidates.padding)


def _merge(merge: Merge, candidates: Candidates, budget: torch.Tensor, slack: int) -> Slab:
    """Merge row by row (rows of a padded batch differ in length) and put the rows together."""
    batch, heads, total = candidates.shape
    lengths = candidates.lengths()
    if "bias" not in candidates.columns:
        candidates.columns["bias"] = torch.zeros(batch, heads, total, device=candidates.k.device)
    rows = []
    for b in range(batch):
        first = total - int(lengths[b, 0])
        row = Candidates(
            candidates.k[b : b + 1, :, first:],
            candidates.v[b : b + 1, :, first:],
            None,
            {name: column[b : b + 1, :, first:] for name, column in candidates.columns.items()},
        )
        rows.append(merge.apply(row, int(budget[b])))
    longest = max(row.shape[2] for row in rows)
    kept = torch.tensor([row.shape[2] for row in rows]).repeat_interleave(heads)
    index = torch.cat([torch.arange(int(n)) for n in kept])

    def together(parts: list[torch.Tensor]) -> torch.Tensor:
        out = parts[0].new_zeros(batch, *parts[0].shape[1:2], longest, *parts[0].shape[3:])
        for b, part in enumerate(parts):
            out[b, :, : part.shape[2]] = part[0]
        return out

    columns = {name: together([row.columns[name] for row in rows]) for name in rows[0].columns}
    k, v = together([row.k for row in rows]), together([row.v for row in rows])
    return Slab.gather(k, v, index, kept, columns, slack)


def _close_gaps(layer: KVLayer, slab: Slab, sinks: int) -> None:
    """Rotate kept keys so that distances to the next query have no gaps.

    A token `d` places from the end of the cache is moved to distance `d`: recent tokens stay where
    they are, only those before a gap turn. First tokens turn from a pristine copy each time, so
    that endless streams do not accumulate rounding.
    """
    rope, statistics = layer.plan.rope, layer.memory.statistics
    assert rope is not None
    rows, padding = slab.aligned_rows()
    longest = rows.shape[-1]
    target = layer.seen - longest + torch.arange(longest, device=rows.device)
    total = (target - slab.columns["position"][rows]).to(torch.int64)  # (B, K, longest)
    done = slab.columns.get("shift")
    delta = total - (done[rows] if done is not None else 0)
    real = torch.arange(longest, device=rows.device) >= padding[..., None]
    moved = real & (delta != 0)
    if sinks and slab.length is not None and slab.length >= sinks:
        if "sinks" not in statistics:
            statistics["sinks"] = slab.k[rows[..., :sinks]].float()
        turned = rope.rotate_by(statistics["sinks"], total[..., :sinks])
        slab.k[rows[..., :sinks]] = turned.to(slab.k.dtype)
        moved[..., :sinks] = False
    if bool(moved.any()):
        turning = rows[moved]
        slab.k[turning] = rope.rotate_by(slab.k[turning], delta[moved])
    shift = torch.zeros(len(slab.k), dtype=torch.int32, device=slab.k.device)
    shift[rows[real]] = total[real].to(torch.int32)
    slab.columns["shift"] = shift
