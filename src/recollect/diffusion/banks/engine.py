"""Banks at work: which tokens run in a call, and what the others leave for attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from recollect.diffusion.banks.adapter import ConditionAdapter
from recollect.diffusion.banks.bank import KVBank
from recollect.diffusion.banks.lora import Weights
from recollect.diffusion.banks.partial import Forward, Named, Partial
from recollect.diffusion.engine.values import Template, split
from recollect.diffusion.host.flux import Plan, flat, rotary
from recollect.errors import HostError, RecipeError

if TYPE_CHECKING:
    from recollect.diffusion.banks.conditions import ConditionBank
    from recollect.diffusion.banks.references import ReferenceBank
    from recollect.diffusion.engine.session import Session
    from recollect.diffusion.host.hooks import Installed


def attach_conditions(
    policy: ConditionBank,
    model: torch.nn.Module,
    session: Session,
    installed: Installed,
    weights: Sequence[Weights],
) -> None:
    """Let a policy stand between the session and the denoiser, with these adapters."""
    adapters = [
        ConditionAdapter(model, each, installed, f"recollect adapter {number}")
        for number, each in enumerate(weights)
    ]
    partial = Partial(model, session, installed, "conditions")
    session.inner.append(_Conditions(policy, session, partial, adapters).evaluate)


def attach_references(
    policy: ReferenceBank, model: torch.nn.Module, session: Session, installed: Installed
) -> None:
    """Let a policy stand between the session and the denoiser."""
    partial = Partial(model, session, installed, "references")
    session.inner.append(_References(policy, session, partial).evaluate)


@dataclass
class _Slot:
    """One condition: what it was given, and what it became."""

    given: tuple[torch.Tensor, ...]
    bank: KVBank


@dataclass
class _State:
    """The conditions of one branch of a request, by number."""

    slots: dict[int, _Slot] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(slot.bank.nbytes for slot in self.slots.values())


class _Conditions:
    """`ConditionBank` at work on one denoiser."""

    def __init__(
        self,
        policy: ConditionBank,
        session: Session,
        partial: Partial,
        adapters: list[ConditionAdapter],
    ) -> None:
        self.policy, self.session, self.partial = policy, session, partial
        self.adapters = adapters

    def evaluate(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        """One call of the denoiser; runs while the session's evaluation is in progress."""
        evaluation = self.session.evaluation
        named = self.session.signature.bind(args, kwargs)
        ids = flat(named["img_ids"])
        numbers = ids[:, 0].long()
        own = numbers < self.policy.first
        kinds = [int(number) for number in numbers[~own].unique()]
        if not kinds:
            return forward(*args, **kwargs)
        if len(self.adapters) > 1 and len(self.adapters) != len(kinds):
            raise HostError(
                f"there are {len(self.adapters)} adapters for {len(kinds)} conditions; give one "
                "per condition, or one for all"
            )
        state = _State()
        if evaluation is not None:
            state = evaluation.branch.beside.setdefault("conditions", state)
        for place, kind in enumerate(kinds):
            self._prepare(forward, named, state, kind, numbers == kind, place)
        for gone in set(state.slots) - set(kinds):
            del state.slots[gone]
        limit = self.session.policy.limit
        if limit is not None and state.nbytes > limit:
            raise RecipeError(
                f"conditions keep {state.nbytes:,} bytes per branch, over the limit of {limit:,}"
            )
        return self._attended(forward, named, state, kinds, own)

    def _prepare(
        self,
        forward: Forward,
        named: Named,
        state: _State,
        kind: int,
        chosen: torch.Tensor,
        place: int,
    ) -> None:
        """Run a condition by itself, unless it is as before."""
        latent, ids = named["hidden_states"][:, chosen], flat(named["img_ids"])[chosen]
        pooled = named.get("pooled_projections")
        if isinstance(pooled, torch.Tensor) and not self.policy.pooled:
            pooled = torch.zeros_like(pooled)
        given = tuple(
            t for t in (latent, ids, pooled, named.get("guidance")) if isinstance(t, torch.Tensor)
        )
        before = state.slots.get(kind)
        if before is not None and self.policy.reuse and _equal(before.given, given):
            return
        bank = KVBank(learning=not self.policy.reuse)
        state.slots[kind] = slot = _Slot(tuple(t.clone() for t in given), bank)
        alone = {
            **named,
            "hidden_states": latent,
            "img_ids": ids,
            "encoder_hidden_states": named["encoder_hidden_states"][:, :0],
            "txt_ids": flat(named["txt_ids"])[:0],
            "pooled_projections": pooled,
            "timestep": torch.full_like(named["timestep"], self.policy.level),
        }
        adapter = self.adapters[min(place, len(self.adapters) - 1)] if self.adapters else None
        if adapter is None:
            self.partial.whole(forward, alone, slot.bank)
            return
        with adapter.active():
            self.partial.whole(forward, alone, slot.bank)

    def _attended(
        self, forward: Forward, named: Named, state: _State, kinds: list[int], own: torch.Tensor
    ) -> Any:
        """Run text and result, which attend to all conditions; conditions give 0."""
        ids = flat(named["img_ids"])
        order = torch.cat([ids[own], *(ids[ids[:, 0].long() == kind] for kind in kinds)])
        banks = [state.slots[kind].bank for kind in kinds]

        def keys(
            layer: str, key: torch.Tensor, value: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            kept = [bank.get(layer) for bank in banks]
            return (
                torch.cat([key, *(pair[0] for pair in kept)], 1),
                torch.cat([value, *(pair[1] for pair in kept)], 1),
            )

        model: Any = self.partial.model
        plan = Plan(
            named["encoder_hidden_states"].shape[1],
            keys,
            rotary(model, named["txt_ids"], ids[own]),
            rotary(model, named["txt_ids"], order),
        )
        latent = named["hidden_states"]
        some = {**named, "hidden_states": latent[:, own], "img_ids": ids[own]}
        with self.partial.plans.using(plan):
            (found,), template = split(forward(**some))
        whole = found.new_zeros(*latent.shape[:2], found.shape[-1])
        whole[:, own] = found
        return template.fill([whole])


def _equal(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> bool:
    return len(one) == len(other) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )


@dataclass
class _Kept:
    """The bank of one branch, and the output around its tensor."""

    bank: KVBank = field(default_factory=KVBank)
    template: Template | None = None
    age: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.bank.nbytes


class _References:
    """`ReferenceBank` at work on one denoiser."""

    def __init__(self, policy: ReferenceBank, session: Session, partial: Partial) -> None:
        self.policy, self.session, self.partial = policy, session, partial

    def evaluate(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        """One call of the denoiser; runs while the session's evaluation is in progress."""
        evaluation = self.session.evaluation
        named = self.session.signature.bind(args, kwargs)
        own = flat(named["img_ids"])[:, 0] == 0
        if evaluation is None or self.policy.renew == 1 or bool(own.all()):
            return forward(*args, **kwargs)
        state = evaluation.branch.beside.setdefault("references", _Kept())
        state.age -= 1
        if state.age < 0:
            state.age = self.policy.renew - 1
            output = self.partial.whole(forward, named, state.bank)
            _, state.template = split(output)
            return output
        latent = named["hidden_states"]
        rows = torch.ones(len(latent), dtype=torch.bool, device=latent.device)
        chosen = own.expand(len(latent), -1)
        velocity = self.partial.tokens(forward, named, state.bank, chosen, rows)
        evaluation.share = float(own.float().mean())
        assert state.template is not None
        return state.template.fill([velocity])
