"""Past answers as examples for a smaller model: routed, shown, rated and replayed per tenant."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from servers import gateway_before, settle, usual, wait_until
from starlette.responses import JSONResponse
from test_admin import ADMIN, KEYS, figures, kind, purge
from test_front import HTTP, anthropic_client, openai_client, post

from recollect.answers import ManualClock
from recollect.answers.examples.prompt import BAR, CLOSING
from recollect.errors import GatewayError
from recollect.gateway.config import GatewayConfig, build_config
from recollect.gateway.gateway import Gateway
from recollect.gateway.incontext import ExamplesConfig, Served
from recollect.gateway.incontext.judge import grade

QUESTION = "How do I reset my password?"
ALIKE = "How can I reset my password?"
MODELS = (Served("small", 1), Served("large", 8, strong=True))
FRUGAL = {"explore": False, "cost_price": 10.0, "load_smoothing": 1.0}  # always the small model


def asking(text=QUESTION, model="auto", **more):
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


@pytest.fixture
def routed(start):
    """A gateway with examples; settings of the gateway's own come as `gateway`."""

    def make(gateway=None, **settings):
        settings = {"models": MODELS, "encoder": "ngram", "arguments": FRUGAL, **settings}
        return start(examples=ExamplesConfig(**settings), admin_key="root", **(gateway or {}))

    return make


@pytest.fixture
def taught(routed):
    """One whose large model has answered Alice's question before."""

    def make(gateway=None, key="alice", **settings):
        address, parts = routed(gateway, **settings)
        assert kind(post(address, asking(model="large"), key=key)) == "miss"
        return address, parts

    return make


def test_the_name_to_be_routed_is_listed_with_the_upstreams_models(routed, start):
    def models(address):
        listed = HTTP.get(f"{address}/v1/models", headers={"authorization": "Bearer alice"})
        return [one["id"] for one in listed.json()["data"]]

    assert models(routed()[0]) == [*models(start()[0]), "auto"]


def rate(address, answer, quality, key="alice"):
    told = {"answer": answer.headers["x-recollect-answer"], "quality": quality}
    headers = {"authorization": f"Bearer {key}"}
    return HTTP.post(f"{address}/recollect/feedback", json=told, headers=headers)


def sent(upstream):
    return json.loads(upstream.bodies[-1])


def test_a_past_answer_of_the_large_model_is_shown_to_the_small_one(taught, upstream):
    address, _ = taught()
    told = sent(upstream)
    assert told == asking(model="large")
    ask = asking(ALIKE, seed=7, temperature=0.10)
    answer = post(address, ask)
    assert kind(answer) == "miss"
    assert answer.headers["x-recollect-model"] == "small"
    assert answer.headers["x-recollect-examples"] == "1"
    went = sent(upstream)
    prompt = went["messages"][-1]["content"]
    assert went == {**ask, "model": "small", "messages": [{"role": "user", "content": prompt}]}
    assert prompt.endswith(f"{CLOSING}\n{ALIKE}")
    assert BAR + QUESTION in prompt
    assert BAR + "answer 1 to " in prompt
    assert b'"temperature":0.1' in upstream.bodies[-1].replace(b" ", b"")


def test_the_answer_is_stored_under_what_the_client_asked(taught, upstream):
    address, _ = taught()
    first, again = post(address, asking(ALIKE)), post(address, asking(ALIKE))
    assert (kind(first), kind(again)) == ("miss", "hit")
    assert first.content == again.content
    assert "x-recollect-examples" not in again.headers
    assert kind(post(address, asking(ALIKE, model="small"))) == "miss"
    assert "quoted" not in upstream.bodies[-1].decode(), "who names a model gets that model"


