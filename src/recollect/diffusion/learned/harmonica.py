"""HarmoniCa (arXiv:2410.01723): a router learns which module to compute at which step.

It learns from noise alone, on its own trajectories: each step starts where the cached steps before
it have led, and is weighted with what its caching does to the final image.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from recollect.diffusion.learned.router import Mixture, Router, mixing
from recollect.diffusion.learned.trajectory import Trajectory
from recollect.diffusion.masks import save_mask
from recollect.diffusion.policy import DiffusionPolicy
from recollect.diffusion.predictors import Reuse
from recollect.diffusion.schedules import ModuleMask
from recollect.diffusion.sites import Modules
from recollect.errors import RecipeError

_PATIENCE = 0.5  # how fast the price follows the share of modules computed, for a rate of 1

Proxy = Literal["single", "cumulative"]
Begin = Literal["uniform", "computed", "random"]
Progress = Callable[[int, float, float], None]
"""Hears (trajectory, mean relative error of a step, share of modules computed)."""
_Update = Callable[[int, torch.Tensor, torch.Tensor], None]  # step, its scores, its error


@dataclass(frozen=True)
class Training:
    """How a router is trained.

    Attributes:
        trajectories: samplings learned from, with one update per step.
        batch: samples in each.
        beta: price of computing a module, against the relative error of the step's output; the
            mean weight of a step is 1. The paper's 7e-8 goes with raw weights and errors. Not
            used with `share`.
        share: share of modules to compute: the price follows what is computed, and the modules
            with the highest scores are kept.
        begin: the schedule that training begins with: the `uniform` one of the share (FORA's),
            everything `computed`, or logits drawn at `random` (the published code).
        proxy: a step's weight is the change of the final image when only this step is cached
            (`single`, the paper), or when it is cached after those before it (`cumulative`, the
            published code).
        normalize: divide a step's weight by the error of its output, so that it says what an
            error there does to the image; without it (the paper) small errors count twice.
        refresh: trajectories between two looks at the weights. With a `share`, what has been
            learned is then judged by the final images, and the best is kept.
        rate: of AdamW without weight decay; it falls along a half cosine.
        start: logits to begin with, over the threshold's for what is computed, and as far under
            it for the rest. Far enough for scores near 0 and 1: in between, a module is mixed,
            not what it will be.
        threshold: score above which a module is computed.
        bound: logits stay within it on both sides.
        seed: of noise and conditions.
    """

    trajectories: int = 60
    batch: int = 8
    beta: float = 1e-3
    share: float | None = 0.5
    begin: Begin = "uniform"
    proxy: Proxy = "single"
    normalize: bool = True
    refresh: int = 10
    rate: float = 0.2
    start: float = 4.0
    threshold: float = 0.1
    bound: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trajectories < 1 or self.batch < 1 or self.refresh < 1:
            raise RecipeError("trajectories, batch and refresh are 1 or more")
        if self.beta < 0:
            raise RecipeError(f"beta is 0 or more, not {self.beta}")
        if self.share is not None and not 0 < self.share <= 1:
            raise RecipeError(f"share is above 0 and at most 1, not {self.share}")
        if self.proxy not in ("single", "cumulative"):
            raise RecipeError(f"proxy is single or cumulative, not '{self.proxy}'")
        if self.begin not in ("uniform", "computed", "random"):
            raise RecipeError(f"begin is uniform, computed or random, not '{self.begin}'")


def train_router(
    model: torch.nn.Module,
    trajectory: Trajectory,
    training: Training | None = None,
    progress: Progress | None = None,
) -> Router:
    """Learn for every step and module whether it is worth computing.

    Args:
        model: the denoiser; its weights stay as they are.
        trajectory: how it is sampled; the result holds for this one.
        training: how to train.
        progress: told after every trajectory.

    Raises:
        HostError: no attention or feed-forward modules can be recognized.
        RecipeError: a trajectory of one step.
    """
    training = training or Training()
    with mixing(model, training.threshold) as mixture:
        return _Trainer(model, trajectory, training, mixture).train(progress)


def save_router(
    path: str | Path, model: torch.nn.Module, router: Router, trajectory: Trajectory,
    training: Training,
) -> DiffusionPolicy:  # fmt: skip
    """Write the schedule that a router has learned; returns the policy that follows it."""
    mask = router.mask(training.share)
    about = {"training": asdict(training), "computed": float(mask.float().mean())}
    save_mask(
        path, model, mask, router.sites, trajectory.conditions, "harmonica", about,
        {"logits": router.logits()},
    )  # fmt: skip
    return DiffusionPolicy(Modules(), ModuleMask(artefact=str(path)), Reuse())


class _Trainer:
    """One training: the router, its optimizer, the weights of steps and the price."""

    def __init__(
        self, model: torch.nn.Module, trajectory: Trajectory, training: Training, mixture: Mixture
    ) -> None:
        self.model, self.trajectory, self.training = model, trajectory, training
        self.mixture = mixture
        self.steps = len(trajectory.conditions.times)
        if self.steps < 2:
            raise RecipeError("a trajectory of one step has nothing to reuse")
        self.device = next(model.parameters()).device
        self.router = Router(
            _start(training, self.steps, len(mixture.sites)),
            mixture.sites,
            training.threshold,
            training.bound,
        ).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.router.parameters(), lr=training.rate, weight_decay=0.0
        )
        self.rates = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, training.trajectories
        )
        self.weights = torch.ones(self.steps)
        self.beta = training.beta
        self.best: tuple[float, dict[str, torch.Tensor]] = (math.inf, {})
        self.generator = torch.Generator().manual_seed(training.seed)

    def train(self, progress: Progress | None) -> Router:
        share = self.training.share
        for number in range(self.training.trajectories):
            if number % self.training.refresh == 0:
                self.weights = self.influence()
                if share is not None:
                    self.keep_best(share)
            if number == 0 and share is not None:
                self.beta = self.fair_price(share)
            loss = self.follow(self._update)
            computed = float(self.router.mask().float().mean())
            if share is not None:
                (rate,) = self.rates.get_last_lr()
                self.beta *= math.exp(_PATIENCE * rate * (computed - share))
            self.rates.step()
            if progress is not None:
                progress(number, loss, computed)
        if share is not None:
            self.keep_best(share)
            self.router.load_state_dict(self.best[1])
        return self.router.eval()

    def keep_best(self, share: float) -> None:
        """Judge the schedule as it is now by its final images; remember it if none was better."""
        latent, arguments = self.trajectory.begin(
            self.training.batch, torch.Generator().manual_seed(self.training.seed + 1), self.device
        )
        plain, _ = self._draw(latent, arguments, torch.ones(self.steps, len(self.mixture.sites)))
        drawn, _ = self._draw(latent, arguments, self.router.mask(share).float())
        error = float((drawn - plain).square().mean())
        if error < self.best[0]:
            self.best = (error, copy.deepcopy(self.router.state_dict()))

    def fair_price(self, share: float) -> float:
        """The price at which, to begin with, this share of the modules is worth computing."""
        worth: list[torch.Tensor] = []

        def weigh(step: int, scores: torch.Tensor, error: torch.Tensor) -> None:
            (slope,) = torch.autograd.grad(self.weights[step] * error, scores)
            worth.append(-slope)

        self.follow(weigh)
        values = torch.cat(worth)
        # Where many modules are worth nothing at all, the price must still be one.
        return max(float(values.quantile(1 - share)), 0.01 * float(values.mean()), 1e-12)

    def follow(self, update: _Update) -> float:
        """Go along one trajectory of the student, updating at every step: the mean error."""
        latent, arguments = self._begin()
        timeline, total = self.trajectory.scheduler(), 0.0
        self.mixture.begin()
        for step, time in enumerate(timeline.timesteps):
            given = (self.model, timeline, latent, time, arguments)
            scores = self.router.scores(step)
            with torch.no_grad():
                truth = self.trajectory.evaluate(*given)
            with self.mixture.at("soft", scores):
                output = self.trajectory.evaluate(*given)
            if step:
                error = (output - truth).square().mean() / truth.square().mean()
                update(step, scores, error)
                total += float(error.detach())
            latent = timeline.step(output.detach(), time, latent, return_dict=False)[0]
        return total / (self.steps - 1)

    def _update(self, step: int, scores: torch.Tensor, error: torch.Tensor) -> None:
        (self.weights[step] * error + self.beta * scores.sum()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.router.clamp()

    @torch.no_grad()
    def influence(self) -> torch.Tensor:
        """What caching at each step does to the final image: (T,), 1 on average.

        A step that computes everything by now is cached whole, for what it is worth.
        """
        latent, arguments = self._begin()
        mask = self.router.mask().float()
        mask[1:][mask[1:].all(1)] = 0
        single = self.training.proxy == "single"
        before, _ = self._draw(latent, arguments, torch.ones_like(mask))
        changes = torch.zeros(self.steps)
        for step in range(1, self.steps):
            scores = torch.ones_like(mask)
            first = step if single else 1
            scores[first : step + 1] = mask[first : step + 1]
            after, error = self._draw(latent, arguments, scores, step)
            changes[step] = (after - before).square().mean()
            if self.training.normalize:
                changes[step] /= max(error, 1e-12)
            before = before if single else after
        mean = changes[1:].mean()
        return changes / mean if float(mean) > 0 else torch.ones(self.steps)

    @torch.no_grad()
    def _draw(
        self,
        latent: torch.Tensor,
        arguments: dict[str, torch.Tensor],
        scores: torch.Tensor,
        asked: int = -1,
    ) -> tuple[torch.Tensor, float]:
        """Sample with a schedule (T, M): the image, and the relative error of the step `asked`."""
        timeline, error = self.trajectory.scheduler(), 0.0
        self.mixture.begin()
        with torch.random.fork_rng():
            torch.manual_seed(self.training.seed)  # the same noise of the solver in every drawing
            for step, time in enumerate(timeline.timesteps):
                given = (self.model, timeline, latent, time, arguments)
                with self.mixture.at("hard", scores[step]):
                    output = self.trajectory.evaluate(*given)
                if step == asked:
                    truth = self.trajectory.evaluate(*given)
                    error = float((output - truth).square().mean() / truth.square().mean())
                latent = timeline.step(output, time, latent, return_dict=False)[0]
        return latent, error

    def _begin(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.trajectory.begin(self.training.batch, self.generator, self.device)


def _start(training: Training, steps: int, modules: int) -> torch.Tensor:
    """Logits (T, M) to begin with."""
    if training.begin == "random":
        generator = torch.Generator().manual_seed(training.seed)
        return torch.randn(steps, modules, generator=generator)
    share = 1.0
    if training.share is not None and training.begin == "uniform":
        share = training.share
    places = torch.arange(steps, dtype=torch.float64) * share
    # Every 1/share-th step is computed, the first one among them.
    computed = places.floor() > (places - share).floor()
    middle = math.log(training.threshold / (1 - training.threshold))
    logits = torch.where(computed, middle + training.start, middle - training.start)
    return logits.clamp(-training.bound, training.bound).float()[:, None].repeat(1, modules)
