"""Temporal features of a quantized denoiser: rebuilt, or kept from the float model (TFMQ-DM).

A quantized time embedding is wrong in the same way at every call with its timestep, which shifts
the whole trajectory. Two remedies: rebuild what the quantized module returns, by a line per
channel fitted to the float module's outputs (TIAR), or keep the float outputs as 8-bit rows. Each
feature takes the one with the lower error (arXiv:2407.19547).
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch.utils import _pytree as pytree

from recollect.core.codecs.quantize import dequantize_tokens, quantize_tokens
from recollect.diffusion.calibration import fit_line
from recollect.diffusion.dataflow import outermost, watch
from recollect.diffusion.engine.attach import accelerated
from recollect.diffusion.engine.clock import scalar
from recollect.diffusion.policy import DiffusionPolicy
from recollect.diffusion.quantized.denoiser import Quantized, quantized
from recollect.diffusion.quantized.pool import Pool
from recollect.diffusion.schedules import Interval
from recollect.diffusion.tables import Feature, TimeTable, table_of
from recollect.errors import HostError

_Heard = list[list[tuple[float, Any, Any]]]
"""(time, arguments, output) of every time a float module ran, by call of the denoiser."""


@torch.no_grad()
def calibrate_features(
    path: str, model: torch.nn.Module, pool: Pool, quantizer: Quantized
) -> TimeTable:
    """Decide for every temporal feature how it is had, and write rows and lines.

    Args:
        path: where to.
        model: the denoiser, on its own.
        pool: calls that visit every timestep of the sampler (and every class).
        quantizer: its integers.

    Returns:
        The table to use beside the quantizer: ``companions=(quantizer, table)``. Times it does not
        know are computed by the quantized modules.

    Raises:
        HostError: a model without temporal features.
    """
    heard = _listen(model, pool)
    if not heard:
        raise HostError(f"nothing in {type(model).__name__} depends on time alone")
    table = TimeTable(exact=False, codec="int8")
    alone = DiffusionPolicy(gate=Interval(every=1), companions=(quantizer,))
    with accelerated(model, alone):
        judged = {name: _judge(model, name, one) for name, one in heard.items()}
    kept = {name for name, (errors, _) in judged.items() if errors["kept"] < errors["rebuilt"]}
    with accelerated(model, DiffusionPolicy(gate=Interval(every=1), companions=(quantizer, table))):
        first_args, first_kwargs = pool.calls[0]
        model(*first_args, **first_kwargs)  # finds the features
        taught = table_of(model)
        taught.clear()
        taught.lines = {name: line for name, (_, line) in judged.items() if name not in kept}
        for number, (args, kwargs) in enumerate(pool.calls):
            taught.teacher = _Teacher(heard, kept, number)
            model(*args, **kwargs)
        taught.save(path, {name: errors for name, (errors, _) in judged.items()})
    return TimeTable(exact=False, codec="int8", features=path)


def _listen(model: torch.nn.Module, pool: Pool) -> dict[str, _Heard]:
    """Arguments and outputs of the float model's temporal features."""
    args, kwargs = pool.calls[0]
    seen = watch(model, pool.signature, model.forward, args, kwargs)
    heard: dict[str, _Heard] = {name: [] for name, _ in outermost(model, seen)}
    now = 0.0

    def note(name: str) -> Any:
        def hook(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            heard[name][-1].append((now, (args, kwargs), output))

        return hook

    with ExitStack() as stack:
        for name in heard:
            module = model.get_submodule(name)
            stack.callback(module.register_forward_hook(note(name), with_kwargs=True).remove)
        for call in pool.read():
            now = scalar(call.time)
            for one in heard.values():
                one.append([])
            model(*call.args, **call.kwargs)
    return heard


def _judge(
    model: torch.nn.Module, name: str, heard: _Heard
) -> tuple[dict[str, float], torch.Tensor]:
    """Mean squared errors of both ways, and the line (2, C) that rebuilds the feature."""
    module, moment = model.get_submodule(name), quantized(model).moment
    own, true = [], []
    for time, (args, kwargs), output in (one for call in heard for one in call):
        moment.time = time
        coded = pytree.tree_leaves(module(*args, **kwargs))
        leaves = pytree.tree_leaves(output)
        own += [t.float().flatten(0, -2) for t in coded]
        true += [t.float().flatten(0, -2) for t in leaves]
    if len({t.shape[-1] for t in true}) != 1:  # outputs of several widths: no line fits all
        line = torch.tensor([[1.0], [0.0]])
        pairs = list(zip(own, true, strict=True))
    else:
        pairs = [(torch.cat(own), torch.cat(true))]
        line, _ = fit_line(*pairs[0], axis=1)
    rebuilt = sum(float((g * line[0] + line[1] - t).square().sum()) for g, t in pairs)
    rows = [(quantize_tokens(t, 8, t.shape[-1]), t) for _, t in pairs]
    kept = sum(
        float((dequantize_tokens(*q, group=t.shape[-1]) - t).square().sum()) for q, t in rows
    )
    count = sum(t.numel() for _, t in pairs)
    return {"rebuilt": rebuilt / count, "kept": kept / count}, line


class _Teacher:
    """Says what kept features return in one call of the denoiser: the float outputs."""

    def __init__(self, heard: dict[str, _Heard], kept: set[str], number: int) -> None:
        self.heard, self.kept, self.number = heard, kept, number
        self.asked: dict[str, int] = {}

    def __call__(self, feature: Feature) -> Any:
        place = self.asked.get(feature.name, 0)
        self.asked[feature.name] = place + 1
        if feature.name not in self.kept:
            return None
        return self.heard[feature.name][self.number][place][2]
