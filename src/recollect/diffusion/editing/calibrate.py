"""Fit how a model's velocity fades, on uncached edits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from recollect.diffusion.artefacts import Artefact, fingerprint
from recollect.diffusion.companions import Companion
from recollect.diffusion.editing.decay import KIND
from recollect.diffusion.editing.regions import Layout, edited
from recollect.diffusion.engine.attach import accelerated
from recollect.diffusion.engine.values import split
from recollect.diffusion.host.flux import flat
from recollect.diffusion.policy import DiffusionPolicy
from recollect.diffusion.schedules import Interval
from recollect.errors import RecipeError


def calibrate_decay(
    target: Any,
    run: Callable[[], Any],
    similarity: float = 0.93,
    erode: int = 3,
    dilate: int = 5,
) -> Artefact:
    """Fit the decay on uncached edits.

    Args:
        target: pipeline of an editing model, or its transformer.
        run: draws the calibration edits, all with the schedule it will be used on.
        similarity, erode, dilate: what an edited token is, as in `RegionEdit`.

    Raises:
        RecipeError: nothing was drawn, or edits of different schedules.
    """
    probe = _Probe()
    policy = DiffusionPolicy(gate=Interval(every=1), companions=(probe,))
    with accelerated(target, policy) as acceleration:
        (session,) = acceleration.sessions.values()
        model = session.model
        run()
    edits = [edit for edit in probe.edits if len(edit.sigmas) > 1]
    if not edits:
        raise RecipeError("nothing was drawn: `run` must call the pipeline or its transformer")
    sigmas = edits[0].sigmas
    if any(edit.sigmas != sigmas for edit in edits):
        raise RecipeError("the calibration edits have different schedules; draw equal ones")
    dots = torch.stack([e.products(similarity, erode, dilate) for e in edits]).sum(0)
    steps = torch.tensor(sigmas, dtype=torch.float64).diff()
    gamma = dots[:, 0] / dots[:, 1].clamp_min(1e-12) / (1 + steps)
    settings = {"sigmas": sigmas, "edits": sum(len(e.velocities[0]) for e in edits)}
    return Artefact(KIND, fingerprint(model), settings, {"gamma": gamma.float()})


@dataclass
class _Edit:
    """Velocities along one uncached trajectory."""

    layout: Layout
    picture: torch.Tensor
    sigmas: list[float] = field(default_factory=list)
    velocities: list[torch.Tensor] = field(default_factory=list)
    estimate: torch.Tensor | None = None

    def products(self, similarity: float, erode: int, dilate: int) -> torch.Tensor:
        """(steps - 1, 2): each velocity times the one before, and that one's square.

        Over the tokens that are edited by the last estimate, or all where none is.
        """
        assert self.estimate is not None
        chosen = edited(self.estimate, self.picture, self.layout, similarity, erode, dilate)
        chosen = chosen | ~chosen.any(1, keepdim=True)
        rows = [v.double()[chosen] for v in self.velocities]
        pairs = itertools.pairwise(rows)
        return torch.stack([torch.stack([(a * b).sum(), (a * a).sum()]) for a, b in pairs])


@dataclass(frozen=True)
class _Probe(Companion):
    """Keeps the velocities of whole trajectories."""

    edits: list[_Edit] = field(default_factory=list, compare=False, repr=False)

    def install(self, model: torch.nn.Module, session: Any, installed: Any) -> None:
        """Listen to every evaluation."""

        def listen(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            evaluation = session.evaluation
            named = session.signature.bind(args, kwargs)
            latent, layout = evaluation.call.latent, Layout.of(flat(named["img_ids"]))
            edit = evaluation.branch.beside.get(KIND)
            if edit is None:
                edit = _Edit(layout, latent[:, layout.counterpart].clone())
                evaluation.branch.beside[KIND] = edit
                self.edits.append(edit)
            velocity = split(output)[0][0][:, : layout.count]
            edit.sigmas.append(round(evaluation.step.sigma, 6))
            edit.velocities.append(velocity.clone())
            edit.estimate = latent[:, : layout.count] - evaluation.step.sigma * velocity
            return output

        session.inner.append(listen)
