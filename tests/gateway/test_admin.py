"""What those who run the gateway see and do: tenants, purging, audit, metrics, figures, spans."""

from __future__ import annotations

import httpx
import pytest
from servers import settle
from streams import assemble
from test_front import CHAT, HTTP, post

from recollect.answers import ManualClock
from recollect.gateway.config import Budget, Key, Price, fingerprint
from recollect.gateway.protocols import Chat

ADMIN = {"authorization": "Bearer root"}
KEYS = tuple(
    Key(fingerprint(f"sk-{user}"), tenant, user)
    for user, tenant in (("alice", "acme"), ("bob", "acme"), ("carol", "globex"))
)


def purge(address, **asked):
    answer = HTTP.post(f"{address}/recollect/purge", json=asked, headers=ADMIN)
    return answer.json()


def figures(address):
    return HTTP.get(f"{address}/recollect/figures", headers=ADMIN).json()


def kind(answer):
    return answer.headers["x-recollect-cache"]


def test_tenants_share_within_and_never_across(start, upstream):
    address, _ = start(keys=KEYS, scope="tenant", upstream_key="sk-provider")
    assert kind(post(address, CHAT, key="sk-alice")) == "miss"
    assert kind(post(address, CHAT, key="sk-bob")) == "hit"
    assert kind(post(address, CHAT, key="sk-carol")) == "miss"
    assert post(address, CHAT, key="sk-mallory").status_code == 401
    assert {h["authorization"] for h in upstream.headers} == {"Bearer sk-provider"}
    assert upstream.total == 2
    post(address, {**CHAT, "max_tokens": 9}, "/v1/messages", key=None, **{"x-api-key": "sk-bob"})
    assert upstream.headers[-1]["x-api-key"] == "sk-provider"
    assert "authorization" not in upstream.headers[-1]


def test_keys_of_ours_are_never_shown_to_the_upstream(start, upstream):
    address, _ = start(keys=KEYS)
    post(address, CHAT, key="sk-alice")
    assert "authorization" not in upstream.headers[0]
    httpx.get(f"{address}/v1/models", headers={"authorization": "Bearer sk-alice"})
    assert "authorization" not in upstream.headers[1]


def test_hits_cost_no_tokens_and_misses_do(start, upstream):
    address, _ = start(
        keys=KEYS,
        tenant_budgets={"acme": Budget(tokens=24)},
        prices={"*": Price(1_000_000, 0)},
        admin_key="root",
    )
    for _ in range(5):
        assert post(address, CHAT, key="sk-alice").status_code == 200
    assert post(address, {**CHAT, "seed": 1}, key="sk-bob").status_code == 200
    refused = post(address, CHAT, key="sk-alice")
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "budget_exceeded"
    assert int(refused.headers["retry-after"]) > 0
    assert post(address, CHAT, key="sk-carol").status_code == 200
    spent = figures(address)["accounts"]["tenant:acme"]
    assert (spent["requests"], spent["tokens"], spent["money"]) == (6, 24, 14.0)


def test_streams_without_usage_are_charged_all_the_same(start, upstream):
    address, _ = start(keys=KEYS, tenant_budgets={"acme": Budget(tokens=5)}, admin_key="root")
    assert post(address, {**CHAT, "stream": True, "seed": 1}, key="sk-alice").status_code == 200
    assert post(address, {**CHAT, "seed": 2}, key="sk-alice").status_code == 429


