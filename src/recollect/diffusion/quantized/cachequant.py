"""CacheQuant (arXiv:2503.01323): schedule and corrections made on the quantized model itself.

Cached and quantized separately, a denoiser suffers both errors, and each was measured without the
other. Here the groups of steps are planned on the quantized model's features; a line per channel
takes out what reuse gets wrong, and a second one, in the layers that read the cached feature, what
quantization does to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from recollect.diffusion.artefacts import Artefact, fingerprint
from recollect.diffusion.calibration import affine_correction, fit_line
from recollect.diffusion.engine.attach import accelerated
from recollect.diffusion.host.consumers import find_consumers
from recollect.diffusion.planner import groups
from recollect.diffusion.policy import DiffusionPolicy
from recollect.diffusion.predictors import Reuse
from recollect.diffusion.profiles import Profile, record_each
from recollect.diffusion.quantized.arithmetic import multiply
from recollect.diffusion.quantized.denoiser import CONSUMERS, Quantized, quantized
from recollect.diffusion.schedules import Interval, Mask
from recollect.diffusion.sites import Branch, Site
from recollect.errors import RecipeError


def calibrate(
    folder: str | Path,
    model: torch.nn.Module,
    run: Callable[[], Any],
    quantizer: Quantized,
    every: int = 3,
    site: Site | None = None,
) -> DiffusionPolicy:
    """Plan groups of steps, fit both corrections, and return the policy that uses them.

    Args:
        folder: where the corrections go.
        model: the denoiser, on its own.
        run: draws the calibration samples; called twice, with equal numbers of steps.
        quantizer: the integers, as `quantized.calibrate` makes them.
        every: steps per computed one, on average.
        site: what is reused: `Branch` of a U-Net by default; `Hidden` or `Modules` of a DiT. The
            outputs of modules feed no layer directly, so these get the first correction only.
    """
    site = site or Branch()
    profiles = record_each(model, run, site, (quantizer,))
    steps = len(next(iter(profiles.values())).steps)
    computed = groups(profiles.values(), every)
    gate = Mask(steps=tuple(i in computed for i in range(steps)))
    policy = DiffusionPolicy(site, gate, Reuse(), companions=(quantizer,))
    with accelerated(model, replace(policy, gate=Interval(every=1))):  # it goes by another name
        path = str(Path(folder) / "reuse.safetensors")
        axis = channel_axis(profiles)
        corrector = affine_correction(path, model, profiles, Reuse(), computed, axis)
    policy = replace(policy, corrector=corrector)
    path = str(Path(folder) / "consumers.safetensors")
    return correct_consumers(path, model, run, policy, profiles)


def channel_axis(profiles: Mapping[str, Profile]) -> int:
    """The axis of the channels: 1 of maps (B, C, H, W), -1 of tokens (B, S, C)."""
    (first, *_) = next(iter(profiles.values())).values
    return 1 if first[0].ndim == 4 else -1


def correct_consumers(
    path: str,
    model: torch.nn.Module,
    run: Callable[[], Any],
    policy: DiffusionPolicy,
    profiles: Mapping[str, Profile],
) -> DiffusionPolicy:
    """Fit what quantization does to a cached feature in the layers that read it.

    Of each such layer only the input channels that are cached count: for every reused step and
    output channel, a line from what their integers give to what their float weights would.

    Args:
        path: where the coefficients go.
        model: the denoiser, on its own.
        run: draws the calibration samples, under the policy.
        policy: a `Mask` with its first correction, and the quantizer.
        profiles: recorded values of the site, which tell how many channels are cached.

    Returns:
        The policy with the correction; unchanged where no layer reads the feature directly.

    Raises:
        RecipeError: a policy without a quantizer, or without a schedule made before.
    """
    if not isinstance(policy.gate, Mask):
        raise RecipeError("the correction of consumers needs a fixed schedule: gate=Mask(...)")
    quantizer = next((c for c in policy.companions if isinstance(c, Quantized)), None)
    if quantizer is None:
        raise RecipeError("the policy has no quantized denoiser: companions=(Quantized(...),)")
    width = next(iter(profiles.values())).values[0][0].shape[channel_axis(profiles)]
    lines: dict[str, torch.Tensor] = {}
    with accelerated(model, policy), ExitStack() as stack:
        denoiser = quantized(model)
        consumers = find_consumers(model, policy.site, width, tuple(denoiser.layers))
        if not consumers:
            return policy
        pairs: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

        def watch(name: str) -> Callable[..., None]:
            layer, weight = denoiser.layers[name], denoiser.float_weight(name)
            integers = layer.codes.integers()[:, :width]
            integers = integers * layer.codes.scale.view(-1, *[1] * (integers.ndim - 1))

            def note(module: torch.nn.Module, args: Any) -> None:
                step = denoiser.moment.skipped
                if step is None:
                    return
                x = args[0]
                codes, scale = layer.encode(x, denoiser.moment.time)
                axis = 1 if x.ndim == 4 else x.ndim - 1
                coded = multiply(layer.module, scale * codes.narrow(axis, 0, width), integers)
                exact = multiply(layer.module, x.float().narrow(axis, 0, width), weight[:, :width])
                pairs.setdefault(f"{name}/{step}", []).append((coded, exact))

            return note

        for name in consumers:
            hook = denoiser.layers[name].module.register_forward_pre_hook(watch(name))
            stack.callback(hook.remove)
        run()
        for key, found in pairs.items():
            coded, exact = (torch.cat(parts) for parts in zip(*found, strict=True))
            lines[key], _ = fit_line(coded, exact, 1 if coded.ndim == 4 else -1)
        settings = {"channels": dict.fromkeys(consumers, width), "steps": list(policy.gate.steps)}
        Artefact(CONSUMERS, fingerprint(model), settings, lines).save(path)
    others = tuple(c for c in policy.companions if c is not quantizer)
    return replace(policy, companions=(replace(quantizer, consumers=path), *others))
