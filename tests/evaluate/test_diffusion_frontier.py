"""The frontiers of trained models: what is measured, shown, and refused."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from recollect.cli import main
from recollect.diffusion import accelerated
from recollect.diffusion.masks import save_mask
from recollect.diffusion.profiles import record_each
from recollect.diffusion.sites import Modules
from recollect.errors import HostError, RecipeError, StoreError
from recollect.evaluate.diffusion import calibrated
from recollect.evaluate.diffusion.chart import MEASURES, against_flops, series
from recollect.evaluate.diffusion.frontier import FEWER, UNCACHED, Row, load, run, save
from recollect.evaluate.diffusion.operations import Operations
from recollect.evaluate.diffusion.page import page, write_page
from recollect.evaluate.diffusion.painters import Painter, painter
from recollect.evaluate.diffusion.settings import BY_KIND, KNOBS, NAMES, settings
from recollect.evaluate.diffusion.workbench import Workbench
from recollect.evaluate.diffusion.zoo_painters import (
    ControlPainter,
    EditPainter,
    ImagePainter,
    VideoPainter,
)
from recollect.evaluate.report import charts
from recollect.recipe import recipes
from recollect.zoo.control.task import World

STEPS = 6
ABOUT = {"model": "tiny-dit", "pictures": 2, "command": "recollect …", "versions": {"torch": "2"}}


@pytest.fixture(scope="module")
def rows():
    few = ("planned", "taylorseer", "fbcache")
    return list(run(ImagePainter("tiny-dit"), (STEPS,), ("euler",), 2, recipes=few, shown=2))


def test_uncached_pictures_are_their_own_measure(rows):
    (plain,) = (row for row in rows if row.recipe == UNCACHED)
    assert plain.flops == 1
    assert plain.measures["psnr"] == 100
    assert plain.measures["ssim"] == pytest.approx(1)
    assert plain.measures["perceptual"] == 0


def test_computation_is_counted_as_it_runs(rows):
    shares = {row.setting: row.flops for row in rows}
    assert shares["3 steps"] == pytest.approx(3 / STEPS, abs=1e-6)
    assert shares["planned, 3 steps"] == pytest.approx(3 / STEPS, abs=1e-6)
    # warm-up 2, then every second step: 0, 1, 3, 5
    assert shares["taylorseer 2"] == pytest.approx(4 / STEPS, abs=1e-6)
    cached = [row for row in rows if row.recipe not in (UNCACHED, FEWER)]
    assert all(row.bytes > 0 for row in cached)
    assert all(row.measures["psnr"] < 100 for row in cached if row.flops < 1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_operations_are_those_that_torch_counts_and_attention(mode):
    model, labels = ImagePainter("tiny-dit").target, torch.arange(2)
    given = {"timestep": torch.ones(2), "class_labels": labels}
    latent = torch.randn(2, 48, 4, 4)
    with mode(), Operations() as counted, FlopCounterMode(display=False) as torchs:
        model(latent, **given)
    blocks, tokens, width = 6, 16, 64
    attention = blocks * 2 * (2 * 2 * tokens * tokens * width)  # two products for two pictures
    assert counted.total == torchs.get_total_flops() + attention


def test_results_are_read_back(rows, tmp_path):
    save(tmp_path, ABOUT, rows)
    about, read = load(tmp_path)
    assert about == ABOUT
    assert read == rows
    with pytest.raises(StoreError, match="holds no frontier"):
        load(tmp_path / "nothing")


def test_the_page_holds_charts_pictures_and_all_numbers(rows, tmp_path):
    save(tmp_path, ABOUT, rows)
    html = write_page(tmp_path).read_text()
    for row in rows:
        assert row.setting in html
    assert html.count("data:image/png;base64,") == 2 * (
        1 + len({r.recipe for r in rows} - {UNCACHED})
    )
    assert html.count('<svg xmlns="http://www.w3.org/2000/svg" role="img"') == 2 * 5
    assert "http://" not in html.replace("http://www.w3.org/2000/svg", "")
    with pytest.raises(StoreError, match="no results yet"):
        page(ABOUT, [])


def test_samples_are_pictures(rows):
    data = base64.b64decode(rows[0].samples[0])
    assert data.startswith(b"\x89PNG")


def test_a_model_that_a_recipe_does_not_fit_is_told_in_its_row():
    class Plain(Painter):
        kind, name, solvers = "images", "plain", ("own",)

        def __init__(self):
            self.target = _Linear()

        @torch.no_grad()
        def draw(self, steps, solver, seed, count, sigmas=None):
            x = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
            for step in range(steps):
                x = x - 0.1 * self.target(x, torch.tensor(1 - step / steps))
            return x

    found = {row.recipe: row for row in run(Plain(), (4,), ("own",), 1, recipes=("reuse", "fora"))}
    assert found["reuse"].refused == ""
    assert "no blocks can be recognized" in found["fora"].refused


class _Linear(torch.nn.Module):
    """A denoiser without blocks."""

    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Conv2d(3, 3, 1)

    def forward(self, sample, timestep):
        return self.mix(sample) * timestep


def test_what_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="needs prompts"):
        painter(str(tmp_path))
    with pytest.raises(HostError, match="cannot load a pipeline"):
        painter(str(tmp_path), ("a lighthouse",))
    with pytest.raises(RecipeError, match="no range of settings is known for 'bca'"):
        list(run(ImagePainter("tiny-dit"), (2,), ("euler",), 1, recipes=("bca",)))


def bench(folder, draws=None) -> Workbench:
    return Workbench(draws or ImagePainter("tiny-dit"), STEPS, "euler", 1, folder)


def test_every_setting_is_one_of_a_recipe(tmp_path):
    bare = ("planned", "planned reuse", "reuse", "scm", *KNOBS)
    found = [setting for name in bare for setting in settings(bench(tmp_path), name)]
    assert {setting.recipe for setting in found} == set(bare)
    assert len({setting.name for setting in found}) == len(found)


def test_every_recipe_is_in_the_frontier_of_a_model():
    tried = {name for names in BY_KIND.values() for name in names}
    assert tried == set(NAMES)
    assert {recipe.name for recipe in recipes(area="diffusion")} <= tried


def test_a_router_in_the_folder_is_used_instead_of_trained(tmp_path, monkeypatch):
    draws = ImagePainter("tiny-dit")
    here = bench(tmp_path, draws)
    mask = torch.arange(STEPS)[:, None].expand(-1, 12) % 2 == 0
    modules = tuple(record_each(draws.target, here.run, Modules()))
    for share in (0.5, 0.35):
        path = here.path(f"harmonica-{share}.safetensors")
        save_mask(path, draws.target, mask, modules, here.trajectory.conditions, "harmonica", {})
    monkeypatch.setattr(calibrated, "train_router", None)
    found = run(draws, (STEPS,), ("euler",), 1, recipes=("harmonica",), artefacts=tmp_path)
    shares = [row.flops for row in found if row.recipe == "harmonica"]
    assert shares == pytest.approx([0.5, 0.5], abs=0.1)


def test_edits_are_measured_in_their_region():
    found = list(run(EditPainter("tiny-flux-edit"), (6,), ("euler",), 2, recipes=("regione",)))
    plain, cached = found[0], found[-1]
    assert (plain.measures["region"], plain.measures["recognized"]) == (100, 1)
    assert cached.refused == ""
    assert 0.3 < cached.flops < 1
    # What an edit may not change lies outside of its region, and nothing changes there.
    assert cached.measures["region"] < cached.measures["psnr"] < 100


def test_a_policy_is_measured_in_its_closed_loop():
    draws = ControlPainter("tiny-policy")
    plain = draws.draw(3, "ddpm", 0, 4)
    with accelerated(draws.target, "taylorseer", every=2, warmup=1):
        found = draws.judge(draws.draw(3, "ddpm", 0, 4), plain, 0)
    assert found["psnr"] < draws.judge(plain, plain, 0)["psnr"] == 100
    assert found["reached"] in (0, 0.25, 0.5, 0.75, 1)
    there = plain.clone()
    there[:, -1, :2] = World.draw(4, torch.Generator().manual_seed(0)).goal
    there[0, -1, 2] = 1  # met the wall
    assert draws.judge(there, plain, 0)["reached"] == 0.75
    assert draws.shown(plain, 0).shape == (4, 3, 64, 64)


def test_clips_are_shown_frame_beside_frame():
    draws = VideoPainter("tiny-video-dit")
    clips = draws.draw(2, "euler", 0, 2)
    found = draws.judge(clips, clips, 0)
    assert (found["psnr"], found["motion"]) == (100, 100)
    shown = draws.shown(clips, 0)
    assert shown.shape == (2, 3, 16, 8 * 16)
    assert torch.equal(shown[1, :, :, 16:32], clips[1, :, 1])


def test_equal_pictures_stand_at_the_edge_of_the_chart_and_do_not_stretch_it():
    def row(recipe: str, flops: float, decibels: float) -> Row:
        return Row("m", 6, "euler", recipe, recipe, flops, measures={"psnr": decibels})

    rows = [row("a", 0.3, 30.0), row("a", 0.5, 40.0), row("b", 0.9, 100.0)]
    measure = next(m for m in MEASURES if m.name == "psnr")
    drawn = against_flops(rows, measure, series(rows), charts.LARGE)
    assert "≥ 70" in drawn
    assert "identical" in drawn
    assert ">40.0<" in drawn
    assert ">60.0<" not in drawn
    assert "≥ 70" not in against_flops(rows[:2], measure, series(rows), charts.LARGE)


def test_the_commands_write_what_they_say(tmp_path):
    plan = tmp_path / "plan.yaml"
    given = ["--model", "tiny-dit", "--steps", "4", "--json"]
    done = CliRunner().invoke(
        main, ["plan-diffusion", *given, "--budget", "0.5", "--pictures", "1", "--out", str(plan)]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["trials"][0]["decibels"] == max(t["decibels"] for t in found["trials"])
    assert plan.is_file()
    done = CliRunner().invoke(
        main,
        ["eval-diffusion", *given, "--recipes", "reuse", "--pictures", "2", "--out", str(tmp_path)],
    )
    assert done.exit_code == 0, done.output
    assert {row["recipe"] for row in json.loads(done.stdout)["rows"]} == {
        "uncached",
        FEWER,
        "reuse",
    }
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan-diffusion", "--model", "tiny-dit", "--budget", "3"], "between 0 and 1"),
        (["plan-diffusion", "--model", "tiny-dit", "--solver", "heun"], "euler or dpm, not 'heun'"),
        (["eval-diffusion", "--model", "tiny-dit", "--steps", "few"], "takes whole numbers"),
        (["eval-diffusion", "--model", "nowhere"], "needs prompts"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, words):
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert words in done.output


def test_a_browser_shows_one_view_at_a_time(browser, rows, tmp_path):
    other = [replace(row, solver="dpm") for row in rows]
    save(tmp_path, ABOUT, [*rows, *other])
    browser.get(write_page(tmp_path).as_uri())
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []

    def shown(selector: str) -> int:
        return browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])]"
            ".filter(e => e.getBoundingClientRect().width > 0).length",
            selector,
        )

    pictures = shown(".samples img")
    assert pictures == 2 * (1 + len({r.recipe for r in rows} - {UNCACHED}))
    assert shown("#frontier figure") == 1
    assert shown("#numbers tbody tr") == len(rows)
    for name in ("6-dpm", "ssim"):
        browser.execute_script(
            "document.querySelector(`button[data-choose][value='${arguments[0]}']`).click()", name
        )
        assert shown("#frontier figure") == 1
        assert shown(".samples img") == pictures
