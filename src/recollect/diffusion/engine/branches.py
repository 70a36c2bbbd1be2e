"""Which branch of which request a call belongs to, and what is remembered of it.

A branch is told by the pipeline's cache context where there is one, else by the content of its
conditioning. Never by counting calls: one skipped or interrupted call would swap branches for good.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import torch

from recollect.diffusion.engine.clock import Clock, Step, scalar
from recollect.diffusion.engine.values import Template, Value, mean_abs
from recollect.diffusion.gates import Ledger
from recollect.diffusion.host.call import Call
from recollect.diffusion.predictors import History

MOST = 16
"""Branches remembered at once; the one unused for longest goes first."""

_JUMP = 1.0  # relative change of a latent between steps beyond which it is another image
_FINE = 0.02  # share of the time left that a step of a long schedule takes at its beginning


@dataclass(frozen=True)
class Record:
    """What happened at one step of one branch.

    Attributes:
        branch: its name.
        index, time: the step.
        computed: share of the samples that were computed.
        drift: what the gate measured, the largest of the samples; None where it measures nothing.
    """

    branch: str
    index: int
    time: float
    computed: float
    drift: float | None


@dataclass
class Branch:
    """State of one branch of guidance of one request. Nothing is shared between branches."""

    name: str
    conditions: Value = ()
    clock: Clock = field(default_factory=Clock)
    ledger: Ledger | None = None
    histories: dict[str, History] = field(default_factory=dict)
    template: Template | None = None
    shapes: dict[str, Any] = field(default_factory=dict)  # of outputs that nobody reads
    checked: bool = False  # against the limit of the policy
    latent: torch.Tensor | None = None
    paired: bool = False  # a batch of guidance: the two halves are the same images
    failed: bool = False  # uncached until the next trajectory
    active: Any = None  # spans left out at the last step
    beside: dict[str, Any] = field(default_factory=dict)  # what companions remember, by name
    expected: torch.Tensor | None = None  # the next latent, where a companion moves it far

    def begin(self, call: Call, remaining: int | None) -> Step:
        """Note a call; everything is forgotten where it begins a trajectory."""
        before = self.clock.step
        step, fresh = self.clock.tick(call.time, remaining)
        # DDPM draws its latent nearly anew in the first of its hundred steps.
        fine = before is not None and abs(step.time - before.time) <= _FINE * before.time
        if not fresh and not fine and self._unlike(call.latent):
            self.clock.restart()
            step, fresh = self.clock.tick(call.time, remaining)
        if fresh:
            self.clear()
            self.failed = False
            half = call.rows // 2
            self.paired = call.rows % 2 == 0 and torch.equal(call.latent[:half], call.latent[half:])
        self.ledger = self.ledger or Ledger.of(call.rows)
        self.latent, self.expected = call.latent, None
        return step

    def clear(self) -> None:
        """Free everything that was remembered of the trajectory."""
        self.ledger, self.template, self.latent, self.active = None, None, None, None
        self.histories, self.shapes, self.checked = {}, {}, False
        self.beside, self.expected = {}, None

    def fail(self) -> None:
        """Free the state and leave the rest of the trajectory uncached."""
        self.clear()
        self.failed = True

    @property
    def nbytes(self) -> int:
        """Bytes of the predictors' and the companions' state."""
        remembered = (*self.histories.values(), *self.beside.values())
        return sum(getattr(one, "nbytes", 0) for one in remembered)

    def _unlike(self, latent: torch.Tensor) -> bool:
        """Whether this latent cannot be the last one, one step later."""
        before = self.latent if self.expected is None else self.expected
        if before is None:
            return False
        if (before.shape, before.dtype, before.device) != (
            latent.shape,
            latent.dtype,
            latent.device,
        ):
            return True
        moved = mean_abs(latent - before)
        return bool((moved > _JUMP * mean_abs(before).clamp_min(1e-6)).any())


class Branches:
    """All branches of one denoiser."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Any, ...], Branch] = OrderedDict()
        self._lock = threading.Lock()

    def __iter__(self) -> Any:
        return iter(list(self._known.values()))

    def find(self, call: Call, context: str | None, request: str) -> Branch:
        """The branch of this call.

        Args:
            call: the call.
            context: name the pipeline gave the branch, if any.
            request: name of the request; calls of other requests never share a branch.
        """
        with self._lock:
            home = (threading.get_ident(), request)
            if context is not None:
                return self._named((*home, context), context)
            number = 0
            for key, branch in reversed(self._known.items()):
                if key[:2] != home or not isinstance(key[2], int):
                    continue
                number = max(number, key[2] + 1)
                if same(branch.conditions, call.conditions) and not _twin(branch, call):
                    self._known.move_to_end(key)
                    return branch
            branch = self._named((*home, number), f"branch {number}")
            branch.conditions = call.conditions
            return branch

    def clear(self) -> None:
        """Forget all branches."""
        with self._lock:
            self._known.clear()

    def _named(self, key: tuple[Any, ...], name: str) -> Branch:
        if key not in self._known:
            self._known[key] = Branch(name)
            while len(self._known) > MOST:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]


def same(one: Value, other: Value) -> bool:
    """Whether two values are equal: the same tensors, or tensors with the same content."""
    if len(one) != len(other):
        return False
    pairs = list(zip(one, other, strict=True))
    if all(a is b for a, b in pairs):
        return True
    if any((a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device) for a, b in pairs):
        return False
    return all(a is b or torch.equal(a, b) for a, b in pairs)


def _twin(branch: Branch, call: Call) -> bool:
    """Whether the branch has just been called with the very same input: then this is another."""
    step, latent = branch.clock.step, branch.latent
    if step is None or latent is None or latent.shape != call.latent.shape:
        return False
    return scalar(call.time) == step.time and torch.equal(latent, call.latent)
