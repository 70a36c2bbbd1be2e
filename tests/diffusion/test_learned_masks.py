"""Routers learn what can be reused, and what they learn holds for one model and trajectory."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from recollect.diffusion import accelerate, accelerated
from recollect.diffusion.learned.harmonica import Training, _Trainer, save_router, train_router
from recollect.diffusion.learned.router import Router, mixing
from recollect.diffusion.learned.trajectory import Trajectory
from recollect.diffusion.masks import load_mask
from recollect.diffusion.policy import policy
from recollect.errors import HostError, RecipeError, StoreError

STEPS = 5


class ToyAttention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(x)


class ToyBlock(torch.nn.Module):
    """Adds what its attention makes of an input: of the time, or of nothing that changes."""

    def __init__(self, timed: bool) -> None:
        super().__init__()
        self.norm, self.attn, self.timed = torch.nn.Identity(), ToyAttention(), timed

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        change = time.view(-1, 1, 1) if self.timed else torch.ones(len(x), 1, 1)
        return x + self.attn(self.norm(change.expand(-1, 1, 8)))


class Toy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = {"blocks": 2}
        self.blocks = torch.nn.ModuleList([ToyBlock(True), ToyBlock(False)])

    def forward(self, hidden_states, timestep, return_dict=False):
        for block in self.blocks:
            hidden_states = block(hidden_states, timestep / 1000)
        return (hidden_states,)


def scheduler(steps: int = STEPS):
    made = FlowMatchEulerDiscreteScheduler()
    made.set_timesteps(steps)
    return made


TRAJECTORY = Trajectory(scheduler, (4, 8), lambda count, generator: ({},))
QUICK = {"trajectories": 30, "batch": 4, "refresh": 10, "rate": 0.3, "start": 1.0}


@pytest.fixture(scope="module")
def toy():
    torch.manual_seed(0)
    return Toy().eval()


def run(model, steps: int = STEPS) -> torch.Tensor:
    trajectory = Trajectory(lambda: scheduler(steps), (4, 8), TRAJECTORY.arguments)
    return trajectory.run(model, 2, seed=1)


@pytest.mark.parametrize(("proxy", "begin"), [("single", "computed"), ("cumulative", "uniform")])
def test_what_does_not_depend_on_time_is_reused_first(toy, proxy, begin):
    training = Training(share=0.5, proxy=proxy, begin=begin, **QUICK)
    router = train_router(toy, TRAJECTORY, training)
    assert router.sites == ("blocks.0.attn", "blocks.1.attn")
    # The scheduler's last step has next to no length: nothing is worth computing there.
    kept = [[True, False]] * (STEPS - 2)
    assert router.mask(0.5).tolist() == [[True, True], *kept, [False, False]]
    assert not any(hasattr(module, "_diffusers_hook") for module in toy.modules())
    assert all(weight.requires_grad and weight.grad is None for weight in toy.parameters())


def test_price_says_how_much_is_reused(toy):
    free = train_router(toy, TRAJECTORY, Training(share=None, beta=0.0, **QUICK))
    assert bool(free.mask().all())
    dear = train_router(toy, TRAJECTORY, Training(share=None, beta=1e6, **QUICK))
    assert dear.mask().tolist() == [[True, True]] + [[False, False]] * (STEPS - 1)
    assert float(dear.logits()[1:].max()) >= -5


@pytest.mark.parametrize(("share", "computed"), [(0.5, "10101"), (0.35, "10010"), (1.0, "11111")])
def test_training_begins_at_the_uniform_schedule(toy, share, computed):
    with mixing(toy, 0.1) as mixture:
        begun = _Trainer(toy, TRAJECTORY, Training(share=share), mixture).router.mask()
    assert begun.tolist() == [[digit == "1"] * 2 for digit in computed]


def test_mixing_with_full_scores_is_the_untouched_model(toy):
    plain = run(toy)
    with mixing(toy, threshold=0.1) as mixture, mixture.at("soft", torch.ones(2)):
        assert torch.equal(run(toy), plain)
    with mixing(toy, threshold=0.1) as mixture, mixture.at("hard", torch.tensor([1.0, 0.0])):
        torch.testing.assert_close(run(toy), plain)  # the second block never changes


def test_a_learned_schedule_is_saved_run_and_refused_elsewhere(toy, tmp_path):
    path = tmp_path / "router.safetensors"
    training = Training(trajectories=1, batch=1, share=0.6)
    router = Router(torch.ones(STEPS, 2), ("blocks.0.attn", "blocks.1.attn"), 0.1, 5.0)
    with torch.no_grad():
        for row in router.rows:
            row[1] = -5
    made = save_router(path, toy, router, TRAJECTORY, training)
    with accelerated(toy, "harmonica", artefact=str(path)) as acceleration:
        torch.testing.assert_close(run(toy), run(toy))
        assert acceleration.policy == made
        assert 0 < acceleration.report().computed < acceleration.report().evaluations
    for steps in (STEPS - 1, STEPS + 1):
        with accelerated(toy, made), pytest.raises(RecipeError, match="not on the trajectory"):
            run(toy, steps)
    with pytest.raises(RecipeError, match="learned with FlowMatchEuler"):
        accelerate(toy, "harmonica", artefact=str(path), solver="DDIMScheduler")
    with pytest.raises(RecipeError, match="at guidance 1, not 3"):
        accelerate(toy, "harmonica", artefact=str(path), guidance=3.0)
    other = Toy()
    with pytest.raises(HostError, match="another model"):
        accelerate(other, made)
    assert not hasattr(other, "_diffusers_hook")
    assert load_mask(path).artefact.tensors["logits"].shape == (STEPS, 2)


def test_what_cannot_be_learned_or_read_is_refused(toy, tmp_path):
    with pytest.raises(RecipeError, match="calibrate-diffusion"):
        accelerate(toy, "harmonica")
    with pytest.raises(StoreError, match="cannot read"):
        accelerate(toy, "harmonica", artefact=str(tmp_path / "none"))
    with pytest.raises(RecipeError, match="not both"):
        policy("harmonica", artefact="a", steps=("11", "01"))
    once = Trajectory(lambda: scheduler(1), (4, 8), TRAJECTORY.arguments)
    with pytest.raises(RecipeError, match="one step"):
        train_router(toy, once, Training(trajectories=1))
    with pytest.raises(HostError, match="no attention"):
        train_router(torch.nn.Linear(2, 2), TRAJECTORY, Training(trajectories=1))
    for wrong in ({"share": 0.0}, {"beta": -1.0}, {"proxy": "both"}, {"batch": 0}, {"begin": "x"}):
        with pytest.raises(RecipeError):
            Training(**wrong)
