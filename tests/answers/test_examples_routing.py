"""Routing: regret fades, load pushes to the cheap model, feedback is asked only when unsure."""

import math

import numpy as np
import pytest

from recollect.answers.examples import Model, RouterPolicy
from recollect.answers.examples.router import Router, context_features
from recollect.errors import RecipeError

SMALL, LARGE = Model("small", cost=1.0), Model("large", cost=8.0, strong=True)
CONTEXT = context_features("how do I open the box", 0.0, 0.0, 0)


def play(router, means, steps, rng):
    """Serve `steps` requests whose answers are right with the probability of their model."""
    regret = []
    for _ in range(steps):
        at = router.choose([CONTEXT, CONTEXT], rng)
        router.observe(router.models[at].name, CONTEXT, float(rng.random() < means[at]))
        regret.append(max(means) - means[at])
    return np.array(regret)


@pytest.mark.parametrize("means", [(0.6, 0.5), (0.5, 0.6)])
def test_regret_per_step_goes_to_zero(means):
    early, late = [], []
    for seed in range(4):
        regret = play(
            Router([SMALL, LARGE], RouterPolicy()), means, 3000, np.random.default_rng(seed)
        )
        early.append(regret[:300].mean())
        late.append(regret[-600:].mean())
    assert np.mean(late) < 0.012 < np.mean(early)


def test_under_infinite_load_bias_the_cheap_model_answers_always():
    router, rng = Router([LARGE, SMALL], RouterPolicy(load_price=1e9)), np.random.default_rng(0)
    play(router, (0.9, 0.1), 300, rng)
    for _ in range(60):
        router.observe_load(3.0)
    assert all(router.choose([CONTEXT, CONTEXT], rng) == 1 for _ in range(300))


def test_without_overload_no_price_of_load_is_paid():
    router, rng = (
        Router([LARGE, SMALL], RouterPolicy(load_price=math.inf)),
        np.random.default_rng(0),
    )
    router.observe_load(0.5)
    assert router.price(LARGE) == 0
    assert play(router, (0.9, 0.1), 600, rng)[-200:].mean() < 0.05


def test_the_price_of_load_grows_as_tanh_times_cost():
    policy = RouterPolicy(load_threshold=0.5, load_price=2.0, load_smoothing=1.0, cost_price=0.1)
    router = Router([SMALL, LARGE], policy)
    for load, over in ((0.2, 0.0), (0.5, 0.0), (0.9, 0.4), (9.0, 8.5)):
        router.observe_load(load)
        for model in (SMALL, LARGE):
            expected = 0.1 * model.cost + 2.0 * math.tanh(over) * model.cost
            assert router.price(model) == pytest.approx(expected)


def test_load_is_a_running_mean():
    router = Router([SMALL, LARGE], RouterPolicy(load_smoothing=0.25))
    for load in (1.0, 1.0, 0.0):
        router.observe_load(load)
    assert router.load == pytest.approx((1 - 0.75**2) * 0.75)


def test_different_requests_go_to_different_models():
    router, rng = Router([SMALL, LARGE], RouterPolicy(cost_price=0.01)), np.random.default_rng(0)
    helped = context_features("q", 0.9, 0.5, 4)
    contexts = {True: [helped, CONTEXT], False: [CONTEXT, CONTEXT]}
    for step in range(1500):
        with_examples = step % 2 == 0
        at = router.choose(contexts[with_examples], rng)
        good = 0.9 if at == 1 or with_examples else 0.2
        router.observe(router.models[at].name, contexts[with_examples][at], rng.random() < good)
    small = {
        kind: [router.choose(contexts[kind], rng) == 0 for _ in range(100)] for kind in contexts
    }
    assert np.mean(small[True]) > 0.8
    assert np.mean(small[False]) < 0.2


def test_feedback_is_asked_while_unsure_and_not_once_one_is_clearly_better():
    router, rng = Router([SMALL, LARGE], RouterPolicy()), np.random.default_rng(0)
    assert router.is_uncertain([CONTEXT, CONTEXT])
    play(router, (0.9, 0.2), 400, rng)
    assert not router.is_uncertain([CONTEXT, CONTEXT])


def test_one_model_needs_no_feedback_to_route():
    assert not Router([SMALL], RouterPolicy()).is_uncertain([CONTEXT])


def test_what_was_learned_survives_and_a_new_model_starts_fresh():
    router, rng = Router([SMALL, LARGE], RouterPolicy()), np.random.default_rng(0)
    play(router, (0.9, 0.2), 400, rng)
    again = Router([SMALL, LARGE, Model("other")], RouterPolicy())
    again.restore(router.state())
    assert not again.is_uncertain([CONTEXT, CONTEXT, CONTEXT * 0])
    assert again.state()["quality"]["other"]["observations"] == 0
    assert again.state()["quality"]["small"] == router.state()["quality"]["small"]


def test_wrong_models_and_policies_are_refused():
    for wrong in ([], [SMALL, SMALL]):
        with pytest.raises(RecipeError):
            Router(wrong, RouterPolicy())
    with pytest.raises(RecipeError):
        Model("free", cost=0)
    with pytest.raises(RecipeError):
        RouterPolicy(load_smoothing=0)
