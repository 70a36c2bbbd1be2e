"""Head classes: an exact number of retrieval heads, those with the highest gates."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recollect.core.gates import head_classes


def test_the_lowest_gates_stream():
    alpha = torch.tensor([[0.9, 0.1], [0.2, 1.0]])
    assert head_classes(alpha, 0.5).tolist() == [[True, False], [False, True]]
    assert head_classes(alpha, 0.75).tolist() == [[False, False], [False, True]]


@pytest.mark.parametrize(("sparsity", "retrieval"), [(0.0, 6), (0.5, 3), (0.6, 2), (1.0, 0)])
def test_ties_do_not_change_the_number_and_the_first_heads_retrieve(sparsity, retrieval):
    found = head_classes(torch.ones(2, 3), sparsity)
    assert found.flatten().tolist() == [True] * retrieval + [False] * (6 - retrieval)


@given(st.integers(1, 8), st.integers(1, 8), st.floats(0, 1))
def test_retrieval_heads_never_exceed_their_share(layers, heads, sparsity):
    found = head_classes(torch.rand(layers, heads), sparsity)
    assert found.shape == (layers, heads)
    assert int(found.sum()) == math.floor((1 - sparsity) * layers * heads + 1e-9)