def test_the_clients_read_routed_answers(taught, upstream):
    address, _ = taught()
    client = openai_client(address)
    raw = client.chat.completions.with_raw_response.create(**asking(ALIKE))
    assert raw.headers["x-recollect-model"] == raw.parse().model == "small"
    stream = list(client.chat.completions.create(**asking(ALIKE, stream=True)))
    assert BAR in sent(upstream)["messages"][-1]["content"]
    settle()
    replayed = list(client.chat.completions.create(**asking(ALIKE, stream=True)))
    texts = ["".join(c.choices[0].delta.content or "" for c in s) for s in (stream, replayed)]
    assert texts[0] == texts[1] != ""
    made = client.responses.create(model="auto", input=ALIKE, store=False)
    assert (made.model, BAR in str(sent(upstream)["input"])) == ("small", True)
    ask = asking(ALIKE, max_tokens=9)
    message = anthropic_client(address).messages.create(**ask)
    assert message.model == "small"
    assert BAR in sent(upstream)["messages"][-1]["content"]


def test_examples_never_cross_callers_or_tenants(taught, upstream):
    address, parts = taught({"keys": KEYS, "scope": "tenant"}, key="sk-alice")
    assert post(address, asking(ALIKE), key="sk-bob").headers["x-recollect-examples"] == "1"
    assert post(address, asking(ALIKE), key="sk-carol").headers["x-recollect-examples"] == "0"
    assert QUESTION not in upstream.bodies[-1].decode()
    assert parts.routes.figures()["tenants"] == 2
    own, _ = taught()
    assert post(own, asking(ALIKE), key="alice").headers["x-recollect-examples"] == "1"
    assert post(own, asking(ALIKE), key="bob").headers["x-recollect-examples"] == "0"
    assert post(own, asking(ALIKE), key=None).headers["x-recollect-examples"] == "0"


def test_feedback_of_one_tenant_teaches_no_other(routed, upstream):
    address, parts = routed({"keys": KEYS, "scope": "tenant"})
    answers = {key: post(address, asking(), key=key) for key in ("sk-alice", "sk-carol")}
    assert rate(address, answers["sk-alice"], 1, "sk-carol").status_code == 404
    assert rate(address, answers["sk-alice"], 1, "sk-alice").json() == {"learned": True}
    learned = [
        sum(one["observations"] for one in cache.router.state()["quality"].values())
        for cache in parts.routes.caches
    ]
    assert sorted(learned) == [0, 1]
    assert rate(address, answers["sk-alice"], 1, "sk-alice").status_code == 404, "once"


