"""RegionE at work: which tokens run on a step, and the velocity that every token is given."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from recollect.diffusion.artefacts import Artefact
from recollect.diffusion.banks.bank import KVBank
from recollect.diffusion.banks.partial import Forward, Named, Partial
from recollect.diffusion.editing.decay import KIND, VelocityDecay
from recollect.diffusion.editing.regions import Layout, edited
from recollect.diffusion.engine.branches import same
from recollect.diffusion.engine.values import Template, nbytes, split
from recollect.diffusion.host.flux import flat
from recollect.diffusion.host.schedule import euler_levels
from recollect.errors import RecipeError

if TYPE_CHECKING:
    from recollect.diffusion.editing.regione import RegionEdit
    from recollect.diffusion.engine.session import Session
    from recollect.diffusion.host.hooks import Installed


def attach(
    policy: RegionEdit, model: torch.nn.Module, session: Session, installed: Installed
) -> None:
    """Let a policy stand between the session and the denoiser."""
    partial = Partial(model, session, installed, "regione")
    session.inner.append(_Regions(policy, session, partial).evaluate)


@dataclass
class _State:
    """One trajectory of one branch.

    Attributes:
        layout: where the tokens lie.
        bank: keys and values of all of them, from the last whole step that drew a map.
        template: the output around its tensor.
        map: which tokens are edited (B, S) bool, until the step `until`.
        velocity: of every token, as last computed (B, S + R, C).
        left: product of the ratios since then.
    """

    layout: Layout
    bank: KVBank = field(default_factory=KVBank)
    template: Template | None = None
    map: torch.Tensor | None = None
    until: int = 0
    velocity: torch.Tensor | None = None
    left: float = 1.0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.bank.nbytes + (0 if self.velocity is None else nbytes((self.velocity,)))


class _Regions:
    """`RegionEdit` at work on one denoiser."""

    def __init__(self, policy: RegionEdit, session: Session, partial: Partial) -> None:
        self.policy, self.session, self.partial = policy, session, partial
        self.decay = (
            None if policy.decay is None else VelocityDecay.of(Artefact.load(policy.decay, KIND))
        )
        self._last = threading.local()

    def evaluate(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        """One call of the denoiser; runs while the session's evaluation is in progress."""
        evaluation = self.session.evaluation
        if evaluation is None:
            return forward(*args, **kwargs)
        branch, step = evaluation.branch, evaluation.step
        levels = euler_levels(self.session, step)
        named = self.session.signature.bind(args, kwargs)
        state = branch.beside.get("regione")
        if state is None:
            if self.decay is not None:
                self.decay.check(levels[:-1])
            state = _State(Layout.of(flat(named["img_ids"])))
            branch.beside["regione"] = state
        latent, index = evaluation.call.latent, step.index
        if state.map is not None and index < state.until:
            velocity, evaluation.share = self._region(forward, named, state, latent, index)
            self._last.map = None
        elif index in (stops := self.policy.stops(len(levels) - 1))[:-1]:
            until = stops[stops.index(index) + 1]
            velocity = self._whole(forward, named, state, latent, index, until, levels)
        else:
            state.map = state.velocity = self._last.map = None
            return forward(*args, **kwargs)
        span = levels[index + 1] - levels[index]
        branch.expected = latent.clone()
        branch.expected[:, : state.layout.count] += span * velocity[:, : state.layout.count]
        assert state.template is not None
        return state.template.fill([velocity])

    def _whole(
        self,
        forward: Forward,
        named: Named,
        state: _State,
        latent: torch.Tensor,
        index: int,
        until: int,
        levels: list[float],
    ) -> torch.Tensor:
        """Run everything, keep keys and values, draw the map; what stays jumps to `until`."""
        output = self.partial.whole(forward, named, state.bank)
        (velocity,), state.template = split(output)
        state.velocity, state.left, state.until = velocity, 1.0, until
        limit = self.session.policy.limit
        if limit is not None and state.nbytes > limit:
            raise RecipeError(
                f"regione keeps {state.nbytes:,} bytes per branch, over the limit of {limit:,}"
            )
        count = state.layout.count
        state.map = self._map(latent, velocity, state.layout, levels[index] - levels[-1])
        jump = (levels[until] - levels[index]) / (levels[index + 1] - levels[index])
        moved = velocity.clone()
        moved[:, :count] *= torch.where(state.map, 1.0, jump).to(velocity.dtype)[..., None]
        return moved

    def _map(
        self, latent: torch.Tensor, velocity: torch.Tensor, layout: Layout, level: float
    ) -> torch.Tensor:
        """The edited tokens (B, S); branches of guidance at the same step share one map."""
        before = getattr(self._last, "map", None)
        if before is not None and same((before[0],), (latent,)):
            return before[1]
        policy = self.policy
        found = edited(
            latent[:, : layout.count] - level * velocity[:, : layout.count],
            latent[:, layout.counterpart],
            layout,
            policy.similarity,
            policy.erode,
            policy.dilate,
        )
        evaluation = self.session.evaluation
        if evaluation is not None and evaluation.branch.paired:  # halves of guidance: one picture
            found = found | found.roll(len(found) // 2, 0)
        self._last.map = (latent, found)
        return found

    def _region(
        self,
        forward: Forward,
        named: Named,
        state: _State,
        latent: torch.Tensor,
        index: int,
    ) -> tuple[torch.Tensor, float]:
        """Velocities on a step between whole ones, and which share of the tokens ran."""
        assert state.map is not None
        assert state.velocity is not None
        count, edits = state.layout.count, state.map
        moved = torch.zeros_like(state.velocity)
        if self._fades_little(state, index):
            moved[:, :count][edits] = (state.left * state.velocity[:, :count])[edits]
            return moved, 0.0
        state.left = 1.0
        some, every = edits.any(1), edits.all(1)
        share = 0.0
        if bool(every.any()):  # nothing to save: the picture's tokens run as well
            moved[every] = self.partial.rows(forward, named, every)
            share += float(every.float().mean())
        if bool((some & ~every).any()):
            part = self.partial.tokens(
                forward, named, state.bank, edits, some & ~every, self.policy.bank
            )
            moved[:, :count] = torch.where(
                (edits & ~every[:, None])[..., None], part, moved[:, :count]
            )
            tokens = float(edits[some & ~every].sum())
            share += tokens / (len(edits) * latent.shape[1])
        moved[:, :count][~edits] = 0
        state.velocity[:, :count] = torch.where(
            edits[..., None], moved[:, :count], state.velocity[:, :count]
        )
        return moved, share

    def _fades_little(self, state: _State, index: int) -> bool:
        """Whether the last velocity, faded, will do; notes how far it has faded."""
        if self.decay is None:
            return False
        ratio = self.decay.ratio(index)
        state.left *= ratio
        return ratio < 1 and 1 - state.left <= self.policy.delta
