"""Block-wise Adaptive Caching for diffusion policies (BAC, arXiv:2506.13456).

Each attention and feed-forward module gets the update steps under which its features stay nearest
to what is kept; then feed-forward modules upstream of sensitive ones are updated along with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from recollect.diffusion.host.blocks import find_blocks
from recollect.diffusion.host.modules import find_submodules
from recollect.diffusion.masks import Conditions, save_mask
from recollect.diffusion.policy import DiffusionPolicy
from recollect.diffusion.predictors import Reuse
from recollect.diffusion.profiles import Profile
from recollect.diffusion.repeats import Repeats
from recollect.diffusion.schedules import ModuleMask
from recollect.diffusion.sites import Modules
from recollect.errors import RecipeError

Metric = Literal["cosine", "l1", "mse"]
Per = Literal["module", "model"]


def similarity(features: Sequence[torch.Tensor], metric: Metric = "cosine") -> torch.Tensor:
    """How alike the features of any two steps are: (K, K), larger for more alike.

    Args:
        features: for each of K steps the features (N, …) of N samples.
        metric: `cosine` of each sample, averaged, or the negative mean distance.
    """
    stacked = torch.stack([step.flatten(1) for step in features]).double()  # (K, N, D)
    if metric == "cosine":
        unit = stacked / stacked.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return torch.einsum("tnd,und->tu", unit, unit) / stacked.shape[1]
    flat = stacked.flatten(1)
    if metric == "l1":
        return -torch.cdist(flat, flat, p=1) / flat.shape[1]
    if metric == "mse":
        return -torch.cdist(flat, flat).square() / flat.shape[1]
    raise RecipeError(f"metric is cosine, l1 or mse, not '{metric}'")


def consecutive(alike: torch.Tensor) -> torch.Tensor:
    """The similarity that the paper's text uses: of every step with the one before it.

    Whatever is kept, a step then counts the same; the best updates are those least like the step
    before. `alike` is what `similarity` gives.
    """
    before = torch.cat([alike.diagonal()[:1], alike.diagonal(offset=-1)])
    return before[:, None].expand_as(alike)


def schedule(alike: torch.Tensor, updates: int, last: bool = False) -> tuple[int, ...]:
    """The update steps under which what is kept is most like what it stands for.

    A dynamic programme over ``D[m][j] = max_i D[m-1][i] + phi(i, j)``, where phi(i, j) sums the
    similarity of the steps between updates i and j with step i.

    Args:
        alike: (K, K), `alike[t, i]` is the similarity of step t with step i.
        updates: number of update steps; step 0 is the first.
        last: the last step is one of them, if there are two or more.
    """
    steps = len(alike)
    if not 1 <= updates <= steps:
        raise RecipeError(f"the updates are between 1 and {steps}, not {updates}")
    if last and updates > 1:
        return (*schedule(alike[:-1, :-1], updates - 1), steps - 1)
    # gain[i, j]: similarity with step i of all steps from i + 1 to before j
    sums = torch.cat([torch.zeros(1, steps, dtype=alike.dtype), alike.cumsum(0)])
    gain = (sums[:, :] - sums.gather(0, torch.arange(1, steps + 1)[None])).T  # (K, K + 1)
    best = torch.full((steps,), -torch.inf, dtype=alike.dtype)
    best[0] = 0.0
    later = torch.arange(steps)[None] > torch.arange(steps)[:, None]
    came_from = []
    for _ in range(updates - 1):
        options = torch.where(later, best[:, None] + gain[:, :steps], -torch.inf)
        best, source = options.max(0)
        came_from.append(source)
    place = int((best + gain[:, steps]).argmax())
    found = [place]
    for source in reversed(came_from):
        place = int(source[place])
        found.append(place)
    return tuple(reversed(found))


def caching_error(features: Sequence[torch.Tensor]) -> float:
    """How far features of different steps are apart: the mean L1 distance over all pairs of steps.

    It tells which feed-forward modules suffer most from a kept value.
    """
    return -float(similarity(features, "l1").mean())


def bubble(
    schedules: Mapping[str, tuple[int, ...]], chosen: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """Bubbling union: the chosen modules are updated whenever a chosen one behind them is.

    A deep module that is updated then sees fresh values from those before it.

    Args:
        schedules: update steps by module.
        chosen: modules, those nearest to the input first.
    """
    found, union = dict(schedules), set[int]()
    for name in reversed(chosen):
        union |= set(schedules[name])
        found[name] = tuple(sorted(union))
    return found


def module_schedules(
    model: torch.nn.Module,
    profiles: Mapping[str, Profile],
    updates: int,
    union: int = 5,
    metric: Metric = "cosine",
    paper: bool = False,
    last: bool = True,
    per: Per = "module",
) -> dict[str, tuple[int, ...]]:
    """Update steps by module, from recorded features.

    What the denoiser says last is what a solver gives back, so the last step is updated unless
    `last` is off; a similarity of features alone does not see it (and the paper does without,
    where the denoiser tells the noise, of which little is left by then).

    Args:
        model: the denoiser.
        profiles: features by module, as `record_each(model, run, Modules())` gives them.
        updates: update steps of a module before the union.
        union: feed-forward modules with the largest caching error that the union is over (5 in
            the paper's simulations, 3 on its robots); 0 for none.
        metric: of similarity.
        paper: use similarities of consecutive steps, as the paper's text has it.
        last: every module is updated at the last step, as one of its updates.
        per: one schedule for each `module`, or for the `model`: then no module reads fresh values
            beside kept ones, and the union changes nothing.

    Raises:
        RecipeError: more updates than steps, or features that were recorded elsewhere.
    """
    if per not in ("module", "model"):
        raise RecipeError(f"a schedule is made per module or model, not '{per}'")
    modules = [sub for sub in find_submodules(find_blocks(model), Modules()) if not sub.mute]
    if missing := [sub.name for sub in modules if sub.name not in profiles]:
        raise RecipeError(f"no features of {missing[0]}; record the site Modules() of this model")
    alike, errors = {}, {}
    for sub in modules:
        values = profiles[sub.name].values
        features = [torch.cat([t.flatten(1) for t in value], 1) for value in values]
        seen = similarity(features, metric)
        alike[sub.name] = consecutive(seen) if paper else seen
        if sub.kind == "feed_forward":
            errors[sub.name] = caching_error(features)
    if per == "model":
        together = torch.stack(
            [one / one.abs().mean().clamp_min(1e-12) for one in alike.values()]
        ).sum(0)
        return dict.fromkeys(alike, schedule(together, updates, last))
    found = {name: schedule(one, updates, last) for name, one in alike.items()}
    worst = sorted(errors, key=lambda name: errors[name], reverse=True)[:union]
    return bubble(found, [name for name in found if name in worst])


def save_schedules(
    path: str | Path,
    model: torch.nn.Module,
    schedules: Mapping[str, tuple[int, ...]],
    conditions: Conditions,
) -> DiffusionPolicy:
    """Write the schedules of all modules; returns the policy that follows them.

    Args:
        path: where to.
        model: the denoiser.
        schedules: update steps by module.
        conditions: of the recorded trajectories.
    """
    mask = torch.zeros(len(conditions.times), len(schedules), dtype=torch.bool)
    for place, steps in enumerate(schedules.values()):
        mask[list(steps), place] = True
    about = {"computed": float(mask.float().mean())}
    save_mask(path, model, mask, tuple(schedules), conditions, "bac", about)
    gate = ModuleMask(artefact=str(path))
    return DiffusionPolicy(Modules(), gate, Reuse(), companions=(Repeats(),))
