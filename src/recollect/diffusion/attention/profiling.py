"""ProfilingDiT (arXiv:2504.03140): which blocks attend to the background and can be cached.

A block's preference is the attention that foreground tokens receive over their share of the area:
1 for a block that looks everywhere alike, less for one that looks at the background.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from recollect.diffusion.artefacts import Artefact, fingerprint
from recollect.diffusion.attention.maps import AttentionMap, AttentionMaps
from recollect.diffusion.engine.attach import accelerated, denoisers
from recollect.diffusion.engine.branches import Branch
from recollect.diffusion.engine.clock import Step
from recollect.diffusion.engine.values import Value
from recollect.diffusion.policy import DiffusionPolicy
from recollect.diffusion.schedules import Interval, Mask
from recollect.diffusion.sites import BLOCK_PREFERENCES, Blocks, Span
from recollect.errors import HostError, RecipeError

_LISTED = (*range(6), 6, 18, 26, 32, 38, 42, 46, 48)


@dataclass(frozen=True)
class BlockPreferences:
    """How much each block looks at the foreground.

    Attributes:
        model: the denoiser that was profiled.
        scores: by block, in the order in which they run; 1 is no preference.
    """

    model: torch.nn.Module = field(repr=False)
    scores: tuple[float, ...]

    def background(self, cut: float = 1.0, count: int | None = None) -> tuple[int, ...]:
        """The blocks to cache: those that score below `cut`, or the `count` lowest ones."""
        order = sorted(range(len(self.scores)), key=self.scores.__getitem__)
        chosen = [block for block in order if self.scores[block] < cut]
        if count is not None:
            if not 0 <= count <= len(order):
                raise RecipeError(f"count is 0 to {len(order)}, not {count}")
            chosen = order[:count]
        return tuple(sorted(chosen))

    def save(self, path: str | Path, cut: float = 1.0, count: int | None = None) -> Blocks:
        """Write the scores and the blocks chosen by `background`; returns the site to use them."""
        tensors = {
            "scores": torch.tensor(self.scores, dtype=torch.float64),
            "chosen": torch.tensor(self.background(cut, count), dtype=torch.int64),
        }
        settings = {"cut": cut, "count": count}
        model = fingerprint(self.model)
        Artefact(BLOCK_PREFERENCES, model, settings, tensors).save(path)
        return Blocks(profile=str(path))


def profile_blocks(
    target: Any,
    run: Callable[[int], Any],
    batches: int = 1,
    foreground: torch.Tensor | Callable[[torch.Tensor], torch.Tensor] | None = None,
    rows: int | None = 256,
) -> BlockPreferences:
    """Find what each block looks at, from uncached samples.

    Args:
        target: a pipeline with one denoiser, or a denoiser.
        run: draws batch number `n`.
        batches: how many are drawn.
        foreground: which visual tokens are foreground, (B, tokens) or (1, tokens) bool; or what
            tells them from the last latent of a batch. By default tokens that move: see `moving`.
        rows: queries that are looked at on every call; None for all.

    Raises:
        HostError: blocks or attention cannot be recognized, or the mask does not fit.
    """
    models = list(denoisers(target).values())
    if len(models) > 1:
        raise HostError(f"{type(target).__name__} has {len(models)} denoisers; pass one of them")
    (model,) = models
    maps = AttentionMaps(rows=rows, keys="visual", received=True)
    policy = DiffusionPolicy(Span(), Interval(every=1), companions=(maps,))
    last: dict[str, torch.Tensor] = {}

    def hear(branch: Branch, step: Step, site: str, value: Value) -> None:
        assert branch.latent is not None
        last["latent"] = branch.latent

    totals: dict[str, list[torch.Tensor]] = {}
    with accelerated(model, policy) as acceleration:
        (session,) = acceleration.sessions.values()
        session.taps.append(hear)
        for number in range(batches):
            maps.clear()
            run(number)
            mask = _mask(foreground, model, last.get("latent"))
            for name, _, one in maps.branches(model):
                totals.setdefault(name, []).append(preference(one, mask).mean())
        order = [block.name for block in session.order]
    maps.of(model)  # says so where nothing was heard
    means = {name: torch.stack(each).mean() for name, each in totals.items()}
    scores = []
    for block in order:
        own = [float(mean) for name, mean in means.items() if name.startswith(f"{block}.")]
        if not own:
            raise HostError(f"{block} has no attention between visual tokens")
        scores.append(sum(own) / len(own))
    return BlockPreferences(model, tuple(scores))


def preference(received: AttentionMap, foreground: torch.Tensor) -> torch.Tensor:
    """Attention that foreground tokens receive over their share of the area: (B,).

    Args:
        received: what each visual token received, (B, tokens).
        foreground: (B or 1, tokens) bool. The halves of batched guidance share theirs.
    """
    mass = received.mean
    if foreground.shape[1] != mass.shape[1]:
        raise HostError(
            f"the foreground has {foreground.shape[1]} tokens and the model {mass.shape[1]}; give "
            "one entry for each token"
        )
    if len(mass) % len(foreground):
        raise HostError(f"the foreground has {len(foreground)} samples and the batch {len(mass)}")
    area = foreground.repeat(len(mass) // len(foreground), 1).to(mass)
    share = (mass * area).sum(1) / mass.sum(1)
    return share / area.mean(1).clamp_min(1e-12)


def moving(latent: torch.Tensor, patch: tuple[int, int, int] = (1, 1, 1)) -> torch.Tensor:
    """Tokens that differ from what their place shows most of the time: (B, tokens) bool.

    Stands for the segmenter of the paper: distance to the median over frames, split in two by
    Otsu's threshold, sample by sample.

    Args:
        latent: (B, C, F, H, W), at the end of a trajectory.
        patch: frames, rows and columns of a token.
    """
    latent = latent.float()
    away = (latent - latent.median(2, keepdim=True).values).square().mean(1, keepdim=True)
    tokens = torch.nn.functional.avg_pool3d(away, patch).flatten(1)
    return torch.stack([row > _otsu(row) for row in tokens])


def listed_schedule() -> Mask:
    """The computed steps of the reference's list for 50 steps, as an alternative to every sixth."""
    return Mask(steps=tuple(step in _LISTED for step in range(50)))


def _mask(foreground: Any, model: torch.nn.Module, latent: torch.Tensor | None) -> torch.Tensor:
    if isinstance(foreground, torch.Tensor):
        return foreground.bool()
    if latent is None:
        raise HostError("nothing was drawn: `run` must call the pipeline or denoiser")
    if foreground is not None:
        return foreground(latent).bool()
    if latent.ndim != 5:
        raise HostError(
            f"{type(model).__name__} has no latent of (B, C, F, H, W) to see motion in; give the "
            "foreground as a mask (B, tokens)"
        )
    config = getattr(model, "config", {})
    patch = config.get("patch_size", 1)
    if isinstance(patch, int):
        patch = (config.get("patch_size_t") or 1, patch, patch)
    own = config.get("out_channels") or latent.shape[1]  # further ones are conditions
    return moving(latent[:, :own], tuple(patch))


def _otsu(values: torch.Tensor) -> torch.Tensor:
    """The threshold that splits values (N,) into the two groups that differ most."""
    ordered = values.sort().values.double()
    count = torch.arange(1, len(ordered), dtype=torch.float64, device=values.device)
    low = ordered.cumsum(0)[:-1]
    rest = len(ordered) - count
    between = count * rest * (low / count - (ordered.sum() - low) / rest).square()
    return ordered[between.argmax()].to(values.dtype)
