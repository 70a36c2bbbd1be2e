"""The dashboard in a real browser: figures as they are, text as text, nothing from elsewhere."""

from __future__ import annotations

import json
import os
import re

import pytest
from servers import settle
from test_front import CHAT, HTTP, post

from recollect.gateway.config import Budget, Key, Price, fingerprint
from recollect.gateway.dashboard import page
from recollect.gateway.incontext import ExamplesConfig, Served

EVIL = "<img src=x onerror=alert(1)>"


def test_the_page_loads_nothing_from_anywhere(start):
    html = page()
    assert not re.search(r"<(script|img|iframe|source)[^>]+\bsrc=", html)
    assert re.findall(r"<link[^>]*>", html) == ['<link rel="icon" href="data:,">']
    assert "url(" not in html
    assert "@import" not in html
    assert "innerHTML" not in html, "text from requests must enter as text"
    address, _ = start()
    policy = HTTP.get(f"{address}/recollect").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    home = HTTP.get(address)
    assert (home.status_code, home.headers["location"]) == (307, "/recollect")


def until(browser, script):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 20).until(lambda b: b.execute_script(f"return {script}"))


def texts(browser, selector):
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
    )


@pytest.fixture
def opened(start, upstream, browser):
    """A gateway that has something to show, and its page."""
    address, _ = start(
        admin_key="root",
        prices={"*": Price(2, 10)},
        keys=(Key(fingerprint("sk-a"), "acme", "alice", budget=Budget(tokens=1000)),),
    )
    for seed, (category, repeats) in enumerate((("facts", 4), ("code", 1), (EVIL, 1))):
        for _ in range(repeats):
            ask = {**CHAT, "seed": seed}
            post(address, ask, key="sk-a", **{"x-recollect-category": category})
    post(address, {**CHAT, "store": True}, key="sk-a")
    settle()
    browser.get("about:blank")
    browser.get(f"{address}/recollect#key=root")
    until(browser, "!document.getElementById('figures').hidden")
    return address


def test_figures_are_shown(opened, browser):
    tiles = dict(
        zip(texts(browser, ".tile span:first-child"), texts(browser, ".tile b"), strict=True)
    )
    assert tiles["Requests"] == "7"
    assert tiles["Answered without generating"] == "42.9 %"
    assert tiles["Tokens saved"] == "36"
    rows = [texts(browser, f"#categories tbody tr:nth-child({i}) > *") for i in (1, 2, 3, 4)]
    by_name = {row[0]: row[1:3] for row in rows}
    assert by_name["facts"] == ["4", "75 %"]
    assert by_name["code"] == ["1", "0 %"]
    assert by_name[EVIL] == ["1", "0 %"]
    decisions = texts(browser, "#latest tbody tr td:nth-child(2)")
    assert decisions[0] == "not cached"
    assert decisions.count("same request") == 3
    assert all(why != "–" for why in texts(browser, "#latest tbody tr td:nth-child(3)"))
    assert len(texts(browser, "#accounts tbody tr")) == 1
    folder = os.environ.get("RECOLLECT_SCREENSHOTS")
    if folder:
        browser.save_screenshot(f"{folder}/dashboard.png")


def test_text_from_requests_stays_text(opened, browser):
    assert browser.execute_script("return document.querySelectorAll('main img').length") == 0


def test_nothing_fails_and_nothing_is_asked_of_others(opened, browser):
    errors = [e for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    assert [e for e in errors if "401" not in e["message"]] == []
    asked = [
        message["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"]
        == "Network.requestWillBeSent"
        and message["params"]["documentURL"].startswith(opened)
    ]
    assert asked
    assert all(url.startswith((opened, "data:")) for url in asked)


def test_the_key_leaves_the_address_and_a_wrong_one_is_told(opened, browser):
    assert browser.current_url == f"{opened}/recollect"
    browser.execute_script("sessionStorage.clear()")
    browser.get("about:blank")
    browser.get(f"{opened}/recollect")
    assert until(browser, "!document.getElementById('door').hidden")
    for key, shown in (("wrong", "#refused"), ("root", "#figures")):
        browser.execute_script(
            "document.getElementById('key').value = arguments[0];"
            "document.querySelector('#door button').click()", key
        )  # fmt: skip
        until(browser, f"!document.querySelector('{shown}').hidden")
    assert browser.execute_script("return document.getElementById('door').hidden")


def test_figures_refresh_until_paused(opened, browser):
    post(opened, {**CHAT, "seed": 99}, key="sk-a")
    until(browser, "document.querySelector('.tile b').textContent === '8'")
    browser.execute_script("document.getElementById('pause').click()")
    pressed = "return document.getElementById('pause').getAttribute('aria-pressed')"
    assert browser.execute_script(pressed) == "true"


def test_the_page_can_be_read_without_seeing_it(opened, browser):
    unnamed = browser.execute_script(
        "return [...document.querySelectorAll('input,button,section,[role=region],[role=img]')]"
        ".filter(e => !(e.textContent.trim() || e.getAttribute('aria-label') || "
        "e.getAttribute('aria-labelledby') || (e.labels && e.labels.length))).length"
    )
    assert unnamed == 0
    heads = "return [...document.querySelectorAll('th')].every(h => h.scope)"
    assert browser.execute_script(heads)
    assert browser.execute_script("return document.documentElement.lang") == "en"


def test_the_split_between_models_is_shown_where_there_is_one(opened, start, browser):
    assert browser.execute_script("return document.getElementById('split').hidden")
    models = (Served("small"), Served("large", 8, strong=True))
    arguments = {"explore": False, "cost_price": 10.0}
    examples = ExamplesConfig(models=models, encoder="ngram", arguments=arguments)
    address, _ = start(admin_key="root", examples=examples)
    for model in ("large", "auto"):
        answer = post(address, {**CHAT, "model": model})
    told = {"answer": answer.headers["x-recollect-answer"], "quality": 0.5}
    headers = {"authorization": "Bearer alice"}
    HTTP.post(f"{address}/recollect/feedback", json=told, headers=headers)
    browser.get("about:blank")
    browser.get(f"{address}/recollect#key=root")
    until(browser, "!document.getElementById('split').hidden")
    cells = texts(browser, "#routed tbody th, #routed tbody td")
    assert cells[:5] == ["small", "1", "100 %", "100 %", "1"]
    assert cells[6:] == ["1", "0.50"]
    assert "1 past answers" in texts(browser, "#examples")[0]


def test_nothing_is_wider_than_a_phone(opened, browser):
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.refresh()
    until(browser, "!document.getElementById('figures').hidden")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
