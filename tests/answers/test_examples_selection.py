"""Examples chosen by usefulness beat similar ones, which beat random ones, which beat none."""

from dataclasses import replace

import kshot
import numpy as np
import pytest

from recollect.answers import ManualClock
from recollect.answers.encoders import NgramEncoder
from recollect.answers.examples import Example, InContextCache, Model, SelectorPolicy
from recollect.answers.examples.example import Found
from recollect.answers.examples.linear import BayesianLinear
from recollect.answers.examples.prompt import with_examples
from recollect.answers.examples.selector import Selector
from recollect.answers.examples.threshold import THRESHOLDS, UtilityThreshold
from recollect.errors import RecipeError

MOST = 3


def served(cache, text):
    """Ask the small model with what the cache prepared; the user turn it saw and the ticket."""
    _, request, used = cache.prepare(kshot.request(text), scope_id="u")
    return request["messages"][-1]["content"], used


def filled(seed):
    cache = InContextCache(
        [Model("small")], encoder="ngram", clock=ManualClock(), seed=seed, most=MOST
    )
    for query, answer in kshot.pool(seed):
        _, used = served(cache, query)
        assert cache.observe(used, response=answer, verified=True).example_id
    return cache


def prompt_with(pairs, text):
    examples = [Example(at, (), *pair, "large", 0.0) for at, pair in enumerate(pairs)]
    return with_examples(kshot.request(text), examples)["messages"][-1]["content"]


def accuracies(seed):
    cache, pool, encoder = filled(seed), kshot.pool(seed), NgramEncoder()
    for text in kshot.asked(seed, 250):
        prompt, used = served(cache, text)
        cache.observe(used, quality=kshot.quality(prompt))
    cache.selector.policy = replace(cache.selector.policy, explore=False)
    vectors = encoder.encode([query for query, _ in pool])
    rng = np.random.default_rng(seed)
    right = {"useful": [], "similar": [], "random": [], "none": []}
    for text in kshot.asked(seed + 1000, 150):
        nearest = np.argsort(-(vectors @ encoder.encode([text])[0]))[:MOST]
        anything = rng.choice(len(pool), MOST, replace=False)
        right["useful"].append(kshot.quality(served(cache, text)[0]))
        right["similar"].append(kshot.quality(prompt_with([pool[at] for at in nearest], text)))
        right["random"].append(kshot.quality(prompt_with([pool[at] for at in anything], text)))
        right["none"].append(kshot.quality(text))
    return {name: float(np.mean(values)) for name, values in right.items()}


def test_useful_examples_beat_similar_ones_which_beat_random_ones_which_beat_none():
    runs = [accuracies(seed) for seed in range(4)]
    for run in runs:
        assert run["useful"] > run["similar"] >= run["random"] >= run["none"]
    mean = {name: np.mean([run[name] for run in runs]) for name in runs[0]}
    assert mean["useful"] > 1.5 * mean["similar"]


def found(*texts, partition=()):
    vectors = NgramEncoder().encode([text for pair in texts for text in pair]).reshape(-1, 2, 1024)
    return [
        Found(Example(at, partition, *pair, "large", 0.0), *vectors[at - 1])
        for at, pair in enumerate(texts, 1)
    ]


def choose(selector, query, candidates, model="small"):
    vector = NgramEncoder().encode([query])[0]
    return selector.choose(query, vector, candidates, model, np.random.default_rng(0))


def test_the_token_budget_and_the_number_of_examples_hold():
    candidates = found(*((f"how do I open box {n}", "turn it " * 20) for n in range(9)))
    each = candidates[0].example.tokens
    for budget, most, expected in ((10 * each, 4, 4), (2 * each, 4, 2), (each - 1, 4, 0)):
        policy = SelectorPolicy(token_budget=budget, most=most, explore=False)
        choice = choose(Selector(policy), "how do I open box 3", candidates)
        assert len(choice.examples) == expected
        assert choice.tokens == sum(one.example.tokens for one in choice.examples) <= budget


def test_an_example_told_twice_gives_way_to_one_that_tells_something_else():
    twice = ("how do I open the red box", "turn the key of the red box")
    candidates = found(twice, twice, ("how do I open the box", "lift the lid"))
    policy = SelectorPolicy(most=2, explore=False)
    choice = choose(Selector(policy), "how do I open the red box", candidates)
    assert {one.example.id for one in choice.examples} == {1, 3}


def test_an_expensive_token_price_shows_nothing():
    candidates = found(("how do I open the box", "lift the lid"))
    policy = SelectorPolicy(token_price=1.0, explore=False)
    assert not choose(Selector(policy), "how do I open the box", candidates).examples


def test_what_is_learned_of_one_model_says_nothing_of_another():
    selector = Selector(SelectorPolicy(explore=False, record_weight=1.0))
    candidates = found(("how do I open the box", "lift the lid"))
    for _ in range(30):  # harms the first model every time
        choice = choose(selector, "how do I open the box", candidates)
        none = choose(selector, "how do I open the box", [])
        selector.observe(choice, "small", 0.0 if choice.examples else 1.0)
        selector.observe(none, "small", 1.0)
    assert not choose(selector, "how do I open the box", candidates).examples
    assert choose(selector, "how do I open the box", candidates, "other").examples


def test_the_prompt_stays_the_same_when_estimates_move_a_little():
    selector = Selector(SelectorPolicy(explore=False))
    candidates = found(*((f"how do I open box {n}", f"turn key {n}") for n in range(4)))
    before = choose(selector, "how do I open a box", candidates)
    after = choose(selector, "how do I open a box", candidates[::-1])
    ids = [one.example.id for one in before.examples]
    assert ids == [one.example.id for one in after.examples]
    assert len(ids) == 4


@pytest.mark.parametrize("helps", [True, False])
def test_the_threshold_learns_whether_examples_pay(helps):
    rng = np.random.default_rng(0)
    threshold = UtilityThreshold()
    for _ in range(1500):
        at = threshold.choose(rng)
        shown = THRESHOLDS[at] < 1
        threshold.observe(at, shown * (0.3 if helps else -0.3) + rng.normal(0, 0.3))
    assert (THRESHOLDS[threshold.best()] < 1) == helps


def test_bayesian_regression_agrees_with_ridge_regression():
    rng = np.random.default_rng(0)
    features, truth = rng.normal(size=(60, 3)), np.array([1.0, -2.0, 0.5])
    values = features @ truth + rng.normal(0, 0.1, 60)
    learned = BayesianLinear([0, 0, 0], 1.0, noise=0.1)
    for x, y in zip(features, values, strict=True):
        learned.observe(x, y)
    ridge = np.linalg.solve(features.T @ features + 0.01 * np.eye(3), features.T @ values)
    assert np.allclose(learned.mean, ridge)
    drawn = [learned.sample(rng) @ features[0] for _ in range(4000)]
    assert np.std(drawn) == pytest.approx(learned.deviation(features[0]), rel=0.1)


def test_wrong_policies_are_refused():
    for wrong in ({"most": -1}, {"token_price": -1.0}, {"record_weight": 0.0}):
        with pytest.raises(RecipeError):
            SelectorPolicy(**wrong)
