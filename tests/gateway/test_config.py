"""Settings: what a file may say, who callers are, what they may spend."""

from __future__ import annotations

import hashlib

import pytest
import yaml

from recollect.answers import ManualClock
from recollect.errors import GatewayError
from recollect.gateway.budgets import Budgets
from recollect.gateway.callers import Callers
from recollect.gateway.config import Budget, GatewayConfig, Price, build_config, read_settings
from recollect.gateway.protocols import Usage
from recollect.gateway.refusals import Refusal

UP = {"upstream": "http://up:8000/v1"}
TENANTS = yaml.safe_load(
    """
acme:
  budget: {tokens: 100, per: day}
  keys:
    - {key: sk-alice, user: alice, team: red}
    - {env: BOB_KEY, user: bob, team: red, budget: {requests: 2, per: minute}}
globex:
  keys:
    - {key: sk-carol}
"""
)


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setenv("BOB_KEY", "sk-bob")
    return lambda **more: build_config({**UP, "tenants": TENANTS, **more})


def scope(config, key, **more):
    return Callers(config(**more)).identify({"authorization": f"Bearer {key}"}).scope_id


def test_keys_lead_to_scopes(config):
    users = {scope(config, key) for key in ("sk-alice", "sk-bob", "sk-carol")}
    assert len(users) == 3
    assert "" not in users
    assert scope(config, "sk-alice", scope="team") == scope(config, "sk-bob", scope="team")
    assert scope(config, "sk-alice", scope="tenant") == scope(config, "sk-bob", scope="tenant")
    assert scope(config, "sk-alice", scope="tenant") != scope(config, "sk-carol", scope="tenant")
    assert scope(config, "sk-alice", scope="global") == scope(config, "sk-carol", scope="global")
    assert scope(config, "sk-carol", scope="team") == "", "no team: nothing is shared"


def test_unknown_keys_are_refused_where_keys_are_configured(config):
    callers = Callers(config())
    for headers in (
        {},
        {"authorization": "Bearer sk-mallory"},
        {"authorization": "Basic sk-alice"},
    ):
        with pytest.raises(Refusal, match="API key") as refused:
            callers.identify(headers)
        assert refused.value.status == 401
    by_anthropic = callers.identify({"x-api-key": "sk-alice"})
    assert by_anthropic == callers.identify({"authorization": "Bearer sk-alice"})
    ours = callers.identify({"authorization": "Bearer theirs", "x-recollect-key": "sk-alice"})
    assert ours == by_anthropic


def test_without_keys_callers_are_told_apart_by_what_they_send_upstream():
    callers = Callers(GatewayConfig(**UP))
    alice, bob, nobody = (
        callers.identify(headers)
        for headers in ({"authorization": "Bearer a"}, {"x-api-key": "b"}, {})
    )
    assert alice.scope_id != bob.scope_id
    assert nobody.scope_id == ""
    assert alice.scope_id != "a", "a key is nowhere kept as it is"
    assert not Callers(GatewayConfig(**UP)).is_admin({})
    assert not Callers(GatewayConfig(**UP)).is_admin({"authorization": "Bearer "})


def test_budgets_are_refused_when_spent_and_come_back_with_the_next_period(config, tmp_path):
    clock = ManualClock(86_400.0 * 10 + 30)
    callers, path = Callers(config()), str(tmp_path / "spent.db")
    budgets = Budgets(clock, path)
    bob = callers.identify({"x-api-key": "sk-bob"})
    alice = callers.identify({"x-api-key": "sk-alice"})
    budgets.admit(bob.spends)
    budgets.admit(bob.spends)
    with pytest.raises(Refusal, match="2 requests per minute") as refused:
        budgets.admit(bob.spends)
    assert refused.value.status == 429
    assert refused.value.headers["retry-after"] == "30"
    budgets.admit(alice.spends)
    clock.advance(30)
    budgets.admit(bob.spends)
    budgets.charge(bob.spends, 100, 0.5)
    with pytest.raises(Refusal, match="100 tokens per day"):
        budgets.admit(alice.spends)
    budgets.close()

    again = Budgets(clock, path)
    with pytest.raises(Refusal, match="100 tokens per day"):
        again.admit(alice.spends)
    assert again.spent()["tenant:acme"].requests == 4
    clock.advance(-86_400)
    with pytest.raises(Refusal, match="100 tokens"):
        again.admit(alice.spends)
    clock.advance(2 * 86_400)
    again.admit(alice.spends)
    again.close()


def test_prices_count_what_the_provider_had_cached():
    assert Price(2, 10).of(Usage(1_000_000, 100_000, 500_000)) == 3.0
    assert Price(2, 10, 1).of(Usage(1_000_000, 100_000, 500_000)) == 2.5
    prices = build_config({**UP, "prices": {"gpt-*": {"input": 1}, "*": {"output": 1}}})
    assert prices.price("gpt-5") == Price(1)
    assert prices.price("other") == Price(0, 1)


def test_requests_go_where_their_model_is():
    config = build_config({
        **UP, "models": {"tiny-*": "http://tiny"}, "anthropic_upstream": "https://anthropic",
    })  # fmt: skip
    assert config.address("tiny-llama", "chat") == "http://tiny"
    assert config.address("gpt", "chat") == "http://up:8000"
    assert config.address("claude", "messages") == "https://anthropic"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, "no upstream given"),
        ({"upstream": "localhost:8000"}, "no address"),
        ({**UP, "upsteam": 1}, "unknown setting 'upsteam'"),
        ({**UP, "scope": "galaxy"}, "one of user, team, tenant, global"),
        ({**UP, "max_body": 0}, "max_body must be above 0"),
        ({**UP, "prices": {"m": {"inptu": 1}}}, "not readable"),
        ({**UP, "tenants": {"a": {"keys": [{"user": "x"}]}}}, "one of sha256, key, env"),
        ({**UP, "tenants": {"a": {"keys": [{"env": "NOT_THERE"}]}}}, "no NOT_THERE"),
        ({**UP, "tenants": {"a": {"keys": [{"key": "k"}, {"key": "k"}]}}}, "given twice"),
        ({**UP, "tenants": {"a": {"budget": {"per": "eon"}}}}, "per 'eon'"),
        ({**UP, "tenants": {"a": {"budget": {"tokens": -1}}}}, "budget tokens"),
        ({**UP, "tenants": "acme"}, "not readable"),
    ],
)
def test_wrong_settings_are_named(found, words):
    with pytest.raises(GatewayError, match=words):
        build_config(found)


def test_a_key_may_be_given_by_its_digest():
    digest = hashlib.sha256(b"sk-x").hexdigest()
    config = build_config({**UP, "tenants": {"a": {"keys": [{"sha256": digest}]}}})
    assert Callers(config).identify({"x-api-key": "sk-x"}).tenant == "a"


def test_secrets_are_not_shown():
    shown = repr(GatewayConfig(**UP, secret=b"hush", upstream_key="hush", admin_key="hush"))
    assert "hush" not in shown
    assert Budget(tokens=1).seconds == 86_400


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(GatewayError, match="No such file"):
        read_settings(tmp_path / "none.yaml")
    for text in ("a: [", "- 1"):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(GatewayError, match=r"x\.yaml"):
            read_settings(tmp_path / "x.yaml")
