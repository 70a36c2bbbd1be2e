"""Draws pictures of the zoo the way a pipeline does, for every package in the same manner.

Packages need different things of a pipeline: the name of the branch of guidance, the timestep, both
branches in one batch. The loop gives all of them; what is drawn is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from recollect.zoo import images
from recollect.zoo.images import sampling
from recollect.zoo.images.shapes import to_pictures

Context = Callable[[str], AbstractContextManager[Any]]


class Drawn(NamedTuple):
    """Pictures (B, 3, 16, 16), and the floating-point operations that the denoiser took."""

    pictures: torch.Tensor
    flops: int


class Loop:
    """One generation, step by step.

    Attributes:
        time: the current timestep, for packages that ask for it.
        running: the generation whose model was called last.
    """

    running: ClassVar[Loop]

    def __init__(
        self,
        model: Any,
        count: int,
        steps: int,
        seed: int,
        solver: str,
        guidance: float = 2.0,
        batched: bool = False,
        context: Context | None = None,
    ) -> None:
        self.model, self.guidance, self.batched = model, guidance, batched
        self.context = context or (lambda name: nullcontext())
        self.timeline = sampling.scheduler(solver, steps)
        self.labels = torch.arange(count) % len(images.CLASSES)
        edge = model.config.sample_size
        shape = (model.config.in_channels, edge, edge)
        self.latent = torch.stack(
            [
                torch.randn(shape, generator=torch.Generator().manual_seed(seed + row))
                for row in range(count)
            ]
        )
        self.time = 0.0

    def __iter__(self) -> Any:
        """Yields before every step; the latent is moved on after each."""
        for time in self.timeline.timesteps:
            self.time = float(time)
            yield self.time
            self.latent = self.timeline.step(self._velocity(time), time, self.latent)[0]

    @torch.no_grad()
    def _velocity(self, time: torch.Tensor) -> torch.Tensor:
        Loop.running = self
        nobody = torch.full_like(self.labels, len(images.CLASSES))
        if self.batched:
            with self.context("cond_uncond"):
                both = self.model(
                    hidden_states=torch.cat([self.latent, self.latent]),
                    timestep=time.expand(2 * len(self.labels)),
                    class_labels=torch.cat([nobody, self.labels]),
                    return_dict=False,
                )[0]
            other, velocity = both.chunk(2)
        else:
            times = time.expand(len(self.labels))
            with self.context("cond"):
                velocity = self._one(times, self.labels)
            with self.context("uncond"):
                other = self._one(times, nobody)
        return other + self.guidance * (velocity - other)

    def _one(self, times: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        given = {"hidden_states": self.latent, "timestep": times, "class_labels": labels}
        return self.model(**given, return_dict=False)[0]

    def run(self) -> torch.Tensor:
        """All steps: the pictures."""
        for _ in self:
            pass
        return self.pictures

    @property
    def pictures(self) -> torch.Tensor:
        return to_pictures(self.latent)


def draw(loop: Loop) -> Drawn:
    """Run a generation and count what it computes."""
    with FlopCounterMode(display=False) as counter:
        pictures = loop.run()
    return Drawn(pictures, counter.get_total_flops())


def interference(fresh: Callable[[], Callable[[int], Loop]], steps: int) -> dict[str, float]:
    """Largest changes of a picture by other requests on the same model.

    Args:
        fresh: gives a function from a seed to a generation, all on one new model with its cache.
        steps: steps of a generation.

    Returns:
        `interleaved`: two requests, step by step in turn, against each alone; `abandoned`: a
        request after one that was left halfway, against the same alone.
    """
    alone = [fresh()(seed).run() for seed in (1, 2)]
    start = fresh()
    both = [start(seed) for seed in (1, 2)]
    turns = [iter(one) for one in both]
    for _ in range(steps + 1):
        for turn in turns:
            next(turn, None)
    mixed = [float((one.pictures - a).abs().max()) for one, a in zip(both, alone, strict=True)]
    start = fresh()
    left = iter(start(1))
    for _ in range(steps // 2):
        next(left)
    after = float((start(2).run() - alone[1]).abs().max())
    return {"interleaved": max(mixed), "abandoned": after}
