"""Policies: one value, one line, and nothing that makes no sense."""

import pytest

from recollect.errors import RecipeError
from recollect.kv.merges import ClusterMerge
from recollect.kv.policy import KVPolicy, policy
from recollect.kv.schedules import PerBlock
from recollect.kv.scores import WindowAttention
from recollect.recipe import recipes

WHOLE = ("full", "kivi", "vattention")  # recipes that drop nothing


@pytest.mark.parametrize("name", [r.name for r in recipes("kv")])
def test_every_recipe_goes_to_one_line_of_yaml_and_back(name):
    keep = {} if name in WHOLE else {"keep": 0.25}
    value = policy(name, **keep)
    line = value.to_yaml()
    assert "\n" not in line
    assert KVPolicy.from_yaml(line) == value
    assert policy(line) == value


def test_yaml_may_name_recipes():
    line = "{recipe: snapkv + kivi, keep: 0.25, bits: 2}"
    assert policy(line) == policy("snapkv + kivi", keep=0.25, bits=2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{score: {Nothing: {}}}", "cannot read stage 'score'"),
        ("{scores: {Recency: {}}}", "unknown stage 'scores'"),
        ("{score: [", "not readable as YAML"),
        ("{keep: 2.0}", "keep"),
    ],
)
def test_wrong_yaml_is_refused(line, message):
    with pytest.raises(RecipeError, match=message):
        policy(line)


@pytest.mark.parametrize("keep", [0, 0.0, -1, -0.5, 1.5, True, "0.5", None, 1])
def test_impossible_budgets_are_refused(keep):
    with pytest.raises(RecipeError, match="keep"):
        policy("snapkv", keep=keep)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: policy("kivi", keep=0.5), "nothing here drops tokens"),
        (lambda: policy("h2o + kivi", keep=0.5), "cannot be evicted one by one"),
        (lambda: policy("chelsea + kivi", keep=0.5), "pass weigh=False"),
        (lambda: policy("tova + adakv", keep=0.5), "same tokens in all heads"),
        (lambda: policy("knorm + adakv", keep=0.5), "not comparable between heads"),
        (lambda: policy("snapkv", keep=0.5, windows=3), "did you mean 'window'"),
        (lambda: policy("snapkv", keep=0.5, kernel_size=4), "no argument 'kernel_size'"),
        (lambda: policy("snapkv", keep=0.5, kernel=4), "kernel must be odd"),
        (lambda: policy("kivi", bits=3), "bits is one of 2, 4, 8"),
        (lambda: policy("snapkv", keep=0.5, schedule="per block"), "schedule is a stage"),
        (lambda: policy(3), "expected a recipe name"),
        (
            lambda: KVPolicy(keep=0.5, score=WindowAttention(), merge=ClusterMerge()),
            "keep one of the two",
        ),
    ],
)
def test_combinations_that_make_no_sense_are_refused_in_words(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


def test_a_whole_stage_can_be_given():
    assert policy("snapkv", keep=64, schedule=PerBlock()).schedule == PerBlock()


def test_policies_are_values():
    assert policy("snapkv", keep=0.5) == policy("snapkv", keep=0.5)
    assert hash(policy("adakv", keep=0.5)) == hash(policy("adakv", keep=0.5))
    assert policy(policy("snapkv", keep=0.5), window=8).score == WindowAttention(window=8)
