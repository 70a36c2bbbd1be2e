"""Scores that look at hidden states get those of their own layer, and nothing is left behind."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from families import build

import recollect
from recollect.kv.scores import Score

SEEN: list[torch.Tensor] = []


@dataclass(frozen=True)
class LoudestHidden(Score):
    """Keeps the tokens whose hidden states are largest: the same in all heads."""

    needs: ClassVar[tuple[str, ...]] = ("hidden",)

    def observe(self, chunk):
        assert chunk.hidden is not None
        SEEN.append(chunk.hidden)
        batch, heads, total = chunk.candidates.shape
        norms = chunk.hidden.float().norm(dim=-1)[:, None].expand(batch, heads, -1)
        before = chunk.candidates.columns.get("loud")
        if before is None:
            before = torch.zeros(batch, heads, total - norms.shape[-1])
        return {"loud": torch.cat([before[..., : total - norms.shape[-1]], norms], -1)}

    def rank(self, chunk):
        return chunk.candidates.columns["loud"]


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "GPT-NeoX"])
def test_a_score_sees_the_hidden_states_of_its_layer(family):
    model = build(family)
    modules = [m for n, m in model.named_modules() if n.endswith(("self_attn", "attention"))]
    given: list[torch.Tensor] = []

    def note(_module, args, kwargs):
        given.append(kwargs.get("hidden_states", args[0] if args else None))

    hooks = [m.register_forward_pre_hook(note, with_kwargs=True) for m in modules]
    ids = torch.randint(2, 120, (2, 40), generator=torch.Generator().manual_seed(0))
    SEEN.clear()
    with (
        torch.no_grad(),
        recollect.kv_cache(model, recollect.KVPolicy(keep=0.5, score=LoudestHidden())) as cache,
    ):
        model(input_ids=ids, past_key_values=cache)
        kept = cache.governed[0].slab.column("position").long()
    for hook in hooks:
        hook.remove()
    assert len(SEEN) == len(given) == len(modules)
    assert all(torch.equal(a, b) for a, b in zip(SEEN, given, strict=True))
    loudest = given[0].float().norm(dim=-1).topk(20).indices.sort().values
    assert torch.equal(kept[:, 0].sort().values, loudest)
    assert not any(m._forward_pre_hooks for m in modules)
