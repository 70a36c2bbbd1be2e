"""One half of classifier-free guidance made from the other, where they differ little (FasterCache).

What separates the two predictions is remembered in two frequency bands; between renewals one half
is computed, and the other is that half plus the bands, which grow as the image takes shape.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from recollect.diffusion.companions import Companion
from recollect.diffusion.engine.branches import Branch
from recollect.diffusion.engine.clock import Step
from recollect.diffusion.engine.values import Template, Value, nbytes, split
from recollect.diffusion.host.call import Call, take_rows
from recollect.diffusion.sites import BlockSite
from recollect.errors import RecipeError

if TYPE_CHECKING:
    from recollect.diffusion.engine.evaluation import Evaluation
    from recollect.diffusion.engine.session import Session
    from recollect.diffusion.host.hooks import Installed

_NOTES = "guidance"


@dataclass(frozen=True)
class GuidanceCache(Companion):
    """CFG cache of FasterCache (arXiv:2410.19355), for batched guidance and for two calls a step.

    In a batch the second half runs (pipelines put the condition there); of two calls, the first.
    Where both are evaluated anew, all modules run, whatever a gate of modules says.

    Attributes:
        renew: steps from one evaluation of both halves to the next.
        below: both are evaluated until the timestep (of 1,000) has fallen below this.
        growth: factor of a band for every step that uses it.
        low, high: the timesteps between which the bands of low and high frequencies grow.
    """

    renew: int = 5
    below: float = 641.0
    growth: float = 1.1
    low: tuple[float, float] = (99.0, 901.0)
    high: tuple[float, float] = (-1.0, 301.0)

    def __post_init__(self) -> None:
        if self.renew < 1:
            raise RecipeError(f"renew is 1 or more, not {self.renew}")
        for name in ("low", "high"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def install(self, model: torch.nn.Module, session: Session, installed: Installed) -> None:
        policy = session.policy
        if isinstance(policy.site, BlockSite) or policy.gate.probe != "none":
            raise RecipeError(
                "half of a batch cannot pass through blocks that are judged or left out; use a "
                "guidance cache with a site of modules or of the whole model, and a gate without "
                "a probe"
            )
        session.inner.append(_Guidance(self, session).evaluate)

    def skips(self, step: Step) -> bool:
        """Whether one half will do at this step."""
        return step.index % self.renew != 0 and self._begun(step)

    def renews(self, step: Step) -> bool:
        """Whether a half runs that has been made on the steps before."""
        return self.renew > 1 and step.index % self.renew == 0 and self._begun(step)

    def _begun(self, step: Step) -> bool:
        return 1000 * step.sigma < self.below


@dataclass
class Bands:
    """What separates one prediction from another, by frequency.

    Attributes:
        low, high: the differences; their sum is the whole one.
        low_gain, high_gain: what they have grown to.
        source: the branch that is added to, where it is another one.
        template: how to return the sum, where the branch itself does not run.
    """

    low: Value
    high: Value
    low_gain: float = 1.0
    high_gain: float = 1.0
    source: Branch | None = None
    template: Template | None = None

    @classmethod
    def between(cls, one: Value, other: Value) -> Bands:
        """The bands that lead from `other` to `one`."""
        differences = tuple(a.float() - b.float() for a, b in zip(one, other, strict=True))
        low = tuple(low_frequencies(tensor) for tensor in differences)
        return cls(low, tuple(d - part for d, part in zip(differences, low, strict=True)))

    def grow(self, cache: GuidanceCache, step: Step) -> None:
        """Let the bands grow, once for every step that uses them."""
        time = 1000 * step.sigma
        if cache.low[0] < time < cache.low[1]:
            self.low_gain *= cache.growth
        if cache.high[0] < time < cache.high[1]:
            self.high_gain *= cache.growth

    def added_to(self, value: Value) -> Value:
        """The other prediction."""
        return tuple(
            (v.float() + self.low_gain * low + self.high_gain * high).to(v.dtype)
            for v, low, high in zip(value, self.low, self.high, strict=True)
        )

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return nbytes(self.low) + nbytes(self.high)


def low_frequencies(tensor: torch.Tensor) -> torch.Tensor:
    """The part of (…, H, W) within a fifth of the shorter side around frequency 0.

    Outputs of fewer axes (packed tokens) have no image to transform: they count as low as a whole.
    """
    if tensor.ndim < 4:
        return tensor
    height, width = tensor.shape[-2:]
    radius = min(height, width) // 5
    rows = torch.fft.fftfreq(height, 1 / height, device=tensor.device)
    columns = torch.fft.fftfreq(width, 1 / width, device=tensor.device)
    inside = rows[:, None] ** 2 + columns**2 <= radius**2
    return torch.fft.ifft2(torch.fft.fft2(tensor) * inside).real


class _Leader(NamedTuple):
    """The first call of a step."""

    branch: Branch
    request: str
    call: Call
    value: Value


class _Guidance:
    """A guidance cache at work between a policy and its denoiser."""

    def __init__(self, cache: GuidanceCache, session: Session) -> None:
        self.cache, self.session = cache, session
        self._local = threading.local()
        session.on_reset.append(self._forget)

    def _forget(self) -> None:
        self._local = threading.local()

    def evaluate(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The output of both halves, of which one may not have run."""
        evaluation = self.session.evaluation
        if evaluation is None or (evaluation.some and not evaluation.every):
            return forward(*args, **kwargs)  # a batch in parts
        if evaluation.flags is not None and self.cache.renews(evaluation.step):
            # What modules gave last is too old in the half that was made to extrapolate from.
            evaluation.flags = (True,) * len(evaluation.flags)
        if evaluation.branch.paired:
            return self._halves(evaluation, forward, args, kwargs)
        return self._calls(evaluation, forward, args, kwargs)

    def _halves(
        self, evaluation: Evaluation, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """One call with the batch ``[unconditional, conditional]``."""
        branch, step = evaluation.branch, evaluation.step
        bands = branch.beside.get(_NOTES)
        if bands is None or not self.cache.skips(step):
            output = forward(*args, **kwargs)
            halves = [tensor.chunk(2) for tensor in split(output)[0]]
            branch.beside[_NOTES] = Bands.between(
                tuple(first for first, _ in halves), tuple(second for _, second in halves)
            )
            return output
        second = torch.arange(evaluation.call.rows) >= evaluation.call.rows // 2
        given, named = take_rows(self.session.signature.names, args, kwargs, second)
        with evaluation.only(second):
            value, template = split(forward(*given, **named))
        bands.grow(self.cache, step)
        pairs = zip(bands.added_to(value), value, strict=True)
        return template.fill([torch.cat(pair) for pair in pairs])

    def _calls(
        self, evaluation: Evaluation, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """One of several calls at a step; the first one runs and leads the others."""
        branch, leader = evaluation.branch, getattr(self._local, "leader", None)
        if leader is not None and not self._together(leader, evaluation):
            leader = None
        bands = branch.beside.get(_NOTES)
        saves = self.cache.skips(evaluation.step)
        if saves and leader is not None and bands is not None and bands.source is leader.branch:
            bands.grow(self.cache, evaluation.step)
            evaluation.share = 0.0
            return bands.template.fill(bands.added_to(leader.value))
        output = forward(*args, **kwargs)
        value, template = split(output)
        if leader is None:
            self._local.leader = _Leader(branch, self._request, evaluation.call, value)
        else:
            bands = Bands.between(value, leader.value)
            bands.source, bands.template = leader.branch, template
            branch.beside[_NOTES] = bands
        return output

    def _together(self, leader: _Leader, evaluation: Evaluation) -> bool:
        return (
            leader.branch is not evaluation.branch
            and leader.request == self._request
            and self.session.together(leader.call, evaluation.call)
        )

    @property
    def _request(self) -> str:
        return getattr(self.session.request, "name", "")
