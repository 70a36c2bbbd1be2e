"""Make the integers of a quantized denoiser: codes of its weights, ranges of its activations."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch

from recollect.diffusion.artefacts import Artefact, fingerprint
from recollect.diffusion.dataflow import watch
from recollect.diffusion.engine.clock import scalar
from recollect.diffusion.quantized.arithmetic import WEIGHT_BITS, encode_weight
from recollect.diffusion.quantized.denoiser import QUANTIZED, Quantized
from recollect.diffusion.quantized.pool import Pool
from recollect.errors import HostError, RecipeError

EDGE_BITS = 8


@torch.no_grad()
def calibrate(
    path: str,
    model: torch.nn.Module,
    pool: Pool,
    weight_bits: int = 8,
    activation_bits: int = 8,
    per_step: bool = True,
) -> Quantized:
    """Quantize a denoiser and write the result; the model itself is left as it is.

    Every linear and 2-d convolutional layer that runs is taken. The first that sees the latent and
    the last keep 8 bits, as is usual. Activations take the smallest and largest value seen at each
    timestep (the finite-set calibration of TFMQ-DM): a sampler visits only so many.

    Args:
        path: where the codes go.
        model: the denoiser, on its own (no recipe attached).
        pool: calls to calibrate on.
        weight_bits: 4 or 8.
        activation_bits: 2 to 8.
        per_step: ranges for each timestep; otherwise one for all, as plain quantizers have.

    Returns:
        The companion that runs the model on these integers.

    Raises:
        RecipeError: bits that are not supported.
        HostError: a model without such layers.
    """
    if weight_bits not in WEIGHT_BITS:
        raise RecipeError(f"weight_bits is 4 or 8, not {weight_bits}")
    if not 2 <= activation_bits <= 8:
        raise RecipeError(f"activation_bits is 2 to 8, not {activation_bits}")
    args, kwargs = pool.calls[0]
    seen = watch(model, pool.signature, model.forward, args, kwargs)
    modules: dict[str, Any] = {name: model.get_submodule(name) for name in seen.layers}
    layers = {name: layer for name, layer in modules.items() if _supported(layer)}
    bound = [name for name in layers if name not in seen.free]
    if not bound:
        raise HostError(f"{type(model).__name__} has no linear or convolutional layers to quantize")
    edges = {bound[0], bound[-1]}
    times, lows, highs = _ranges(model, pool, layers, per_step)
    tensors = {"times": times}
    bits: dict[str, list[int]] = {}
    for name, layer in layers.items():
        edge = name in edges
        bits[name] = [EDGE_BITS if edge else weight_bits, EDGE_BITS if edge else activation_bits]
        codes = encode_weight(layer.weight, bits[name][0])
        tensors |= {f"{name}.codes": codes.codes, f"{name}.scale": codes.scale}
        tensors |= {f"{name}.low": lows[name], f"{name}.high": highs[name]}
    shapes = {name: list(layer.weight.shape) for name, layer in layers.items()}
    settings = {"bits": bits, "shapes": shapes, "per_step": per_step}
    Artefact(QUANTIZED, fingerprint(model), settings, tensors).save(path)
    return Quantized(path)


def _supported(layer: Any) -> bool:
    plain = isinstance(layer, torch.nn.Conv2d) and layer.padding_mode == "zeros"
    return plain or isinstance(layer, torch.nn.Linear)


def _ranges(
    model: torch.nn.Module, pool: Pool, layers: dict[str, Any], per_step: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Times (T,) in rising order, and the smallest and largest input (T,) of every layer."""
    found: dict[str, dict[float, tuple[float, float]]] = {name: {} for name in layers}
    now = 0.0

    def hook(name: str) -> Any:
        def note(module: torch.nn.Module, args: Any) -> None:
            low, high = (float(v) for v in (args[0].min(), args[0].max()))
            before = found[name].get(now, (low, high))
            found[name][now] = (min(low, before[0]), max(high, before[1]))

        return note

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(hook(name)).remove)
        for call in pool.read():
            now = scalar(call.time) if per_step else 0.0
            model(*call.args, **call.kwargs)
    times = sorted({time for seen in found.values() for time in seen})
    if any(len(seen) != len(times) for seen in found.values()):
        raise HostError("some layers do not run at every timestep; calibrate on full trajectories")
    lows = {n: torch.tensor([seen[t][0] for t in times]) for n, seen in found.items()}
    highs = {n: torch.tensor([seen[t][1] for t in times]) for n, seen in found.items()}
    return torch.tensor(times, dtype=torch.float64), lows, highs