def test_a_badly_rated_answer_is_neither_shown_nor_served_again(start, upstream):
    arguments = {"explore": False, "cost_price": 0.0}
    examples = ExamplesConfig(models=MODELS[1:], encoder="ngram", arguments=arguments)
    address, parts = start(examples=examples)
    answer = post(address, asking())
    assert (answer.headers["x-recollect-model"], len(parts.routes)) == ("large", 1)
    assert rate(address, answer, 0.1).status_code == 200
    assert len(parts.routes) == 0
    assert kind(post(address, asking())) == "miss"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"answer": 7, "quality": 1}',
        b'{"answer": "x"}',
        b'{"answer": "x", "quality": 2}',
        b'{"answer": "x", "quality": true}',
    ],
)
def test_feedback_that_is_not_understood_is_refused(routed, body):
    address, _ = routed()
    answer = HTTP.post(f"{address}/recollect/feedback", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_what_must_not_be_stored_is_never_an_example(routed, upstream):
    address, parts = routed()
    for headers in ({"cache-control": "no-store"}, {"x-recollect-cache": "bypass"}):
        post(address, asking(model="large"), **headers)
    post(address, asking(model="large"), key=None)
    upstream.answer = lambda request, asked: JSONResponse({"error": {"message": "no"}}, 500)
    post(address, asking(model="large"))

    def cut_off(request, asked):
        document = usual("/v1/chat/completions", asked, 1)
        document["choices"][0]["finish_reason"] = "length"
        return document

    upstream.answer = cut_off
    post(address, asking(model="large"))
    assert len(parts.routes) == 0


def test_who_asks_for_a_fresh_answer_gets_one_without_examples(taught, upstream):
    address, _ = taught()
    answer = post(address, asking(ALIKE), **{"cache-control": "no-cache"})
    assert answer.headers["x-recollect-examples"] == "0"
    assert sent(upstream) == asking(ALIKE, model="small")


def test_what_lives_at_a_provider_always_goes_to_the_same_model(routed, upstream):
    address, _ = routed()
    for more in ({"store": True}, {"store": False, "previous_response_id": "r"}):
        answer = post(address, {"model": "auto", "input": "hi", **more}, "/v1/responses")
        assert (kind(answer), sent(upstream)["model"]) == ("bypass", "large")


@pytest.mark.parametrize("status", [400, 413])
def test_examples_that_are_too_much_for_a_model_are_left_out(taught, upstream, status):
    address, _ = taught()

    def answer(request, asked):
        if BAR in asked["messages"][-1]["content"]:
            error = {"message": "longer than the context", "type": "x", "param": None, "code": None}
            return JSONResponse({"error": error}, status)
        return usual("/v1/chat/completions", asked, upstream.total)

    upstream.answer = answer
    found = post(address, asking(ALIKE))
    assert (found.status_code, found.headers["x-recollect-examples"]) == (200, "0")
    assert sent(upstream) == asking(ALIKE, model="small")
    assert kind(post(address, asking(ALIKE))) == "hit"
    assert rate(address, found, 1).status_code == 404, "nothing is to be learned from it"
    upstream.answer = lambda request, asked: JSONResponse({"error": {"message": "no"}}, status)
    assert post(address, asking("what else?")).status_code == status


def test_a_folder_that_cannot_be_made_is_told_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    examples = ExamplesConfig(models=MODELS, encoder="ngram", folder=str(tmp_path / "file/folder"))
    with pytest.raises(GatewayError, match="cannot make"):
        Gateway(GatewayConfig("http://up", examples=examples))


def test_a_busy_large_model_gets_fewer_requests(start, upstream):
    arguments = {"load_smoothing": 1.0, "load_threshold": 0.5, "load_price": 1e6}
    examples = ExamplesConfig(models=MODELS, encoder="ngram", arguments=arguments)
    address, parts = start(examples=examples, target_requests=2)
    cache = parts.routes._of("all")
    for number in range(40):
        used = cache.prepare(asking(f"question {number}"), scope_id="x").used
        cache.observe(used, quality=float(used.model.strong))
    calm = [post(address, asking(f"calm {n}")).headers["x-recollect-model"] for n in range(8)]
    parts.load(parts.config.address("large", "chat")).in_flight = 2
    busy = [post(address, asking(f"busy {n}")).headers["x-recollect-model"] for n in range(8)]
    assert calm.count("large") >= 6
    assert busy == ["small"] * 8


def test_identical_requests_at_once_are_planned_once(taught, upstream):
    address, gateway = taught()
    upstream.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(post, address, asking(ALIKE)) for _ in range(8)]
        wait_until(lambda: gateway.flights.travellers == 8)
        upstream.gate.set()
        answers = [one.result() for one in waiting]
    assert len({answer.headers["x-recollect-answer"] for answer in answers}) == 1
    assert {answer.headers["x-recollect-examples"] for answer in answers} == {"1"}
    assert upstream.total == 2


def test_purging_reaches_examples_and_their_file(taught, tmp_path, upstream):
    address, parts = taught({"keys": KEYS}, key="sk-alice", folder=str(tmp_path))
    post(address, asking(model="large"), key="sk-carol")
    assert purge(address, scope='["acme", "alice"]')["examples"] == 1
    assert len(parts.routes) == 2
    assert purge(address, writer='["acme", "alice"]', dry_run=False)["examples"] == 1
    assert post(address, asking(ALIKE), key="sk-alice").headers["x-recollect-examples"] == "0"
    key = next(example.key for cache in parts.routes.caches for example in cache.manager)
    assert purge(address, key=key, dry_run=False)["examples"] == 1
    assert len(list(tmp_path.glob("*.npz"))) == 2
    assert not any(QUESTION.encode() in path.read_bytes() for path in tmp_path.glob("*.npz"))


