"""Indices: one conformance suite for the exact one, the graph, and the one that grows."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recollect.answers.index import FlatIndex, GrowingIndex
from recollect.answers.index import graph as graph_module
from recollect.answers.index.graph import GraphIndex
from recollect.errors import RecipeError, StoreError

DIM = 24
needs_usearch = pytest.mark.skipif(
    not graph_module.available(), reason="usearch is not installed (pip install recollect[answers])"
)


def unit(count, seed=0):
    rows = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def growing(dim, encoder_id):
    return GrowingIndex(dim, encoder_id, exact_below=40, background=False)


@pytest.fixture(
    params=[
        FlatIndex,
        pytest.param(GraphIndex, marks=needs_usearch),
        pytest.param(growing, marks=needs_usearch),
    ],
    ids=["flat", "graph", "growing"],
)
def make(request):
    return lambda: request.param(DIM, "enc-1")


def test_nothing_is_found_in_an_empty_index(make):
    assert make().search(unit(1)[0], 3) == []


def test_nearest_come_first_with_their_cosines(make):
    index, vectors = make(), unit(120)
    for at, vector in enumerate(vectors):
        index.add(1000 + at, vector)
    query = unit(1, seed=9)[0]
    found = index.search(query, 5)
    cosines = vectors @ query
    expected = np.argsort(-cosines)[:5]
    assert [n.entry_id - 1000 for n in found] == expected.tolist()
    np.testing.assert_allclose([n.similarity for n in found], cosines[expected], atol=1e-3)


def test_more_neighbours_than_entries_are_all_entries(make):
    index = make()
    for at, vector in enumerate(unit(3)):
        index.add(at, vector)
    assert {n.entry_id for n in index.search(unit(1)[0], 10)} == {0, 1, 2}


def test_a_removed_entry_is_never_found_again(make):
    index, vectors = make(), unit(60)
    for at, vector in enumerate(vectors):
        index.add(at, vector)
    for at in range(0, 60, 2):
        index.remove(at)
        index.remove(at)  # twice is no error
    assert len(index) == 30
    assert 0 not in index
    assert 1 in index
    for at, vector in enumerate(vectors):
        found = {n.entry_id for n in index.search(vector, 30)}
        assert all(entry_id % 2 for entry_id in found)
        assert at % 2 == 0 or at in found


def test_adding_under_a_known_id_replaces_the_vector(make):
    index, (old, new) = make(), unit(2)
    index.add(7, old)
    index.add(7, new)
    assert len(index) == 1
    assert index.search(new, 1)[0].similarity == pytest.approx(1, abs=1e-3)


def test_bad_vectors_are_refused(make):
    with pytest.raises(RecipeError, match="takes vectors of 24 numbers"):
        make().add(1, np.ones(3, np.float32))
    with pytest.raises(RecipeError, match="not finite"):
        make().search(np.full(DIM, np.nan, np.float32), 1)


@pytest.fixture(params=[FlatIndex, pytest.param(GraphIndex, marks=needs_usearch)])
def kind(request):
    return request.param


def saved(kind, path):
    index, vectors = kind(DIM, "enc-1"), unit(50)
    for at, vector in enumerate(vectors):
        index.add(at, vector)
    index.remove(3)
    index.save(path)
    return vectors


def test_a_saved_index_finds_the_same(kind, tmp_path):
    vectors = saved(kind, tmp_path / "index")
    loaded = kind.load(tmp_path / "index", dim=DIM, encoder_id="enc-1")
    assert len(loaded) == 49
    assert 3 not in loaded
    assert loaded.search(vectors[5], 1)[0].entry_id == 5
    loaded.add(3, vectors[3])
    assert loaded.search(vectors[3], 1)[0].entry_id == 3


@pytest.mark.parametrize("wrong", [{"encoder_id": "enc-2"}, {"dim": 25}])
def test_an_index_of_another_encoder_is_refused(kind, tmp_path, wrong):
    saved(kind, tmp_path / "index")
    with pytest.raises(StoreError, match="rebuild it from the store"):
        kind.load(tmp_path / "index", **{"dim": DIM, "encoder_id": "enc-1"} | wrong)


def test_a_damaged_or_missing_index_is_refused(kind, tmp_path):
    saved(kind, tmp_path / "index")
    data = bytearray((tmp_path / "index").read_bytes())
    data[-100] ^= 1
    (tmp_path / "index").write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        kind.load(tmp_path / "index", dim=DIM, encoder_id="enc-1")
    (tmp_path / "index").write_bytes(data[:40])
    for name in ("index", "nothing"):
        with pytest.raises(StoreError, match="cannot read an index"):
            kind.load(tmp_path / name, dim=DIM, encoder_id="enc-1")


@needs_usearch
def test_growing_moves_from_exact_to_graph_and_back(tmp_path):
    index, vectors = growing(DIM, "enc-1"), unit(100)
    for at, vector in enumerate(vectors[:40]):
        index.add(at, vector)
    assert index.kind == "flat"
    index.add(40, vectors[40])
    assert index.kind == "graph"
    index.save(tmp_path / "index")
    loaded = GrowingIndex.load(tmp_path / "index", dim=DIM, encoder_id="enc-1")
    assert (loaded.kind, len(loaded)) == ("graph", 41)
    for at in range(30):
        index.remove(at)
    assert index.kind == "flat"
    assert len(index) == 11
    assert index.search(vectors[40], 1)[0].entry_id == 40


@needs_usearch
def test_a_graph_full_of_tombstones_is_built_anew():
    index, vectors = growing(DIM, "enc-1"), unit(200)
    for at, vector in enumerate(vectors):
        index.add(at, vector)
    for at in range(100):
        index.remove(at)
    assert index.kind == "graph"
    assert index._index.dead_share <= 0.2
    assert {n.entry_id for n in index.search(vectors[0], 100)} == set(range(100, 200))


@needs_usearch
def test_changes_made_while_a_graph_is_built_are_not_lost(monkeypatch):
    building, go = threading.Event(), threading.Event()
    extend = GraphIndex.extend

    def slowly(self, ids, vectors, stop=None):
        building.set()
        assert go.wait(10)
        extend(self, ids, vectors, stop)

    monkeypatch.setattr(GraphIndex, "extend", slowly)
    index, vectors = GrowingIndex(DIM, "enc-1", exact_below=40), unit(60)
    for at, vector in enumerate(vectors[:41]):
        index.add(at, vector)
    assert building.wait(10)
    index.add(50, vectors[50])
    index.remove(3)
    index.add(4, vectors[55])
    assert index.kind == "flat"
    go.set()
    index.wait()
    assert index.kind == "graph"
    assert len(index) == 41
    assert 3 not in index
    assert index.search(vectors[50], 1)[0].entry_id == 50
    assert index.search(vectors[55], 1)[0].entry_id == 4


@needs_usearch
def test_a_process_that_ends_while_a_graph_is_built_ends_well():
    program = """
import numpy as np
from recollect.answers.index import GrowingIndex
index, vectors = GrowingIndex(384, "e", exact_below=4096), np.eye(4097, 384, dtype=np.float32)
vectors[:, 0] += np.arange(4097)
for at, vector in enumerate(vectors):
    index.add(at, vector)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_without_usearch_an_index_stays_exact_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(graph_module, "available", lambda: False)
    index = growing(DIM, "enc-1")
    for at, vector in enumerate(unit(60)):
        index.add(at, vector)
    assert index.kind == "flat"
    assert caplog.text.count("pip install recollect[answers]") == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ar"), st.integers(0, 9), st.integers(0, 19))))
def test_flat_index_equals_a_dictionary(steps):
    index, model, vectors = FlatIndex(DIM, "enc-1"), {}, unit(20)
    for step, entry_id, which in steps:
        if step == "a":
            index.add(entry_id, vectors[which])
            model[entry_id] = vectors[which]
        else:
            index.remove(entry_id)
            model.pop(entry_id, None)
    found = dict(index.search(vectors[0], 20))
    assert found == pytest.approx({i: float(v @ vectors[0]) for i, v in model.items()}, abs=1e-5)
