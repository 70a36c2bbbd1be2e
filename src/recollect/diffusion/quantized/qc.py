"""Q&C (arXiv:2503.02508): calibrate a quantized denoiser that will skip steps, restore variance.

Under caching neighbouring steps look alike, so a calibration set drawn at random is redundant: TAP
clusters the candidates and draws from every cluster. What a reused quantized feature lost in
variance, a factor per channel gives back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from recollect.diffusion.calibration import forecasts
from recollect.diffusion.correctors import Affine, save_affine
from recollect.diffusion.predictors import Predictor
from recollect.diffusion.profiles import Profile
from recollect.errors import RecipeError

Kind = Literal["plain", "relative", "deviation"]
KINDS: tuple[Kind, ...] = ("plain", "relative", "deviation")
_LEAST = 1e-3  # true values nearer to 0 do not count as smaller in relative errors


def affinity(latents: torch.Tensor, times: torch.Tensor, alpha: float = 0.5) -> torch.Tensor:
    """How alike samples are, (N, N) in [0, 1]: by content and by time.

    ``alpha * cos(x_i, x_j) + (1 - alpha) * exp(-|t_i - t_j|)``; negative cosines count as 0, and
    time is counted in the typical distance of neighbouring timesteps.

    Args:
        latents: (N, D).
        times: (N,).
        alpha: weight of the content.
    """
    unit = torch.nn.functional.normalize(latents.double(), dim=1)
    known = times.double().unique()
    spacing = float(known.diff().median()) if len(known) > 1 else 1.0
    apart = (times.double()[:, None] - times.double()[None]).abs() / spacing
    return alpha * (unit @ unit.T).clamp_min(0) + (1 - alpha) * torch.exp(-apart)


def spectral_clusters(alike: torch.Tensor, count: int, seed: int = 0) -> torch.Tensor:
    """Clusters (N,) of samples by the leading eigenvectors of ``D^-1/2 A D^-1/2``."""
    degrees = alike.sum(1).clamp_min(1e-12).rsqrt()
    _, vectors = torch.linalg.eigh(degrees[:, None] * alike * degrees[None])
    points = torch.nn.functional.normalize(vectors[:, -count:], dim=1)
    return _k_means(points, count, torch.Generator().manual_seed(seed))


def select(
    latents: torch.Tensor,
    times: torch.Tensor,
    count: int,
    clusters: int = 8,
    subsamples: int = 4,
    alpha: float = 0.5,
    seed: int = 0,
) -> torch.Tensor:
    """Temporal-aware parallel clustering: numbers of up to `count` samples to calibrate on.

    Random subsamples of the pool are clustered one by one, and an equal share is drawn from every
    cluster of every subsample. With one cluster this is uniform sampling.

    Args:
        latents, times: the candidates, (N, D) and (N,), as `Pool.samples` gives them.
        count: samples wanted.
        clusters, subsamples: clusters of a subsample, and subsamples.
        alpha: weight of content against time.
        seed: of everything that is drawn.

    Returns:
        Rising numbers, each once.

    Raises:
        RecipeError: impossible numbers.
    """
    total = len(latents)
    if not 1 <= count <= total or min(clusters, subsamples) < 1 or not 0 <= alpha <= 1:
        raise RecipeError(
            f"count is between 1 and {total}, clusters and subsamples are 1 or more, alpha is "
            "between 0 and 1"
        )
    generator = torch.Generator().manual_seed(seed)
    size = min(total, max(2 * count // subsamples, clusters))
    chosen = torch.zeros(total, dtype=torch.bool)
    for number in range(subsamples):
        some = torch.randperm(total, generator=generator)[:size]
        alike = affinity(latents[some], times[some], alpha)
        groups = spectral_clusters(alike, min(clusters, size), seed + number)
        # One after another from every cluster, so that small ones are used up first.
        order = torch.randperm(size, generator=generator)
        ranks = torch.zeros(size, dtype=torch.int64)
        for group in groups.unique():
            members = order[groups[order] == group]
            ranks[members] = torch.arange(len(members))
        wanted = (count * (number + 1)) // subsamples
        for place in torch.argsort(ranks * size + torch.argsort(order)):
            if int(chosen.sum()) >= wanted:
                break
            chosen[some[place]] = True
    return chosen.nonzero()[:, 0]


def variance_factor(
    guess: torch.Tensor, truth: torch.Tensor, axis: int, kind: Kind = "plain"
) -> torch.Tensor:
    """The line (2, C) that stretches a guess about its mean: scale K and shift mean * (1 - K).

    Args:
        guess, truth: cached and quantized values, and those wanted.
        axis: of the channels.
        kind: `plain` least squares; `relative` adds squared relative errors, which is what the
            paper's formula means (as printed it holds for mean 0 only); `deviation` is the ratio of
            standard deviations, which restores the variance whatever the errors are.
    """
    if kind not in KINDS:
        raise RecipeError(f"kind is one of {', '.join(KINDS)}, not '{kind}'")
    x = guess.double().movedim(axis, 0).flatten(1)
    y = truth.double().movedim(axis, 0).flatten(1)
    mean = x.mean(1, keepdim=True)
    dx, dy = x - mean, y - mean
    if kind == "deviation":
        top, bottom = y.std(1, correction=0), x.std(1, correction=0)
    else:
        weight = torch.ones_like(y)
        if kind == "relative":
            weight = weight + y.abs().clamp_min(_LEAST).square().reciprocal()
        top, bottom = (weight * dx * dy).sum(1), (weight * dx * dx).sum(1)
    factor = torch.where(bottom > 0, top / bottom.clamp_min(1e-30), torch.ones_like(bottom))
    return torch.stack([factor, mean[:, 0] * (1 - factor)]).float()


def variance_correction(
    path: str,
    model: torch.nn.Module,
    guesses: Mapping[str, Profile],
    truths: Mapping[str, Profile],
    predictor: Predictor,
    computed: tuple[int, ...],
    axis: int = -1,
    kind: Kind = "plain",
) -> Affine:
    """Fit a factor per channel and skipped step; write it and return its reader.

    Args:
        path: where the coefficients go.
        model: the quantized denoiser, with its quantizer attached.
        guesses: recorded values of the quantized model, by site.
        truths: those of the float model, of the same samples.
        predictor: the one that will run under the schedule.
        computed: steps that are computed.
        axis: the axis of the channels.
        kind: how a factor is fitted, see `variance_factor`.
    """
    lines: dict[str, torch.Tensor] = {}
    count = 0
    for site, profile in guesses.items():
        count = len(profile.steps)
        for step, guess, _ in forecasts(profile, predictor, computed):
            truth = truths[site].values[step.index]
            for place, (g, t) in enumerate(zip(guess, truth, strict=True)):
                lines[f"{site}/{place}/{step.index}"] = variance_factor(g, t, axis, kind)
    return save_affine(path, model, lines, count, axis)


def _k_means(points: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Clusters (N,) by Lloyd's algorithm, from centres that lie far apart (k-means++)."""
    centres = points[torch.randint(len(points), (1,), generator=generator)]
    for _ in range(count - 1):
        nearest = torch.cdist(points, centres).amin(1).square() + 1e-12
        place = torch.multinomial(nearest, 1, generator=generator)
        centres = torch.cat([centres, points[place]])
    member = torch.zeros(len(points), dtype=torch.int64)
    for _ in range(50):
        found = torch.cdist(points, centres).argmin(1)
        if torch.equal(found, member):
            break
        member = found
        for number in range(count):
            if bool((member == number).any()):
                centres[number] = points[member == number].mean(0)
    return member
