"""The corpus, the tokenizer and the puzzles."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recollect import zoo
from recollect.errors import RecipeError
from recollect.zoo import corpus, needles, tokenizer
from recollect.zoo.mixture import ANSWER, Mixture, Text


@pytest.fixture(scope="module")
def tiny_tokenizer():
    texts = corpus.documents("held-out")
    return tokenizer.train(texts, vocabulary=600)


def test_no_file_is_in_both_parts():
    trained, held_out = set(corpus.files("train")), set(corpus.files("held-out"))
    assert trained
    assert held_out
    assert not trained & held_out


def test_the_split_depends_on_the_name_alone():
    assert [corpus.is_held_out(f"{n}.py") for n in range(1000)].count(True) in range(30, 80)
    assert corpus.is_held_out("abc.py") == corpus.is_held_out("abc.py")


def test_lines_put_together_are_the_documents():
    assert "".join(corpus.lines("held-out")) == "".join(corpus.documents("held-out"))


def test_no_key_word_is_in_both_parts():
    assert not set(needles.words("train")) & set(needles.words("held-out"))
    assert len(needles.words("held-out")) > 100


@given(st.text())
@settings(max_examples=50, deadline=None)
def test_decoding_gives_any_text_back(tiny_tokenizer, text):
    ids = tiny_tokenizer.encode(text, add_special_tokens=False)
    assert tiny_tokenizer.decode(ids) == text


def test_digits_and_newlines_are_tokens_of_their_own(tiny_tokenizer):
    tokens = tiny_tokenizer.tokenize("x 120\n\n    y")
    assert [t.replace("Ġ", " ").replace("Ċ", "\n") for t in tokens][1:6] == [
        " 1",
        "2",
        "0",
        "\n",
        "\n",
    ]


def test_tokens_of_a_text_are_the_tokens_of_its_lines(tiny_tokenizer):
    lines = corpus.lines("held-out")[:200]
    whole = tiny_tokenizer.encode("".join(lines), add_special_tokens=False)
    apart = tiny_tokenizer(list(lines), add_special_tokens=False)["input_ids"]
    assert whole == [token for ids in apart for token in ids]


@pytest.mark.parametrize("make", [needles.single, needles.multi_value, needles.variables])
def test_every_answer_can_be_found_in_what_is_planted(make):
    for seed in range(20):
        puzzle = make(random.Random(seed))
        for ask in puzzle.asks:
            key = ask.question.removeprefix("assert ")
            stated = next(line for line in puzzle.planted if line.startswith(f"# {key} "))
            first = ask.answer.split()[0]
            assert first == stated.split()[2]


def test_chains_of_names_are_planted_from_the_value_on():
    puzzle = needles.variables(random.Random(0), chains=1, hops=2)
    first, second, third = (line.split()[1:] for line in puzzle.planted)
    assert (second[1], third[1]) == (first[0], second[0])
    assert puzzle.asks[0].answer.split() == [second[0], first[0], first[1]]


def test_different_keys_end_differently_and_alike_keys_do_not():
    for seed in range(20):
        different = needles.distinct_keys(random.Random(seed), 8, "held-out")
        assert len({key.split("_")[1] for key in different}) == 8
        alike = needles.alike_keys(random.Random(seed), 8, "held-out")
        assert len(set(alike)) == 8
        assert len({key.split("_")[1] for key in alike}) <= 3


def test_burying_keeps_all_lines_in_their_order():
    lines, planted = [f"line {n}\n" for n in range(50)], ["# a 1\n", "# b 2\n", "# c 3\n"]
    text = needles.bury(planted, lines, random.Random(0)).splitlines(keepends=True)
    assert [line for line in text if line in planted] == planted
    assert [line for line in text if line not in planted] == lines


def test_a_batch_has_the_asked_shape_and_weighs_answers_most(tiny_tokenizer):
    text = Text.of("held-out", tiny_tokenizer)
    mixture = Mixture(tiny_tokenizer, text, random.Random(0))
    for length in (64, 256, 1024):
        ids, weights = mixture.batch(6, length, (0.3, 0.3, 0.4), hard=0.5)
        assert ids.shape == weights.shape == (6, length)
        assert ids.max() < tiny_tokenizer.vocab_size
    sequence = mixture.puzzle(256)
    answers = [i for i, w in zip(sequence.ids, sequence.weights, strict=True) if w == ANSWER]
    assert set(tiny_tokenizer.decode(answers)) <= set("0123456789 ")


def test_an_unknown_model_is_named_with_its_nearest_neighbour():
    with pytest.raises(RecipeError, match="did you mean 'tiny-llama'"):
        zoo.path("tiny-lama")
