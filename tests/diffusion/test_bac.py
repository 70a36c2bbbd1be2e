"""Schedules per module are optimal for recorded features; a union only adds updates."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recollect.diffusion import accelerate, accelerated
from recollect.diffusion.learned import bac
from recollect.diffusion.masks import Conditions
from recollect.diffusion.policy import policy
from recollect.diffusion.profiles import record_each
from recollect.diffusion.sites import Modules
from recollect.errors import RecipeError
from recollect.zoo.control.model import PolicyTransformer
from recollect.zoo.control.rollouts import plan, scheduler
from recollect.zoo.control.task import World

STEPS = 100
WORLD = World.draw(2, torch.Generator().manual_seed(1))


def features(*values: float) -> list[torch.Tensor]:
    return [torch.tensor([[value]]) for value in values]


def likeness(alike: torch.Tensor, updates: tuple[int, ...]) -> float:
    """What a schedule keeps, added up step by step."""
    ends = (*updates[1:], len(alike))
    groups = zip(updates, ends, strict=True)
    return sum(float(alike[t, i]) for i, end in groups for t in range(i + 1, end))


def test_updates_are_where_features_change():
    alike = bac.similarity(features(0, 0, 5, 5, 9, 9), "l1")
    assert bac.schedule(alike, 3) == (0, 2, 4)
    assert likeness(alike, (0, 2, 4)) == 0
    assert bac.schedule(alike, 2) == (0, 2)
    assert likeness(alike, (0, 2)) == -8
    assert likeness(alike, (0, 4)) == -10


@pytest.mark.parametrize("metric", ["cosine", "l1", "mse"])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_a_schedule_is_as_good_as_the_best_of_all(metric, count):
    generator = torch.Generator().manual_seed(count)
    alike = bac.similarity([torch.randn(2, 3, generator=generator) for _ in range(9)], metric)
    found = bac.schedule(alike, count)
    assert found[0] == 0
    assert len(set(found)) == count
    best = max(
        likeness(alike, (0, *rest)) for rest in itertools.combinations(range(1, 9), count - 1)
    )
    assert likeness(alike, found) == pytest.approx(best)


def test_the_last_step_is_updated_at_the_price_of_another():
    alike = bac.similarity(features(0, 0, 5, 5, 9, 9), "l1")
    assert bac.schedule(alike, 4, last=True) == (0, 2, 4, 5)
    assert bac.schedule(alike, 3, last=True) == (0, 2, 5)
    assert bac.schedule(alike, 1, last=True) == (0,)


def test_with_consecutive_similarities_the_least_alike_steps_are_updated():
    alike = bac.similarity(features(0, 3, 3.5, 3.6, 9, 9.1), "l1")
    assert bac.schedule(bac.consecutive(alike), 3) == (0, 1, 4)


steps_of = st.frozensets(st.integers(1, 9), max_size=5).map(lambda s: (0, *sorted(s)))


@settings(max_examples=50, deadline=None)
@given(st.lists(steps_of, min_size=4, max_size=4), st.sets(st.sampled_from("abcd")))
def test_a_union_only_adds_updates_and_is_done_once(schedules, chosen):
    before = dict(zip("abcd", schedules, strict=True))
    after = bac.bubble(before, sorted(chosen))
    for name, steps in after.items():
        assert set(before[name]) <= set(steps)
        assert name in chosen or steps == before[name]
        assert all(
            set(after[other]) <= set(steps) for other in chosen if name in chosen and other > name
        )
    assert bac.bubble(after, sorted(chosen)) == after


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return PolicyTransformer(layers=2, width=16, heads=2).eval()


@pytest.fixture(scope="module")
def profiles(model):
    return record_each(model, lambda: plan(model, WORLD.observation), Modules())


CONDITIONS = Conditions(tuple(map(float, scheduler().timesteps)), "DDPMScheduler")


def test_a_policy_model_is_scheduled_saved_and_run(model, profiles, tmp_path):
    found = bac.module_schedules(model, profiles, updates=4, union=2)
    feed_forward = [name for name in found if name.endswith(".ff")]
    assert [len(found[name]) for name in found if name not in feed_forward] == [4] * 4
    first, last = (set(found[name]) for name in feed_forward)
    assert last <= first
    assert all(steps[-1] == STEPS - 1 for steps in found.values())
    alone = bac.module_schedules(model, profiles, updates=4, union=0, last=False)
    assert all(len(steps) == 4 and steps[-1] < STEPS - 1 for steps in alone.values())
    assert len(set(alone.values())) > 1
    together = bac.module_schedules(model, profiles, updates=4, per="model")
    assert len(set(together.values())) == 1
    path = tmp_path / "bac.safetensors"
    made = bac.save_schedules(path, model, found, CONDITIONS)
    assert policy("bac", artefact=str(path)) == made
    plain = plan(model, WORLD.observation)
    with accelerated(model, made):
        assert not torch.equal(plan(model, WORLD.observation), plain)
        with pytest.raises(RecipeError, match="not on the trajectory"):
            plan(model, WORLD.observation, steps=STEPS // 2)


def test_as_many_updates_as_steps_is_the_untouched_model(model, profiles, tmp_path):
    found = bac.module_schedules(model, profiles, updates=STEPS)
    made = bac.save_schedules(tmp_path / "all.safetensors", model, found, CONDITIONS)
    plain = plan(model, WORLD.observation)
    with accelerated(model, made):
        assert torch.equal(plan(model, WORLD.observation), plain)
    assert not hasattr(model, "_diffusers_hook")


def test_keys_and_values_of_the_observation_are_computed_once(model, monkeypatch):
    watched = [block.attn2.to_k for block in model.transformer_blocks]
    watched.append(model.observation_encoder.embed[0])
    ran, linear = [], torch.nn.Linear.forward

    def counted(module, x):
        if any(module is one for one in watched):
            ran.append(module)
        return linear(module, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", counted)
    plain = plan(model, WORLD.observation)
    assert len(ran) == 3 * STEPS
    ran.clear()
    made = policy("bac", steps=("1" * 6,) * STEPS, repeated=("observation_encoder",))
    with accelerated(model, made) as acceleration:
        assert torch.equal(plan(model, WORLD.observation), plain)
        assert len(ran) == 3
        other = World.draw(2, torch.Generator().manual_seed(2)).observation
        assert not torch.equal(plan(model, other), plain)
        assert len(ran) == 6
        acceleration.reset()
        plan(model, other)
        assert len(ran) == 9


def test_torchs_own_decoder_layers_are_recognized():
    class Policy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = torch.nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
            self.decoder = torch.nn.TransformerDecoder(layer, 2)

        def forward(self, sample, timestep, cond):
            return self.decoder(sample + timestep.view(-1, 1, 1) / 100, cond)

    torch.manual_seed(0)
    model, seen = Policy().eval(), torch.randn(1, 3, 8)

    @torch.no_grad()
    def run():
        x = torch.ones(1, 4, 8)
        for time in (3.0, 2.0, 1.0):
            x = x - 0.1 * model(x, torch.full((1,), time), seen)
        return x

    plain = run()
    names = ("self_attn", "multihead_attn", "linear2")
    with accelerated(model, "fora", every=2) as acceleration:
        (session,) = acceleration.sessions.values()
        expected = [f"decoder.layers.{layer}.{name}" for layer in range(2) for name in names]
        assert session.sites == expected
        assert not torch.equal(run(), plain)
    with accelerated(model, policy("bac", steps=("1" * 6, "110111", "1" * 6))):
        assert not torch.equal(run(), plain)
    assert torch.equal(run(), plain)


def test_what_does_not_fit_is_refused(model, profiles):
    alike = bac.similarity(features(0, 1, 2))
    for updates in (0, 4):
        with pytest.raises(RecipeError, match="between 1 and 3"):
            bac.schedule(alike, updates)
    with pytest.raises(RecipeError, match="cosine, l1 or mse"):
        bac.similarity(features(0, 1), "dot")
    with pytest.raises(RecipeError, match="per module or model"):
        bac.module_schedules(model, profiles, updates=2, per="step")
    with pytest.raises(RecipeError, match="no features of"):
        bac.module_schedules(model, {}, updates=2)
    with pytest.raises(RecipeError, match="calibrate-diffusion"):
        accelerate(model, "bac")
