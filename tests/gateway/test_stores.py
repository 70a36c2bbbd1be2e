"""Shared stores behind gateways: what one stored the other serves, and an outage stops nobody."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading

import pytest
from click.testing import CliRunner
from postgres_server import ABSENT as NO_POSTGRES
from postgres_server import INITDB, PostgresServer
from servers import command_line, until_brace, wait_until
from test_admin import ADMIN, kind, purge
from test_front import CHAT, HTTP, post

from recollect.cli.common import Group
from recollect.cli.gateway import gateway as command
from recollect.errors import StoreError
from recollect.gateway.config import GatewayConfig
from recollect.gateway.gateway import Gateway


@pytest.fixture(scope="module")
def postgres():
    if not INITDB:
        pytest.skip(NO_POSTGRES)
    with contextlib.closing(PostgresServer()) as server:
        yield server


@pytest.fixture(params=["redis", "postgresql"])
def server(request):
    """A server of each kind with nothing of ours in it."""
    if request.param == "redis":
        yield request.getfixturevalue("redis_servers")()
        return
    found = request.getfixturevalue("postgres")
    yield found
    found.kill()
    found.start()
    with Gateway(GatewayConfig(upstream="http://up", store=found.url)).cache.answers as answers:
        answers.purge(everything=True, dry_run=False)


@pytest.fixture
def patient(start):
    """Start a gateway whose store may be as slow as a busy machine makes it."""

    def make(**settings):
        address, parts = start(**settings)
        parts.cache.answers._backend._deadline = 20.0
        return address, parts

    return make


def test_what_one_gateway_stored_another_serves(patient, server, upstream):
    first, second = (patient(store=server.url, admin_key="root")[0] for _ in range(2))
    answers = [post(first, CHAT), post(second, CHAT), post(second, {**CHAT, "stream": True})]
    assert [kind(answer) for answer in answers] == ["miss", "hit", "miss"]
    assert answers[0].content == answers[1].content
    assert kind(post(first, {**CHAT, "stream": True})) == "hit"
    assert kind(post(second, CHAT, key="bob")) == "miss"
    assert purge(second, everything=True, dry_run=False)["count"] == 3
    assert kind(post(first, CHAT)) == "miss"


def test_similar_requests_hit_across_gateways_after_a_refresh(patient, server, upstream):
    settings = {"recipe": "gptcache", "arguments": {"encoder": "ngram"}, "store": server.url}
    (first, _), (second, parts) = (patient(**settings) for _ in range(2))
    ask = {"model": "m", "messages": [{"role": "user", "content": "How do I reset my password?"}]}
    alike = {"model": "m", "messages": [{"role": "user", "content": "How do I reset my password"}]}
    post(first, ask)
    parts.cache.answers.refresh()
    answer = post(second, alike)
    assert (kind(answer), answer.headers["x-recollect-tier"]) == ("hit", "semantic")


@pytest.mark.parametrize("outage", ["kill", "freeze"])
def test_an_outage_amid_traffic_stops_nobody_and_ends(start, server, upstream, outage):
    address, parts = start(store=server.url, admin_key="root")
    wait_until(lambda: kind(post(address, CHAT)) == "hit")
    statuses, over = [], threading.Event()

    def traffic(worker):
        while not over.is_set():
            statuses.append(post(address, {**CHAT, "seed": worker}).status_code)

    workers = [threading.Thread(target=traffic, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    getattr(server, outage)()
    seen = len(statuses)
    wait_until(lambda: len(statuses) > seen + 30)
    assert parts.cache.answers.stats()["entries"] is None
    assert HTTP.get(f"{address}/healthz").status_code == 200
    refused = HTTP.post(f"{address}/recollect/purge", json={"everything": True}, headers=ADMIN)
    assert refused.status_code == 503, "a purge that did not happen must not look like one"
    server.start() if outage == "kill" else server.thaw()
    wait_until(lambda: parts.cache.answers.stats()["entries"] is not None)
    over.set()
    for worker in workers:
        worker.join()
    assert set(statuses) == {200}
    wait_until(lambda: kind(post(address, CHAT)) == "hit")


def test_a_sweep_of_a_store_that_hangs_holds_nobody_up(start, server, upstream):
    address, parts = start(store=server.url)
    post(address, CHAT)
    server.freeze()
    sweeping = threading.Thread(target=parts.cache._chores.submit(parts.cache.answers.sweep).result)
    sweeping.start()
    try:
        assert post(address, CHAT).status_code == 200
        assert sweeping.is_alive(), "the sweep was over: nothing was shown"
    finally:
        server.thaw()
        sweeping.join()


def test_a_gateway_that_starts_before_its_store_answers_and_stores_later(
    start, upstream, redis_servers
):
    server = redis_servers()
    server.kill()
    address, parts = start(store=server.url)
    for _ in range(2):
        for protocol in ("/v1/chat/completions", "/v1/embeddings"):
            answer = post(address, {**CHAT, "input": "x"}, protocol)
            assert (answer.status_code, kind(answer)) == (200, "miss")
    assert upstream.total == 4
    server.start()
    wait_until(lambda: parts.cache.answers.stats()["entries"] is not None)
    wait_until(lambda: kind(post(address, CHAT)) == "hit")


def test_a_store_that_lets_nobody_in_is_told_at_the_start(start, upstream, redis_servers):
    server = redis_servers(password="right")
    wrong = server.url.replace("right", "wrong")
    arguments = ["gateway", "--upstream", "http://up", "--store", wrong]
    result = CliRunner().invoke(Group(commands={"gateway": command}), arguments)
    assert result.exit_code == 2
    assert "lets nobody in" in result.output
    assert len(result.output.strip().splitlines()) == 1
    address, _ = start(store=wrong, require_store=False)
    assert [kind(post(address, CHAT)) for _ in range(2)] == ["miss", "miss"]
    with pytest.raises(StoreError, match="does not answer"):
        Gateway(
            GatewayConfig(upstream="http://up", store="redis://127.0.0.1:1", require_store=True)
        )


@pytest.mark.slow
def test_processes_share_a_store(upstream, upstream_server, redis_servers, tmp_path):
    arguments = ["--upstream", upstream_server[1], "--store", redis_servers().url]
    processes = [
        subprocess.Popen(
            command_line(*arguments, "--port", "0", "--json"),
            stdout=subprocess.PIPE,
            cwd=tmp_path,
            env={**os.environ, "RECOLLECT_ADMIN_KEY": "root"},
        )
        for _ in range(2)
    ]
    try:
        addresses = [json.loads(until_brace(one.stdout))["address"] for one in processes]

        def agree():
            """Both hit, and with the same answer; on a busy machine the store may be late."""
            first, second = (post(address, CHAT) for address in addresses)
            return kind(first) == kind(second) == "hit" and first.content == second.content

        wait_until(agree)
        for process in processes:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    finally:
        for process in processes:
            process.kill()