def test_purging_says_first_and_does_then(start, upstream):
    clock = ManualClock(1_000_000.0)
    address, _ = start(keys=KEYS, scope="tenant", clock=clock, admin_key="root")
    post(address, CHAT, key="sk-alice")
    post(address, {**CHAT, "seed": 1}, key="sk-bob")
    clock.advance(10)
    post(address, CHAT, key="sk-carol")
    for asked, count in (
        ({"writer": '["acme", "alice"]'}, 1),
        ({"writer": '["acme", "nobody"]'}, 0),
        ({"scope": '["acme"]'}, 2),
        ({"before": 1_000_005}, 2),
        ({"everything": True}, 3),
    ):
        told = purge(address, **asked)
        assert (told["count"], told["dry_run"]) == (count, True)
    assert purge(address, writer='["acme", "alice"]', dry_run=False)["count"] == 1
    assert kind(post(address, CHAT, key="sk-bob")) == "miss"
    assert kind(post(address, CHAT, key="sk-carol")) == "hit"
    log = HTTP.get(f"{address}/recollect/audit", headers=ADMIN).json()
    events = [event["event"] for event in log["events"]]
    assert log["intact"]
    assert {"write", "hit", "delete"} <= set(events)
    key = next(event["key"] for event in log["events"] if event["event"] == "hit")
    assert purge(address, key=key, dry_run=False)["count"] == 2
    assert kind(post(address, CHAT, key="sk-carol")) == "miss"


def test_purging_by_scope_reaches_users(start, upstream):
    address, _ = start(keys=KEYS, admin_key="root")
    post(address, CHAT, key="sk-alice")
    post(address, {**CHAT, "user": "customer-7"}, key="sk-alice")
    assert purge(address, scope='["acme", "alice"]', dry_run=False)["count"] == 2
    assert kind(post(address, CHAT, key="sk-alice")) == "miss"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"[]", "object"),
        (b"{}", "say what to purge"),
        (b'{"wirter": "x"}', "unknown field 'wirter'"),
        (b'{"before": "x"}', "'before'"),
        (b'{"before": true}', "'before'"),
        (b'{"key": "zz"}', "no key"),
        (b'{"everything": true, "writer": "x"}', "say what to purge"),
        (b'{"everything": true, "dry_run": "no"}', "'dry_run'"),
    ],
)
def test_a_purge_that_is_not_understood_removes_nothing(start, body, words):
    address, _ = start(admin_key="root")
    post(address, CHAT)
    answer = HTTP.post(f"{address}/recollect/purge", content=body, headers=ADMIN)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
    assert purge(address, everything=True)["count"] == 1


def test_figures_audit_and_purge_need_the_admin_key(start):
    address, _ = start(admin_key="root", metrics="admin")
    closed, _ = start()
    for base, headers in ((address, {}), (address, {"x-api-key": "wrong"}), (closed, ADMIN)):
        for method, path in (("GET", "figures"), ("GET", "audit"), ("POST", "purge")):
            answer = HTTP.request(method, f"{base}/recollect/{path}", headers=headers)
            assert answer.status_code == 401
    assert HTTP.get(f"{address}/metrics").status_code == 401
    assert HTTP.get(f"{address}/metrics", headers=ADMIN).status_code == 200
    assert HTTP.get(f"{closed}/metrics").status_code == 200
    assert HTTP.get(f"{closed}/healthz").json() == {"status": "ok"}


def test_metrics_and_figures_count_what_happened(start, upstream):
    address, _ = start(admin_key="root", prices={"m": Price(1_000_000, 0)})
    for _ in range(3):
        post(address, CHAT, **{"x-recollect-category": "facts"})
    post(address, CHAT, key=None)
    told = figures(address)
    facts = next(c for c in told["categories"] if c["category"] == "facts")
    assert (facts["counts"]["miss"], facts["counts"]["exact"]) == (1, 2)
    assert (facts["tokens"], facts["money"]) == (24, 14.0)
    assert told["spent"]["tokens"] == 24
    assert [outcome["kind"] for outcome in told["latest"]] == ["bypass", "exact", "exact", "miss"]
    assert all(outcome["reason"] for outcome in told["latest"])
    page = HTTP.get(f"{address}/metrics").text
    assert 'requests_total{kind="exact",protocol="chat",status="200"} 2.0' in page
    assert "recollect_gateway_saved_tokens_total 24.0" in page
    assert "recollect_gateway_upstream_tokens_total 24.0" in page
    assert "alice" not in page


