"""Values of a site over whole uncached generations: what planners and calibrations work from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from recollect.diffusion.companions import Companion
from recollect.diffusion.engine.attach import accelerated
from recollect.diffusion.engine.branches import Branch
from recollect.diffusion.engine.clock import Step
from recollect.diffusion.engine.values import Value
from recollect.diffusion.policy import DiffusionPolicy
from recollect.diffusion.schedules import Interval
from recollect.diffusion.sites import Site, Velocity
from recollect.errors import RecipeError


@dataclass(frozen=True)
class Profile:
    """Values of one site over uncached generations.

    Attributes:
        site: where they were taken.
        steps: the steps of a generation, in sampling order.
        values: for every step, the tensors (N, …) of all generations and branches, one after
            the other along the first axis.
    """

    site: Site
    steps: tuple[Step, ...]
    values: tuple[Value, ...]


def record(
    target: Any,
    run: Callable[[], Any],
    site: Site | None = None,
    companions: tuple[Companion, ...] = (),
) -> Profile:
    """Record a site with one value per step, while `run` draws one or more generations.

    Args:
        target: pipeline or denoiser.
        run: draws the calibration samples; nothing of them is reused.
        site: where to record; the model's output by default.
        companions: what works beside meanwhile, e.g. a quantized denoiser.

    Raises:
        RecipeError: a site with several values per step, or generations of different lengths.
    """
    found = record_each(target, run, site, companions)
    if len(found) != 1:
        raise RecipeError(
            f"this site has several values per step ({', '.join(found)}); "
            "record Velocity, Transform or Hidden, or use record_each"
        )
    return next(iter(found.values()))


def record_each(
    target: Any,
    run: Callable[[], Any],
    site: Site | None = None,
    companions: tuple[Companion, ...] = (),
) -> dict[str, Profile]:
    """The same for sites with several values per step: a profile by the name of each.

    Names are those that correctors see: ``output``, ``blocks 1-5``, or the dotted name of an
    attention or feed-forward module.
    """
    site = site or Velocity()
    tap = _Tap()
    policy = DiffusionPolicy(site, Interval(every=1), companions=companions)
    with accelerated(target, policy) as acceleration:
        for session in acceleration.sessions.values():
            session.taps.append(tap)
        run()
    if not tap.series:
        raise RecipeError("nothing was drawn: `run` must call the pipeline or denoiser")
    lengths = {len(one) for every in tap.series.values() for one in every}
    if len(lengths) != 1:
        raise RecipeError(
            f"the recorded generations have {sorted(lengths)} steps; record equal ones"
        )
    (count,) = lengths
    found = {}
    for name, every in tap.series.items():
        steps = tuple(step for step, _ in every[0])
        values = tuple(
            tuple(torch.cat(parts) for parts in zip(*(one[i][1] for one in every), strict=True))
            for i in range(count)
        )
        found[name] = Profile(site, steps, values)
    return found


class _Tap:
    """Keeps every computed value, one series for each generation and branch."""

    def __init__(self) -> None:
        self.series: dict[str, list[list[tuple[Step, Value]]]] = {}
        self._open: dict[tuple[int, str], list[tuple[Step, Value]]] = {}

    def __call__(self, branch: Branch, step: Step, site: str, value: Value) -> None:
        key = (id(branch), site)
        if step.index == 0 or key not in self._open:
            self._open[key] = []
            self.series.setdefault(site, []).append(self._open[key])
        self._open[key].append((step, tuple(tensor.clone() for tensor in value)))
