"""Recipes of stores: read, composed, changed by arguments, refused in words."""

import subprocess
import sys

import pytest

from recollect.errors import RecipeError
from recollect.recipe import find, recipes
from recollect.store.frames import find_codec
from recollect.store.plan import (
    CacheGenFrames,
    Chunks,
    DenseFrames,
    IntFrames,
    Redundancy,
    StorePlan,
    store_plan,
)


def test_recipes_of_this_room_compose():
    plan = store_plan("lmcache + cachegen(level=2) + reft(holders=3)", chunk=512)
    assert plan.chunks == Chunks(512)
    assert plan.codec == CacheGenFrames(2)
    assert plan.redundancy == Redundancy(3)
    assert find("lmcache") + find("cachegen") == find("lmcache") + find("cachegen")


@pytest.mark.parametrize("recipe", [recipe.name for recipe in recipes("store")])
def test_every_recipe_alone_is_a_plan_whose_codec_frames_know(recipe):
    find_codec(store_plan(recipe).codec.name)


def test_a_plan_is_dense_chunks_without_redundancy_unless_told_otherwise():
    assert store_plan("lmcache") == StorePlan(Chunks(256), DenseFrames(), None)
    assert store_plan(store_plan("reft"), holders=5).redundancy == Redundancy(5)


def test_whole_stages_may_be_given():
    assert store_plan("cachegen", codec=IntFrames(4)).codec.name == "int4"


@pytest.mark.parametrize(
    ("spec", "arguments", "match"),
    [
        ("snapkv", {}, "not a recipe for stores: snapkv"),
        ("lmcache", {"chnk": 3}, "did you mean 'chunk'"),
        ("lmcache", {"chunk": 0}, "at least 1"),
        ("cachegen(level=9)", {}, "0 .best. to 3"),
        ("reft(holders=1)", {}, "at least 2 holders"),
        ("lmcache", {"bits": 4}, "no argument 'bits'"),
        (7, {}, "expected the name"),
    ],
)
def test_nonsense_is_refused(spec, arguments, match):
    with pytest.raises(RecipeError, match=match):
        store_plan(spec, **arguments)


def test_a_store_follows_its_recipe():
    from recollect.store.store import Store

    with Store(recipe="lmcache + cachegen(level=2)", chunk=64, host="1MiB", level=3) as store:
        assert store.plan == StorePlan(Chunks(64), CacheGenFrames(3))
        assert len(store.chunk_keys("m", range(130))) == 2
    with pytest.raises(RecipeError, match="no argument 'lvl'"):
        Store(recipe="cachegen", lvl=3)


def test_recipes_are_listed_where_the_packages_of_the_extra_are_missing():
    code = (
        "import sys\n"
        "for name in ('xxhash', 'redis', 'obstore', 'cryptography', 'prometheus_client'):\n"
        "    sys.modules[name] = None\n"
        "from recollect.store.plan import store_plan\n"
        "print(store_plan('lmcache + cachegen').codec.name)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "cachegen-1", found.stderr
