"""Modules whose outputs are mixed with cached ones, by a score for every step and module.

While a router learns, everything is computed and nothing is saved: a module's output is
``(1 - s) * cached + s * fresh``, so that the score ``s`` gets a gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from recollect.diffusion.engine.values import Value, split
from recollect.diffusion.host.blocks import find_blocks
from recollect.diffusion.host.hook import Hook
from recollect.diffusion.host.hooks import Installed
from recollect.diffusion.host.modules import find_submodules
from recollect.diffusion.sites import Modules
from recollect.errors import HostError

_NAME = "recollect-router"

Mode = Literal["plain", "soft", "hard"]
"""Compute everything; mix by score; or compute and reuse as at inference."""


class Router(torch.nn.Module):
    """Logits for every step and module; the first step has none and computes everything.

    Attributes:
        sites: names of the modules.
        threshold: score above which a module is computed.
        bound: logits are held within it on both sides.
    """

    def __init__(
        self, start: torch.Tensor, sites: tuple[str, ...], threshold: float, bound: float
    ) -> None:
        """`start` holds logits (T, M) to begin with; those of the first step do not count."""
        super().__init__()
        self.sites, self.threshold, self.bound = sites, threshold, bound
        # One parameter a step: an optimizer then leaves those of other steps alone.
        self.rows = torch.nn.ParameterList(torch.nn.Parameter(row.clone()) for row in start[1:])

    def scores(self, step: int) -> torch.Tensor:
        """(M,) in (0, 1)."""
        if step == 0:
            return torch.full((len(self.sites),), self.bound).sigmoid()
        return torch.sigmoid(self.rows[step - 1])

    @torch.no_grad()
    def clamp(self) -> None:
        """Hold the logits within bounds."""
        for row in self.rows:
            row.clamp_(-self.bound, self.bound)

    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        """(T, M)."""
        first = torch.full((len(self.sites),), self.bound)
        return torch.stack([first, *(row.detach().cpu() for row in self.rows)])

    @torch.no_grad()
    def mask(self, share: float | None = None) -> torch.Tensor:
        """What is computed: (T, M) bool, true for scores over the threshold.

        Args:
            share: compute exactly this share of all modules instead, those of the highest scores.
        """
        logits = self.logits()
        if share is None:
            mask = logits.sigmoid() > self.threshold
        else:
            count = max(len(self.sites), round(share * logits.numel()))
            logits[0] = torch.inf
            chosen = logits.flatten().argsort(descending=True, stable=True)[:count]
            mask = torch.zeros(logits.numel(), dtype=torch.bool)
            mask[chosen] = True
            mask = mask.view(logits.shape)
        mask[0] = True
        return mask


class Mixture:
    """The hooks' common state.

    Attributes:
        sites: names of the modules, in order.
        step: the step in progress.
        scores: (M,) of this step.
        mode: what the hooks do.
    """

    def __init__(self, sites: tuple[str, ...], threshold: float) -> None:
        self.sites, self.threshold = sites, threshold
        self.mode: Mode = "plain"
        self.scores = torch.ones(len(sites))
        self._cached: dict[tuple[str, int], Value] = {}
        self._calls: Counter[str] = Counter()

    def begin(self) -> None:
        """Forget what is cached: another trajectory."""
        self._cached.clear()

    @contextmanager
    def at(self, mode: Mode, scores: torch.Tensor) -> Iterator[None]:
        """One evaluation of the model."""
        self.mode, self.scores = mode, scores
        self._calls.clear()
        try:
            yield
        finally:
            self.mode = "plain"

    def mix(self, name: str, output: Any) -> Any:
        """What a module gives, of what it has computed."""
        if self.mode == "plain":
            return output
        fresh, template = split(output)
        self._calls[name] += 1  # some blocks send both streams through one module
        key = (name, self._calls[name])
        score = self.scores[self.sites.index(name)]
        cached = self._cached.get(key)
        computed = bool(score > self.threshold)
        if cached is None or computed:
            self._cached[key] = tuple(tensor.detach() for tensor in fresh)
        if cached is None:
            return output
        if self.mode == "hard":
            return output if computed else template.fill(cached)
        mixed = [
            old + score.to(new.dtype) * (new - old) for old, new in zip(cached, fresh, strict=True)
        ]
        return template.fill(mixed)


class _MixHook(Hook):
    def __init__(self, mixture: Mixture, name: str) -> None:
        super().__init__()
        self.mixture, self.name = mixture, name

    def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
        return self.mixture.mix(self.name, output)


@contextmanager
def mixing(model: torch.nn.Module, threshold: float) -> Iterator[Mixture]:
    """Hooks on the attention and feed-forward modules of a model, for the length of a block.

    The model's weights get no gradients meanwhile. Raises HostError where no modules are found.
    """
    found = [sub for sub in find_submodules(find_blocks(model), Modules()) if not sub.mute]
    if not found:
        raise HostError(
            f"no attention or feed-forward modules can be recognized in {type(model).__name__}"
        )
    mixture = Mixture(tuple(sub.name for sub in found), threshold)
    wanted = [weight for weight in model.parameters() if weight.requires_grad]
    training, installed = model.training, Installed()
    try:
        for weight in wanted:
            weight.requires_grad_(False)
        model.eval()
        for sub in found:
            installed.add(sub.module, _MixHook(mixture, sub.name), _NAME)
        yield mixture
    finally:
        installed.remove()
        for weight in wanted:
            weight.requires_grad_(True)
        model.train(training)
