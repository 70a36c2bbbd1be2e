"""A control task with a known right answer: lead a point through one of two gaps to a goal.

A wall stands between the point and the goal. Which gap to take is left to chance, so what is
learned from demonstrations has several right answers, and a plan between them hits the wall.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

CHUNK = 16
"""Positions in a plan."""
TOKENS = 5
"""Points in an observation: before, now, the two gaps, the goal."""
SPEED = 0.08  # way of a demonstration in one step
_FASTEST = 0.12  # way of anything in one step
_GAP = 0.12  # half the width of a gap
_CLEAR = 0.12  # a demonstration passes the wall straight, from so far before to so far behind
_NEAR = 0.08  # distance from the goal that counts as there


@dataclass(frozen=True)
class World:
    """Some tasks side by side.

    Attributes:
        before, now: the point's latest two places (B, 2).
        gaps: middle of the upper and the lower gap (B, 2, 2), both on the wall.
        goal: where to go (B, 2).
        crashed: whether the point has met the wall (B,) bool; it then stays.
    """

    before: torch.Tensor
    now: torch.Tensor
    gaps: torch.Tensor
    goal: torch.Tensor
    crashed: torch.Tensor

    @classmethod
    def draw(cls, count: int, generator: torch.Generator) -> World:
        """So many tasks; everything lies within [-1, 1]."""

        def uniform(low: float, high: float) -> torch.Tensor:
            return low + (high - low) * torch.rand(count, generator=generator)

        start = torch.stack([uniform(-0.95, -0.6), uniform(-0.8, 0.8)], 1)
        goal = torch.stack([uniform(0.5, 0.9), uniform(-0.8, 0.8)], 1)
        wall = uniform(-0.2, 0.2)
        upper, lower = uniform(0.2, 0.8), uniform(-0.8, -0.2)
        gaps = torch.stack([torch.stack([wall, upper], 1), torch.stack([wall, lower], 1)], 1)
        return cls(start, start, gaps, goal, torch.zeros(count, dtype=torch.bool))

    @property
    def observation(self) -> torch.Tensor:
        """What a policy sees: (B, 5, 2)."""
        points = [self.before[:, None], self.now[:, None], self.gaps, self.goal[:, None]]
        return torch.cat(points, 1)

    def move(self, place: torch.Tensor) -> World:
        """One step towards `place` (B, 2), no faster than the point can go."""
        way = place - self.now
        way = way * (_FASTEST / way.norm(dim=1, keepdim=True).clamp_min(_FASTEST))
        there = self.now + way
        wall = self.gaps[:, 0, 0]
        crosses = (self.now[:, 0] < wall) != (there[:, 0] < wall)
        share = (wall - self.now[:, 0]) / torch.where(crosses, way[:, 0], torch.ones_like(wall))
        height = self.now[:, 1] + share * way[:, 1]
        through = ((height[:, None] - self.gaps[..., 1]).abs() < _GAP).any(1)
        crashed = self.crashed | (crosses & ~through)
        there = torch.where(crashed[:, None], self.now, there)
        return replace(self, before=self.now, now=there, crashed=crashed)

    @property
    def succeeded(self) -> torch.Tensor:
        """Which points are at their goal: (B,) bool."""
        return ~self.crashed & ((self.now - self.goal).norm(dim=1) < _NEAR)


def demonstrate(world: World, gap: torch.Tensor, steps: int = CHUNK) -> torch.Tensor:
    """Where the script would lead the points through the gaps numbered `gap` (B,): (B, steps, 2).

    Straight to a place before the gap, straight through it, straight to the goal, and stay.
    """
    middle = world.gaps[torch.arange(len(gap)), gap]
    aside = torch.tensor([_CLEAR, 0.0])
    place, path = world.now, []
    for _ in range(steps):
        short_of_gap = place[:, 0] < middle[:, 0] - _CLEAR + 1e-3
        short_of_exit = place[:, 0] < middle[:, 0] + _CLEAR - 1e-3
        target = torch.where(short_of_exit[:, None], middle + aside, world.goal)
        lined_up = (place - middle + aside).norm(dim=1) < SPEED / 2
        target = torch.where((short_of_gap & ~lined_up)[:, None], middle - aside, target)
        way = target - place
        place = place + way * (SPEED / way.norm(dim=1, keepdim=True).clamp_min(SPEED))
        path.append(place)
    return torch.stack(path, 1)


def lessons(episodes: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations (N, 5, 2) along disturbed demonstrations, and the right plans (N, 16, 2)."""
    world = World.draw(episodes, generator)
    gap = torch.randint(0, 2, (episodes,), generator=generator)
    seen, plans = [], []
    for _ in range(48):
        plan = demonstrate(world, gap)
        keep = ~world.crashed
        seen.append(world.observation[keep])
        plans.append(plan[keep])
        slip = 0.01 * torch.randn(plan[:, 0].shape, generator=generator)
        world = world.move(plan[:, 0] + slip)
    return torch.cat(seen), torch.cat(plans)


def observations(count: int, generator: torch.Generator) -> torch.Tensor:
    """What is seen at so many moments along demonstrations: (count, 5, 2)."""
    seen, _ = lessons(max(1, count // 16), generator)
    return seen[torch.randint(0, len(seen), (count,), generator=generator)]
