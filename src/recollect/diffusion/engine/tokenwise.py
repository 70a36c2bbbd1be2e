"""Modules under a token selection: on a skipped step they run for some tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from recollect.diffusion.engine.modulewise import ModuleWalk
from recollect.diffusion.engine.values import Value, split
from recollect.diffusion.host.modules import Submodule, rows_alone
from recollect.diffusion.predictors import Reuse
from recollect.diffusion.selection import Tokens, attention_received, grid_of, importance

if TYPE_CHECKING:
    from recollect.diffusion.engine.evaluation import Evaluation

_NOTES = "tokens"


@dataclass
class Notes:
    """What a branch remembers of its tokens.

    Attributes:
        scores: importance (B, S) by number of block, from the latest full step.
        ages: steps since a token was computed (B, S), by name of module.
    """

    scores: dict[int, torch.Tensor] = field(default_factory=dict)
    ages: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held = (*self.scores.values(), *self.ages.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in held)


class TokenWalk(ModuleWalk):
    """The way of one call through modules that compute their most important tokens."""

    def __init__(self, evaluation: Evaluation) -> None:
        super().__init__(evaluation)
        self.always = self._site.share == 1

    @property
    def _notes(self) -> Notes:
        return self.evaluation.branch.beside.setdefault(_NOTES, Notes())

    @property
    def _site(self) -> Tokens:
        site = self.session.policy.site
        assert isinstance(site, Tokens)
        return site

    def computed(self, name: str, part: Submodule, args: Any, kwargs: Any) -> None:
        """Note how important each token is, when its self-attention has run."""
        self._notes.ages.pop(name, None)
        given = args[0] if args else kwargs.get("hidden_states")
        if part.kind != "spatial" or not isinstance(given, torch.Tensor) or given.ndim != 3:
            return
        score = _importance_of(part.module, given, self._site.by)
        if score is not None:
            self._notes.scores[part.block] = score

    def predicted(
        self, name: str, part: Submodule, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Value:
        """The kept rows, with those of the most important tokens computed anew."""
        site, evaluation = self._site, self.evaluation
        value = evaluation.predict(name)
        run = rows_alone(part, args, kwargs)
        if run is None or len(value) != 1 or value[0].shape[:2] != run.tokens.shape[:2]:
            return value
        (kept,) = value
        tokens = kept.shape[1]
        last = max(1, self.session.modules[-1].block)
        count = site.count(tokens, part.kind == "feed_forward", part.block / last)
        if count == 0:
            return value
        index = self._choose(name, part, kept, count)
        rows = run.tokens.gather(1, _across(index, run.tokens))
        fresh, _ = split(evaluation.blame.theirs(run.call(forward), (rows,), {}))
        value = (kept.scatter(1, _across(index, kept), fresh[0]),)
        if isinstance(evaluation.policy.predictor, Reuse) and evaluation.running is None:
            evaluation.branch.histories[name].terms[0] = value
        return value

    def _choose(self, name: str, part: Submodule, kept: torch.Tensor, count: int) -> torch.Tensor:
        """Places (B, count) of the tokens that are computed; the others grow older."""
        evaluation, notes = self.evaluation, self._notes
        score = notes.scores.get(part.block)
        if score is None or score.shape != kept.shape[:2]:
            score = kept.float().norm(dim=-1)  # a stream without a self-attention of its own
        if self._site.by == "random":
            lot = torch.Generator().manual_seed(1_000 * evaluation.step.index + part.block)
            score = torch.rand(kept.shape[:2], generator=lot).to(kept.device)
        age = notes.ages.get(name)
        age = torch.zeros(kept.shape[:2], device=kept.device) if age is None else age
        every = getattr(evaluation.policy.gate, "every", 1)
        grid = grid_of(kept.shape[1], evaluation.call.latent)
        total = importance(score, (age + 1) / every, self._site, grid)
        if (
            evaluation.branch.paired and evaluation.running is None
        ):  # the halves of guidance are subtracted from each other
            half = len(total) // 2
            total = (total[:half] + total[half:]).repeat(2, 1)
        index = total.topk(count, dim=1).indices
        notes.ages[name] = (age + 1).scatter(1, index, 0.0)
        return index


def _across(index: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Places (B, n) for gathering rows of (B, S, C)."""
    return index.unsqueeze(-1).expand(-1, -1, tensor.shape[-1])


def _importance_of(module: Any, given: torch.Tensor, by: str) -> torch.Tensor | None:
    """Importance (B, S) of the tokens of a self-attention; None without projections to see."""
    if by == "values" and hasattr(module, "to_v"):
        return module.to_v(given).float().norm(dim=-1)
    if by == "attention" and hasattr(module, "to_q") and hasattr(module, "heads"):
        return attention_received(module.to_q(given), module.to_k(given), module.heads)
    return None
