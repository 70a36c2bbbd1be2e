"""Hooks of the quantized denoiser: one tells the time, the others multiply integers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from recollect.diffusion.engine.clock import scalar
from recollect.diffusion.host.hook import Hook

if TYPE_CHECKING:
    from recollect.diffusion.quantized.denoiser import Layer, Moment

NAME = "recollect-quantized"


class MomentHook(Hook):
    """Notes the timestep of every call, for the ranges of activations."""

    def __init__(self, moment: Moment) -> None:
        super().__init__()
        self.moment = moment

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        signature = self.moment.session.signature
        self.moment.time = scalar(signature.bind(args, kwargs)[signature.time])
        return args, kwargs


class LayerHook(Hook):
    """Runs a layer on integers instead of its float weight."""

    def __init__(self, layer: Layer, moment: Moment) -> None:
        super().__init__()
        self.layer, self.moment = layer, moment

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs["input"]
        return self.layer.run(x, self.moment.time, self.moment.skipped)