def test_debugging_headers_tell_more_and_nothing_tells_nothing(start, upstream):
    debug, _ = start(disclose="debug")
    post(debug, CHAT)
    told = post(debug, CHAT).headers
    assert told["x-recollect-similarity"] == "1.0000"
    assert told["x-recollect-reason"] == "the same request"
    silent, _ = start(disclose="nothing")
    first, second = post(silent, CHAT), post(silent, CHAT)
    assert first.content == second.content
    assert not [name for name in second.headers if name.startswith(("x-recollect", "age"))]


def test_answers_survive_a_restart(start, tmp_path, upstream):
    store = f"sqlite:///{tmp_path / 'answers.db'}"
    first, _ = start(store=store)
    body = post(first, CHAT).content
    settle()
    second, _ = start(store=store)
    answer = post(second, CHAT)
    assert (kind(answer), answer.content) == ("hit", body)


def test_a_store_that_fails_lets_requests_through(start, upstream):
    from recollect.answers import Answers
    from recollect.answers.backends.memory import MemoryBackend
    from recollect.errors import StoreError

    class Broken(MemoryBackend):
        def all_exact(self, partition, exact_fp):
            raise StoreError("the store is gone")

        def add(self, entry):
            raise StoreError("the store is gone")

    address, _ = start(answers=Answers(Broken()))
    for _ in range(2):
        answer = post(address, CHAT)
        assert (answer.status_code, kind(answer)) == (200, "miss")
    assert upstream.total == 2


def test_spans_continue_the_clients_trace_and_reach_the_upstream(start, upstream):
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="OpenTelemetry is not installed")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from recollect.gateway.tracing import OpenTelemetry

    seen, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(seen))
    address, _ = start(tracing=OpenTelemetry(provider))
    trace = "0af7651916cd43dd8448eb211c80319c"
    for _ in range(2):
        post(address, CHAT, traceparent=f"00-{trace}-b7ad6b7169203331-01")
    spans = seen.get_finished_spans()
    assert {f"{span.context.trace_id:032x}" for span in spans} == {trace}
    requests = [span for span in spans if span.name == "chat m"]
    assert [span.attributes["recollect.cache"] for span in requests] == ["miss", "hit"]
    assert len([span for span in spans if span.name == "lookup"]) == 2
    carried = upstream.headers[0]["traceparent"].split("-")
    assert carried[1:3] == [trace, f"{requests[0].context.span_id:016x}"]
    assert not any("why?" in str(span.attributes) for span in spans)


def test_the_floor_gives_hits_the_times_of_misses_and_says_nothing(start, upstream):
    address, gateway = start(floor=True)
    first = post(address, CHAT)
    times = [(kind, list(found)) for kind, found in gateway.floor._misses.items()]
    second = post(address, CHAT)
    assert first.content == second.content
    assert upstream.total == 1
    assert [kind for kind, _ in times] == [("chat", False, "m")]
    assert not [name for name in second.headers if name.startswith(("x-recollect", "age"))]
    stream = {**CHAT, "stream": True}
    bodies = [post(address, stream).content for _ in range(2)]
    assert upstream.total == 2
    assert assemble(Chat(), bodies[0]) == assemble(Chat(), bodies[1])


def test_similar_requests_hit_where_the_recipe_says_so(start, upstream):
    address, _ = start(recipe="gptcache", arguments={"encoder": "ngram"}, disclose="debug")
    ask = {"model": "m", "messages": [{"role": "user", "content": "How do I reset my password?"}]}
    alike = {"model": "m", "messages": [{"role": "user", "content": "How do I reset my password"}]}
    other = {"model": "m", "messages": [{"role": "user", "content": "What is 7 times 8?"}]}
    assert kind(post(address, ask)) == "miss"
    hit = post(address, alike)
    assert (kind(hit), hit.headers["x-recollect-tier"]) == ("hit", "semantic")
    assert 0.5 < float(hit.headers["x-recollect-similarity"]) < 1
    assert kind(post(address, other)) == "miss"
    assert kind(post(address, alike, key="bob")) == "miss"
    assert kind(post(address, {**alike, "temperature": 0.1})) == "miss"
    exact = post(address, {**alike, "temperature": 0.1}, **{"x-recollect-cache": "exact"})
    assert exact.headers["x-recollect-tier"] == "exact"
