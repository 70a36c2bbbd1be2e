"""Recipes: found by name, composed with `+`, refused in words."""

import re
import subprocess
import sys

import pytest

import recollect
from recollect.errors import RecipeError
from recollect.recipe import compose, find, recipes


def test_every_recipe_says_where_it_comes_from():
    for recipe in recipes():
        assert recipe.title
        assert recipe.summary.endswith(".")
        assert recipe.year >= 2017
        assert re.fullmatch(r"(\d{4}\.\d{4,5})?", recipe.arxiv)  # empty where there is no paper
        assert recipe.status in ("works", "experimental")


def test_names_are_found_and_misspelt_ones_get_the_nearest():
    assert find("snapkv").arxiv == "2404.14469"
    with pytest.raises(RecipeError, match=r"unknown recipe 'snapvk'; did you mean 'snapkv'\?"):
        find("snapvk")
    with pytest.raises(RecipeError, match="recollect recipes lists all"):
        find("zzz")


def test_recipes_can_be_listed_by_area():
    assert {r.area for r in recollect.recipes(area="kv")} == {"kv"}
    with pytest.raises(RecipeError, match="unknown area 'audio'"):
        recollect.recipes(area="audio")


def test_a_composition_has_one_stage_of_each_kind():
    both = find("snapkv") + find("kivi")
    assert both.name == "snapkv + kivi"
    assert set(both.stages) == {"score", "codec"}
    assert compose("snapkv + kivi").stages == both.stages


def test_a_claimed_stage_beats_a_fallback():
    alone = compose("adakv").stages
    joined = compose("adakv + expected-attention").stages
    assert type(alone["score"]).__name__ == "WindowAttention"
    assert type(joined["score"]).__name__ == "ExpectedAttention"
    assert joined["heads"] == alone["heads"]


def test_a_stage_decided_twice_is_a_conflict():
    with pytest.raises(RecipeError, match="'snapkv' and 'knorm' both decide the score"):
        compose("snapkv + knorm")


def test_arguments_reach_the_stage_that_has_them():
    assert compose("snapkv + kivi(bits=2)").stages["codec"].bits == 2
    assert find("kivi")(bits=8).stages["codec"].bits == 8
    with pytest.raises(RecipeError, match="no argument 'bit'; did you mean 'bits'"):
        compose("kivi(bit=2)")


@pytest.mark.parametrize(
    "text", ["snapkv +", "snapkv kivi", "kivi(2)", "kivi(bits=)", "kivi(bits=x)", ""]
)
def test_unreadable_compositions_are_refused(text):
    with pytest.raises(RecipeError, match="cannot read"):
        compose(text)


def test_defaults_list_every_argument():
    assert find("kivi").defaults == {"bits": 4, "value_bits": None, "group": 32, "recent": 128}


def test_recipes_are_listed_without_any_host():
    code = (
        "import sys, recollect\n"
        "assert recollect.recipes()\n"
        "print([name for name in ('diffusers', 'vllm', 'redis') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
