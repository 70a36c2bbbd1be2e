"""Modules under a policy: each of them runs, or what it would give is predicted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from recollect.diffusion.engine.values import Value, split, spread, where_rows
from recollect.diffusion.host.call import take_rows
from recollect.diffusion.host.modules import Submodule

if TYPE_CHECKING:
    from recollect.diffusion.engine.evaluation import Evaluation


class ModuleWalk:
    """The way of one call through the modules of a site."""

    always = False
    """Whether every module is computed, whatever the gate says."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation, self.session = evaluation, evaluation.session
        self._calls: Counter[str] = Counter()

    def module(
        self, name: str, mute: bool, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """Run or leave out one module; see `Evaluation.module`."""
        evaluation, templates = self.evaluation, self.session.templates
        number = self.session.numbers[name]
        skip, flags = not (evaluation.every or self.always), evaluation.flags
        if flags is not None and skip:
            skip = not flags[number]
        part = self.session.modules[number]
        self._calls[name] += 1
        if self._calls[name] > 1:  # some blocks send both streams through one module
            name = f"{name} call {self._calls[name]}"
        if not skip:
            output = evaluation.blame.theirs(forward, args, kwargs)
            value, templates[name] = split(output)
            if mute:
                evaluation.branch.shapes[name] = [(t.shape, t.dtype, t.device) for t in value]
            else:
                evaluation.observe(name, value)
                self.computed(name, part, args, kwargs)
            return output
        if evaluation.some and flags is None:
            assert evaluation.compute is not None
            rows = evaluation.compute
            given, named = take_rows((), args, kwargs, rows)
            value, _ = split(evaluation.blame.theirs(forward, given, named))
            value = tuple(spread(tensor, rows) for tensor in value)
            if not mute:
                evaluation.observe(name, value, rows)
                value = where_rows(rows, value, evaluation.predict(name))
        elif mute:
            count = evaluation.rows
            value = tuple(
                torch.zeros((), dtype=dtype, device=device).expand(count, *shape[1:])
                for shape, dtype, device in evaluation.branch.shapes[name]
            )
        else:
            value = self.predicted(name, part, forward, args, kwargs)
        return templates[name].fill(value)

    def computed(self, name: str, part: Submodule, args: Any, kwargs: Any) -> None:
        """A module has run for all tokens."""

    def predicted(
        self, name: str, part: Submodule, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Value:
        """What a module gives that is left out."""
        return self.evaluation.predict(name)
