"""Bytes of state that a policy will hold, told before anything is computed.

A copy of the model without weights is run on shapes alone. Models whose shapes depend on their
data cannot be foreseen like that; they are run once.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from recollect.diffusion.engine.branches import Branch
from recollect.diffusion.engine.clock import Step
from recollect.diffusion.engine.evaluation import OUTPUT, Evaluation
from recollect.diffusion.engine.faults import Again
from recollect.diffusion.engine.installation import install
from recollect.diffusion.engine.session import Session
from recollect.diffusion.engine.values import Value, nbytes, split
from recollect.diffusion.gates import Ledger
from recollect.diffusion.host.call import Call
from recollect.diffusion.host.hooks import Installed
from recollect.diffusion.policy import DiffusionPolicy
from recollect.errors import RecollectError


def foreseen(
    model: torch.nn.Module, policy: DiffusionPolicy, args: Any, kwargs: Mapping[str, Any]
) -> dict[str, int] | None:
    """Bytes of one value by site, from the arguments of a call; None where only a run can tell."""
    if not hasattr(type(model), "from_config"):
        return None
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        try:
            copy = _weightless(model)
            given = pytree.tree_map_only(
                torch.Tensor, lambda t: torch.empty(t.shape, dtype=t.dtype), (args, dict(kwargs))
            )
            bare = replace(policy, companions=())  # theirs is not a branch's state
            session = install(copy, bare, Installed())
            call = Call.read(session.signature, *given)
            try:
                return _Measuring(session, call).measure()
            except Again:
                return _Measuring(session, call).measure()
        except RecollectError:
            raise
        except Exception:  # shapes that depend on data fail in as many ways as there are models
            return None


def _weightless(model: Any) -> torch.nn.Module:
    """A model of the same class, configuration and dtypes; under a fake mode it takes no memory.

    The model itself would not do: some keep tables that they make on a first call.
    """
    copy = type(model).from_config(dict(model.config)).eval()
    dtypes = {name: weight.dtype for name, weight in model.named_parameters()}
    for name, weight in list(copy.named_parameters()):
        if weight.dtype != dtypes.get(name, weight.dtype):
            home, _, last = name.rpartition(".")
            weight = torch.nn.Parameter(weight.to(dtypes[name]), requires_grad=False)
            copy.get_submodule(home).register_parameter(last, weight)
    return copy


class _Measuring(Evaluation):
    """An evaluation that computes everything, and notes sizes instead of values."""

    def __init__(self, session: Session, call: Call) -> None:
        branch = Branch("", ledger=Ledger.of(call.rows))
        plain = functools.partial(type(session.model).forward, session.model)  # without our hook
        super().__init__(session, branch, call, Step(0, 0.0, 0.0), plain)
        self.sizes: dict[str, int] = {}

    def probe(self, seen: torch.Tensor) -> None:
        """Nothing is judged."""

    def observe(self, site: str, value: Value, rows: torch.Tensor | None = None) -> None:
        """Note the bytes of a value."""
        self.sizes[site] = nbytes(value)

    def measure(self) -> dict[str, int]:
        """Bytes of one value by site."""
        output = self._forward()
        self.blocks.finish()
        if self.session.whole:
            self.sizes[OUTPUT] = nbytes(split(output)[0])
        return self.sizes
