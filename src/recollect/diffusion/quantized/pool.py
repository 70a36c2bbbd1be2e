"""Recorded calls of a denoiser: what a quantizer is calibrated on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from recollect.diffusion.engine.clock import scalar
from recollect.diffusion.host.call import Call, Signature, take_rows
from recollect.errors import RecipeError


@dataclass(frozen=True)
class Pool:
    """Calls of one denoiser, in the order in which they were made.

    Attributes:
        signature: how the calls are read.
        calls: positional and named arguments of each.
    """

    signature: Signature
    calls: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]

    def read(self) -> list[Call]:
        """The calls with their latents and times."""
        return [Call.read(self.signature, args, kwargs) for args, kwargs in self.calls]

    @property
    def rows(self) -> int:
        """Samples of all calls."""
        return sum(call.rows for call in self.read())

    def samples(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (N, …) flattened to (N, D), and times (N,), of all samples of all calls."""
        calls = self.read()
        latents = torch.cat([call.latent.flatten(1).float().cpu() for call in calls])
        times = [torch.full((call.rows,), scalar(call.time)) for call in calls]
        return latents, torch.cat(times)

    def only(self, chosen: torch.Tensor) -> Pool:
        """The calls with just these samples.

        Args:
            chosen: numbers of samples among all of `samples`, in any order.
        """
        marked = torch.zeros(self.rows, dtype=torch.bool)
        marked[chosen] = True
        kept, place = [], 0
        for call in self.read():
            rows = marked[place : place + call.rows]
            place += call.rows
            if bool(rows.all()):
                kept.append((call.args, call.kwargs))
            elif bool(rows.any()):
                kept.append(take_rows(self.signature.names, call.args, call.kwargs, rows))
        return Pool(self.signature, tuple(kept))


def record_calls(model: torch.nn.Module, run: Callable[[], Any]) -> Pool:
    """Every call of the model while `run` draws something.

    Raises RecipeError when it makes none.
    """
    signature, calls = Signature.of(model, model.forward), []

    def note(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        calls.append(pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs)))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        run()
    finally:
        handle.remove()
    if not calls:
        raise RecipeError("nothing was drawn: `run` must call the denoiser")
    return Pool(signature, tuple(calls))
