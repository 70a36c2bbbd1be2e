"""The zoo's models as painters, each with the judge that was trained beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import torch

from recollect.diffusion.banks import outlines
from recollect.diffusion.editing.loop import euler
from recollect.diffusion.learned.subjects import ImageSubject, PolicySubject
from recollect.diffusion.learned.trajectory import Trajectory
from recollect.diffusion.policy import policy
from recollect.errors import HostError
from recollect.evaluate import clips
from recollect.evaluate.diffusion.painters import CEILING, Painter, decibels
from recollect.evaluate.pictures import psnr
from recollect.zoo import control, edits, images, videos
from recollect.zoo.control.rollouts import STEPS, act
from recollect.zoo.control.task import World


class ImagePainter(Painter):
    """A class-conditional image model."""

    kind = "images"
    solvers = ("euler", "dpm")

    def __init__(self, name: str) -> None:
        from recollect.zoo.images import classifier

        self.name, self.target = name, images.load(name)
        self._measures = classifier
        self._net = classifier.load(images.path(name))

    def draw(
        self,
        steps: int,
        solver: str,
        seed: int,
        count: int,
        sigmas: Sequence[float] | None = None,
    ) -> torch.Tensor:
        labels = self._labels(count)
        return images.sample(self.target, labels, steps, seed, solver=solver, sigmas=sigmas)

    @torch.no_grad()
    def judge(self, drawn: torch.Tensor, plain: torch.Tensor, seed: int) -> dict[str, float]:
        labels = self._labels(len(drawn))
        real = images.draw(labels, torch.Generator().manual_seed(99))
        found = {
            **super().judge(drawn, plain, seed),
            "perceptual": float(self._measures.perceptual(self._net, drawn, plain).mean()),
            "recognized": float((self._net(drawn).argmax(1) == labels).float().mean()),
        }
        if len(drawn) > 1:  # a distance between distributions
            found["frechet"] = self._measures.frechet(self._net, drawn, real)
        return found

    def trajectory(self, steps: int, solver: str) -> Trajectory:
        return ImageSubject(self.target, steps, solver, 2.0).trajectory

    def _labels(self, count: int) -> torch.Tensor:
        return torch.arange(count) % len(images.CLASSES)


class VideoPainter(Painter):
    """A text-conditional video model: clips (B, 3, F, H, W)."""

    kind = "videos"
    solvers = ("euler", "dpm")
    grid = (videos.FRAMES, 4, 4)

    def __init__(self, name: str) -> None:
        from recollect.zoo.videos import classifier

        self.name = name
        self.target, self._captions = videos.load(name)
        self._judge = classifier.load(videos.path(name))

    def draw(
        self,
        steps: int,
        solver: str,
        seed: int,
        count: int,
        sigmas: Sequence[float] | None = None,
    ) -> torch.Tensor:
        if sigmas is not None:
            raise HostError(f"{self.name} is drawn at its scheduler's own noise levels")
        asked = self._asked(count)
        return videos.sample(self.target, self._captions, *asked, steps, seed, solver=solver)

    @torch.no_grad()
    def judge(self, drawn: torch.Tensor, plain: torch.Tensor, seed: int) -> dict[str, float]:
        frames = [each.transpose(1, 2).flatten(0, 1) for each in (drawn, plain)]
        right = self._judge.recognizes(drawn, *self._asked(len(drawn))).all(1)
        return {
            **super().judge(frames[0], frames[1], seed),
            "motion": float(clips.flicker(drawn, plain).clamp_max(CEILING).mean()),
            "recognized": float(right.float().mean()),
        }

    def shown(self, drawn: torch.Tensor, seed: int) -> torch.Tensor:
        return drawn.transpose(2, 3).flatten(3)  # frame beside frame

    def _asked(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Shapes and motions, every pair in turn."""
        pairs = torch.cartesian_prod(
            torch.arange(len(videos.SHAPES)), torch.arange(len(videos.MOTIONS))
        )
        shapes, motions = pairs.repeat(-(-count // len(pairs)), 1)[:count].T
        return shapes, motions


class EditPainter(Painter):
    """An instruction-editing model with the scheduler of its pipeline."""

    kind = "edits"
    solvers = ("euler",)
    steps = 28

    def __init__(self, name: str) -> None:
        from recollect.zoo.edits import classifier

        self.name = name
        model, self.instructions = edits.load(name)
        self.target = SimpleNamespace(transformer=model, scheduler=euler([1.0]))
        self._measures = classifier
        self._judge = classifier.load(edits.path(name))

    @torch.no_grad()
    def draw(
        self,
        steps: int,
        solver: str,
        seed: int,
        count: int,
        sigmas: Sequence[float] | None = None,
    ) -> torch.Tensor:
        from recollect.zoo.edits import sampling

        asked, scheduler = self.asked(count, seed), self.target.scheduler
        # Noise levels as FLUX.1 Kontext's pipeline spaces them, without shift.
        scheduler.set_timesteps(sigmas=list(sigmas or (1 - n / steps for n in range(steps))))
        picture, latent = sampling.pack(asked.before), sampling.noise(count, seed)
        prompt, condition = self.instructions(asked.instructions), self.condition(asked)
        for time in scheduler.timesteps:
            level = (time / 1000).expand(count)
            guess = sampling.velocity(self.model, latent, picture, level, prompt, condition)
            latent = scheduler.step(guess, time, latent, return_dict=False)[0]
        return sampling.unpack(latent)

    def judge(self, drawn: torch.Tensor, plain: torch.Tensor, seed: int) -> dict[str, float]:
        asked = self.asked(len(drawn), seed)
        right = self._measures.recognized(self._judge, drawn, asked)
        inside = torch.where(asked.region, drawn.clamp(-1, 1), plain.clamp(-1, 1))
        share = asked.region.float().mean((1, 2, 3))
        region = psnr(inside, plain) + 10 * share.log10()  # the error of its own pixels alone
        return {
            **super().judge(drawn, plain, seed),
            "region": float(region.clamp_max(CEILING).mean()),
            "recognized": float(right.float().mean()),
        }

    def asked(self, count: int, seed: int) -> edits.Edits:
        """The edits of a seed."""
        return edits.draw_edits(count, torch.Generator().manual_seed(seed))

    def condition(self, asked: edits.Edits) -> torch.Tensor | None:
        """Tokens (B, S, C) of what the edits must follow besides; None for nothing."""
        return None


class OutlinePainter(EditPainter):
    """The editing model with an adapter that follows outlines, which are run on every step."""

    kind = "conditions"

    def __init__(self, name: str) -> None:
        super().__init__(outlines.BASE)
        self.name = name
        lora = edits.adapter(outlines.BASE, "outlines")
        self.base = policy("easycontrol", lora=lora, first=outlines.FIRST, reuse=False)

    def judge(self, drawn: torch.Tensor, plain: torch.Tensor, seed: int) -> dict[str, float]:
        filled = edits.overlap(drawn, self.asked(len(drawn), seed))
        followed = (filled >= outlines.FOLLOWED).float().mean()
        return {**super().judge(drawn, plain, seed), "followed": float(followed)}

    def asked(self, count: int, seed: int) -> edits.Edits:
        return edits.draw_edits(count, torch.Generator().manual_seed(seed), far=True)

    def condition(self, asked: edits.Edits) -> torch.Tensor | None:
        from recollect.zoo.edits import sampling

        return sampling.pack(edits.outline(asked.cover))


class ControlPainter(Painter):
    """A control policy in its closed loop: ways (B, 8, 3) of x, y and whether the wall was met."""

    kind = "control"
    solvers = ("ddpm",)
    steps = STEPS

    def __init__(self, name: str) -> None:
        self.name = name
        self.target = control.load(name)

    def draw(
        self,
        steps: int,
        solver: str,
        seed: int,
        count: int,
        sigmas: Sequence[float] | None = None,
    ) -> torch.Tensor:
        if sigmas is not None:
            raise HostError("DDPM takes no noise levels")
        seen: list[World] = []
        seen.append(act(self.target, self._world(count, seed), seed, steps, seen.append))
        rows = [torch.cat([world.now, world.crashed[:, None].float()], 1) for world in seen]
        return torch.stack(rows, 1)

    def calibrate(
        self, steps: int, solver: str, count: int, sigmas: Sequence[float] | None = None
    ) -> None:
        PolicySubject(self.target, steps).draw(count, 7_000, sigmas)

    def judge(self, drawn: torch.Tensor, plain: torch.Tensor, seed: int) -> dict[str, float]:
        end = replace(
            self._world(len(drawn), seed), now=drawn[:, -1, :2], crashed=drawn[:, -1, 2] > 0
        )
        ways = [each[..., :2].transpose(1, 2).unsqueeze(-1) for each in (drawn, plain)]
        return {
            "reached": float(end.succeeded.float().mean()),
            "psnr": decibels(ways[0], ways[1]),
        }

    def shown(self, drawn: torch.Tensor, seed: int, size: int = 64) -> torch.Tensor:
        world = self._world(len(drawn), seed)
        axis = torch.linspace(-1, 1, size)
        pictures = torch.full((len(drawn), 3, size, size), -0.9)
        wall = (axis - world.gaps[:, :1, 0]).abs() < 2 / size  # (B, x)
        open_ = (axis - world.gaps[..., 1:]).abs().amin(1) < 0.12  # (B, y)
        stone = (~open_)[:, :, None] & wall[:, None]
        pictures.masked_fill_(stone[:, None], 0.4)
        line = torch.nn.functional.interpolate(
            drawn[..., :2].transpose(1, 2), size=200, mode="linear", align_corners=True
        )
        for colour, points in ((1, world.goal[:, :, None]), (0, line)):
            places = ((points.clamp(-1, 1) + 1) / 2 * (size - 1)).round().long()
            for row, (x, y) in enumerate(places):
                pictures[row, colour, y, x] = 1.0
        return pictures.flip(2)

    def trajectory(self, steps: int, solver: str) -> Trajectory:
        return PolicySubject(self.target, steps).trajectory

    def _world(self, count: int, seed: int) -> World:
        return World.draw(count, torch.Generator().manual_seed(seed))
