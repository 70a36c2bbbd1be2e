"""The report: everything inside one file, and charts that a real browser draws."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import pytest
from invented import RECIPES, TASKS, write_run

from recollect.errors import RecipeError, StoreError
from recollect.evaluate import results, summary
from recollect.evaluate.metrics import METRICS
from recollect.evaluate.report import write_page, write_still
from recollect.evaluate.report.findings import tiles
from recollect.evaluate.report.svg import Scale, ticks

POINTS = 3 * len(RECIPES)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("invented"))


@pytest.fixture(scope="module")
def html(run):
    return write_page(run).read_text(encoding="utf-8")


def test_the_page_loads_nothing_from_anywhere(html):
    assert not re.search(r"<(script|img|iframe|source|video|audio)[^>]+\bsrc=", html)
    assert re.findall(r"<link[^>]*>", html) == ['<link rel="icon" href="data:,">']
    assert "@import" not in html
    assert "url(" not in html
    assert "fetch(" not in html


def test_every_recipe_task_and_paper_is_named(html):
    for recipe in RECIPES:
        assert recipe in html
    for words in ("One needle among eight", "Perplexity of a continuation", "arxiv.org/abs/"):
        assert words in html
    assert "recollect eval --model invented" in html


def test_names_are_escaped(tmp_path):
    folder = write_run(tmp_path, {"knorm": (0.5, 0.5)}, seeds=1, cases=1)
    about = json.loads((folder / "run.json").read_text())
    about["model"]["name"] = "<script>alert(1)</script>"
    (folder / "run.json").write_text(json.dumps(about))
    assert "<script>alert" not in write_page(folder).read_text()


def test_a_run_without_timing_has_no_speed_chart(tmp_path):
    folder = write_run(tmp_path, {"knorm": (0.5, 0.5)}, seeds=1, cases=1, timed=False)
    assert 'id="speed"' not in write_page(folder).read_text()


def test_a_run_without_results_is_told(tmp_path):
    folder = write_run(tmp_path)
    (folder / "results.jsonl").write_text("")
    with pytest.raises(StoreError, match="no results yet"):
        write_page(folder)


def test_the_still_picture_is_well_formed_and_complete(run, tmp_path):
    root = ElementTree.parse(write_still(run, tmp_path / "docs" / "frontier.svg")).getroot()
    kinds = [element.get("class") for element in root.iter()]
    assert kinds.count("series") == len(RECIPES)
    assert kinds.count("mark") == POINTS + len(RECIPES)  # the legend has one of each
    with pytest.raises(RecipeError, match="unknown metric"):
        write_still(run, tmp_path / "x.svg", metric="speed")


def test_tiles_name_the_best_small_cache(run):
    _, records = results.read(run)
    found = tiles(records, summary.speeds(records), "tokens")
    assert "question in view" in found[1].title
    assert "adakv" in found[1].words or "kivi" in found[1].words


def test_scales_and_ticks():
    scale = Scale(0.1, 1.0, 0.0, 100.0, log=True)
    assert scale(0.1) == 0.0
    assert scale(1.0) == 100.0
    assert scale(0.1**0.5) == pytest.approx(50.0)
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


@pytest.fixture
def opened(browser, run, html):
    browser.get((run / "report.html").as_uri())
    return browser


def shown(browser, selector: str) -> int:
    """How many elements of a selector have a size on the screen."""
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])]"
        ".filter(e => e.getBoundingClientRect().width > 0).length",
        selector,
    )


def requests(browser) -> list[str]:
    """Addresses the page asked for."""
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
        and message["params"]["documentURL"].startswith("file:")  # not the browser's start page
    ]


def test_a_browser_draws_every_chart(opened):
    assert shown(opened, "#quality path.mark") == POINTS + len(RECIPES)
    assert shown(opened, "#tasks path.mark") == POINTS * len(TASKS)
    assert shown(opened, "#speed path.mark") == POINTS
    assert shown(opened, "#kept rect.cell") == POINTS * 4 * 3
    assert shown(opened, "#numbers tbody tr") == POINTS + 2


def test_a_browser_reports_no_errors_and_no_requests(opened):
    assert [entry for entry in opened.get_log("browser") if entry["level"] == "SEVERE"] == []
    addresses = requests(opened)
    assert addresses
    assert all(url.startswith(("file:", "data:")) for url in addresses)


def test_modes_and_metrics_switch_every_chart(opened):
    press = "document.querySelector(`button[data-choose][value=${arguments[0]}]`).click()"
    first = opened.execute_script("return document.querySelector('#quality figure').innerHTML")
    for metric in METRICS:
        for mode in ("agnostic", "aware"):
            opened.execute_script(press, metric)
            opened.execute_script(press, mode)
            assert shown(opened, "#quality figure") == 1
            tasks = len(TASKS) - (metric == "exact")
            assert shown(opened, "#tasks path.mark") == POINTS * tasks
    visible = opened.execute_script(
        "return [...document.querySelectorAll('#quality figure')].find(f => !f.hidden).innerHTML"
    )
    assert visible != first


def test_the_legend_hides_a_recipe_and_a_mark_tells_its_numbers(opened):
    opened.execute_script("document.querySelector('.legend button[value=knorm]').click()")
    assert shown(opened, "#quality .series path.mark") == POINTS - 3
    told = opened.execute_script(
        "document.querySelector('#quality .series path.mark')"
        ".dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));"
        "return document.getElementById('tip').textContent"
    )
    assert "bytes: " in told
    assert "of the host's" in told


def test_tables_sort(opened):
    order = opened.execute_script(
        "const table = document.querySelector('#numbers table');"
        "table.querySelectorAll('th button')[3].click();"
        "return [...table.tBodies[0].rows].map(row => Number(row.cells[3].dataset.value))"
    )
    assert order == sorted(order, reverse=True)


def test_nothing_is_wider_than_a_phone(opened):
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    opened.refresh()
    assert opened.execute_script("return document.documentElement.scrollWidth") <= 390
    assert shown(opened, "#quality .series path.mark") == POINTS
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