def test_examples_survive_a_restart_and_expire(tmp_path, upstream_server):

    clock = ManualClock(1_000_000.0)
    examples = ExamplesConfig(
        models=MODELS, encoder="ngram", arguments=FRUGAL, folder=str(tmp_path), ttl=100.0
    )
    settings = {"examples": examples, "clock": clock}
    with gateway_before(upstream_server[1], **settings) as (address, _):
        post(address, asking(model="large"))
    with gateway_before(upstream_server[1], **settings) as (address, parts):
        assert post(address, asking(ALIKE)).headers["x-recollect-examples"] == "1"
        clock.advance(101)
        parts.routes.expire()
        assert len(parts.routes) == 0


def test_a_damaged_file_of_examples_is_told_at_the_start(tmp_path):
    (tmp_path / "all.npz").write_bytes(b"no examples")
    examples = ExamplesConfig(models=MODELS, encoder="ngram", folder=str(tmp_path))
    with pytest.raises(GatewayError, match="cannot read examples"):
        Gateway(GatewayConfig(upstream="http://up", examples=examples))


def judging(upstream, grades):
    """The upstream's large model grades answers, and answers replays."""

    def answer(request, asked):
        text = asked["messages"][-1]["content"]
        document = usual("/v1/chat/completions", asked, upstream.total)
        if text.startswith("Grade an answer."):
            found = next(value for words, value in grades.items() if words in text)
            document["choices"][0]["message"]["content"] = f"I say {found}/10."
        elif asked["model"] == "large":
            document["choices"][0]["message"]["content"] = "press the red button"
        return document

    upstream.answer = answer


def test_a_judge_rates_answers_worth_rating_and_replay_keeps_the_better(taught, upstream):
    address, parts = taught(judge="large", replay_seconds=0)
    judging(upstream, {"red button": 9, "small": 1, "| answer": 2})
    assert post(address, asking(ALIKE)).headers["x-recollect-feedback"] == "wanted"
    routed_to = {row["model"]: row for row in figures(address)["routed"]}
    assert (routed_to["small"]["rated"], routed_to["small"]["quality"]) == (1, 0.2)
    spent = figures(address)["spent"]["tokens"]
    told = HTTP.post(f"{address}/recollect/replay", headers=ADMIN).json()
    assert told == {"replayed": 1, "improved": 1, "evicted": 0}
    assert figures(address)["spent"]["tokens"] == spent + 3 * 12
    [example] = parts.routes.caches[0].manager
    assert example.response == "press the red button"
    post(address, asking(f"{ALIKE} please"))
    assert BAR + "press the red button" in upstream.bodies[-2].decode()


def test_replay_runs_by_itself_and_a_worse_answer_is_not_kept(start, upstream):
    examples = ExamplesConfig(models=MODELS, encoder="ngram", arguments=FRUGAL, replay_seconds=0.05)
    judge = {"the first": 0.6}
    address, parts = start(examples=examples, judge=lambda query, text: judge.get(text, 0.1))

    def answer(request, asked):
        document = usual("/v1/chat/completions", asked, 1)
        text = "the first" if upstream.total == 1 else "a later one"
        document["choices"][0]["message"]["content"] = text
        return document

    upstream.answer = answer
    post(address, asking(model="large"))
    post(address, asking(ALIKE))
    wait_until(lambda: upstream.total == 3)  # made again, as the small model's was bad
    assert sent(upstream)["model"] == "large"
    [cache] = parts.routes.caches
    wait_until(lambda: not cache.manager.due())
    assert [example.response for example in cache.manager] == ["the first"]


