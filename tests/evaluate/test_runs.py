"""A whole run on a tiny random model."""

from __future__ import annotations

import pytest

from recollect.errors import HostError, RecipeError, StoreError
from recollect.evaluate import runs, summary
from recollect.evaluate import subject as subjects
from recollect.evaluate.asking import ask
from recollect.evaluate.caches import Variant, split_recipes, variants
from recollect.evaluate.runs import Settings, make_case

SMALL = Settings(
    recipes=("knorm",),
    keeps=(0.5,),
    tasks=("needle-keys", "perplexity"),
    lengths=(160,),
    seeds=1,
    cases=2,
    decode_steps=2,
    speed_rounds=1,
)


@pytest.fixture(scope="module")
def finished(subject, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, runs.run(subject, SMALL, folder, command="recollect eval")


def test_everything_is_measured_once(finished):
    _, records = finished
    variants_, cells = 3, 2 * 2 * 2
    assert len([r for r in records if r["kind"] == "case"]) == variants_ * cells
    assert len([r for r in records if r["kind"] == "speed"]) == variants_


def test_a_finished_run_measures_nothing_again(finished, subject, monkeypatch):
    folder, records = finished
    monkeypatch.setattr(runs, "ask", None)
    monkeypatch.setattr(runs.speed, "rounds", None)
    assert runs.run(subject, SMALL, folder) == records


def test_a_stopped_run_goes_on_where_it_was(finished, subject, tmp_path):
    folder, records = finished
    lines = (folder / "results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run.json").write_text((folder / "run.json").read_text())
    (tmp_path / "results.jsonl").write_text("".join(lines[:7]) + lines[7][:20])
    again = runs.run(subject, SMALL, tmp_path)
    assert len(again) == len(records)
    assert [runs._key(r) for r in again] == [runs._key(r) for r in records]
    for old, new in zip(records, again, strict=True):
        assert new.get("metrics") == pytest.approx(old.get("metrics"))


def test_the_full_cache_is_the_host_cache(finished):
    _, records = finished
    for metric in ("tokens", "logprob", "kl"):
        its = {
            p.variant.recipe: p.value
            for p in summary.points(records, metric=metric, mode="agnostic")
        }
        assert its["full"].mean == pytest.approx(its["host"].mean, abs=1e-5)


def test_dropping_half_holds_about_half_the_bytes(finished):
    _, records = finished
    (half,) = [
        p
        for p in summary.points(records, metric="kl", mode="agnostic")
        if p.variant == Variant("knorm", 0.5)
    ]
    assert 0.45 < half.bytes_ratio < 0.75
    assert half.value.mean > 0


def test_speeds_are_ratios_to_the_host_of_the_same_round(finished):
    _, records = finished
    by_recipe = {s.variant.recipe: s for s in summary.speeds(records)}
    assert by_recipe["host"].decode.mean == 1.0
    assert by_recipe["knorm"].decode.mean > 0


def test_kept_tokens_are_noted_by_layer_and_head(finished, subject):
    _, records = finished
    seen, kept = summary.kept(records, "agnostic")[Variant("knorm", 0.5)]
    assert len(kept) == subject.model.config.num_hidden_layers
    assert all(len(row) == subject.model.config.num_key_value_heads for row in kept)
    assert all(0 < count < seen for row in kept for count in row)


@pytest.mark.parametrize("task", ["needle-keys", "turns"])
@pytest.mark.parametrize("mode", ["agnostic", "aware"])
def test_teacher_forcing_sees_what_one_plain_forward_pass_sees(subject, encoder, task, mode):
    import torch

    case = make_case(encoder, task, 160, 0, 0)
    answers = ask(subject, Variant("host", 1.0), case, mode)
    past = case.context_ids
    for question, logits in zip(case.questions, answers.logits, strict=True):
        ids = torch.cat([past, question.ids, question.answer_ids])
        with torch.no_grad():
            plain = subject.model(ids[None]).logits[0, -len(question.answer_ids) - 1 : -1]
        torch.testing.assert_close(logits, plain, atol=1e-4, rtol=1e-4)
        past = ids if case.turns else past


def test_other_settings_in_the_same_folder_are_refused(finished, subject):
    folder, _ = finished
    with pytest.raises(StoreError, match="cases=2, not 3"):
        runs.run(subject, Settings(**{**vars(SMALL), "cases": 3}), folder)


def test_a_context_longer_than_the_model_s_is_refused(subject, tmp_path):
    with pytest.raises(HostError, match="lower --length"):
        runs.run(subject, Settings(recipes=("knorm",), lengths=(4000,)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tasks": ("nedle",)}, "did you mean 'needle'"),
        ({"modes": ("blind",)}, "unknown mode"),
        ({"seeds": 0}, "at least 1"),
        ({"lengths": (8,)}, "at least 64"),
    ],
)
def test_wrong_settings_are_one_line(arguments, words):
    with pytest.raises(RecipeError, match=words):
        Settings(recipes=("knorm",), **arguments)


def test_recipes_that_drop_nothing_are_there_once():
    found = variants(["full", "kivi", "snapkv"], [0.5, 0.25])
    assert found == [
        Variant("host", 1.0), Variant("full", 1.0), Variant("kivi", 1.0),
        Variant("snapkv", 0.5), Variant("snapkv", 0.25),
    ]  # fmt: skip


def test_commas_in_brackets_do_not_split_recipes():
    assert split_recipes("a, b(x=1, y=2),c + d(z=3)") == ["a", "b(x=1, y=2)", "c + d(z=3)"]


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "tiny-lama"])
def test_a_missing_checkpoint_is_one_line(name):
    with pytest.raises(HostError, match="no checkpoint at"):
        subjects.load(name)


def test_a_broken_checkpoint_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_text("not safetensors")
    with pytest.raises(HostError) as caught:
        subjects.load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_folder_loads(checkpoint, subject):
    loaded = subjects.load(str(checkpoint))
    assert loaded.describe()["fingerprint"] == subject.describe()["fingerprint"]