def test_replaying_needs_somebody_who_judges(routed, start):
    address, _ = routed()
    answer = HTTP.post(f"{address}/recollect/replay", headers=ADMIN)
    assert (answer.status_code, "name a judge" in answer.text) == (409, True)
    plain, _ = start(admin_key="root")
    assert HTTP.post(f"{plain}/recollect/replay", headers=ADMIN).status_code == 404
    assert HTTP.post(f"{plain}/recollect/replay").status_code == 401


def test_a_gateway_stops_while_it_replays(upstream, upstream_server):
    examples = ExamplesConfig(
        models=MODELS,
        encoder="ngram",
        judge="large",
        replay_seconds=0.01,
        arguments={**FRUGAL, "ask_above": 1e9},  # the judge is not asked before
    )
    with gateway_before(upstream_server[1], examples=examples) as (address, parts):
        post(address, asking(model="large"))
        answer = post(address, asking(ALIKE))
        upstream.gate.clear()
        assert rate(address, answer, 0.0).status_code == 200
        wait_until(lambda: upstream.total == 3)
    assert parts.refiner._asking.cancelled()
    upstream.gate.set()


def test_metrics_and_figures_show_the_split(taught, upstream):
    address, _ = taught()
    rate(address, post(address, asking(ALIKE)), 0.5)
    [row] = figures(address)["routed"]
    assert (row["model"], row["requests"], row["helped"], row["examples"]) == ("small", 1, 1, 1)
    assert (row["rated"], row["quality"]) == (1, 0.5)
    assert row["tokens"] > 0
    assert figures(address)["examples"]["examples"] == 1
    page = HTTP.get(f"{address}/metrics").text
    assert 'recollect_gateway_routed_total{examples="yes",model="small"} 1.0' in page
    assert 'recollect_gateway_rated_total{model="small"} 1.0' in page


def test_silence_about_hits_is_silence_about_routes(routed, upstream):
    address, _ = routed({"disclose": "nothing"})
    post(address, asking(model="large"))
    told = post(address, asking(ALIKE)).headers
    assert BAR in upstream.bodies[-1].decode()
    assert not [name for name in told if name.startswith("x-recollect")]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([], "write a mapping"),
        ({}, "models are missing"),
        ({"models": {"a": {"cost": 1}}}, "must be strong"),
        ({"models": {"a": {"strong": True, "cost": 0}}}, "cost above 0"),
        ({"models": {"a": {"strong": True, "price": 1}}}, "not readable"),
        ({"models": {"auto": {"strong": True}}}, "must be the name of none"),
        ({"models": {"a": {"strong": True}}, "ttl": 0}, "ttl must be above 0"),
        ({"models": {"a": {"strong": True}}, "jugde": "a"}, "unknown setting 'jugde'"),
    ],
)
def test_wrong_settings_of_examples_are_named(found, words):
    with pytest.raises(GatewayError, match=words):
        build_config({"upstream": "http://up", "examples": found})


def test_a_floor_cannot_hide_examples_of_others():
    examples = ExamplesConfig(models=MODELS, encoder="ngram")
    GatewayConfig("http://up", floor=True, examples=examples)
    with pytest.raises(GatewayError, match="not what examples change"):
        GatewayConfig("http://up", floor=True, examples=examples, scope="tenant")


def test_settings_of_examples_are_read():
    models = {"small": None, "large": {"cost": 8, "strong": True}}
    config = build_config({"upstream": "http://up", "examples": {"models": models}})
    assert config.examples.models == MODELS
    assert config.examples.strong == "large"


@pytest.mark.parametrize(
    ("reply", "quality"),
    [("7", 0.7), ("10", 1.0), ("Grade: 8.5/10", 0.85), ("0", 0.0), ("good", None), ("100", None)],
)
def test_a_grade_is_a_number_from_0_to_10(reply, quality):
    assert grade(reply) == quality
