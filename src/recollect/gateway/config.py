"""Everything a gateway can be told, as data: a YAML file read here, or keywords in Python.

upstream: http://localhost:8000
store: sqlite:///answers.db
scope: user
prices: {"gpt-*": {input: 2.5, cached_input: 1.25, output: 10}}
tenants:
  acme:
    budget: {tokens: 2000000, per: day}
    keys:
      - {sha256: "9f86d0…", user: alice, team: research}
      - {env: ACME_BOB_KEY, user: bob, budget: {requests: 60, per: minute}}
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from recollect.errors import GatewayError
from recollect.gateway.incontext.settings import ExamplesConfig, build_examples
from recollect.gateway.protocols import Usage

PERIODS = {"minute": 60, "hour": 3600, "day": 86400, "week": 604800, "month": 2592000}
SCOPES = ("user", "team", "tenant", "global")
DISCLOSURES = ("nothing", "hits", "debug")


@dataclass(frozen=True)
class Budget:
    """What may be spent in a period; None is no limit. Periods begin at multiples of their length.

    Attributes:
        requests: number of requests, hits included.
        tokens: tokens of prompts and answers of the upstream; hits cost none.
        money: by the prices of the configuration.
        per: minute, hour, day, week or month (30 days).
    """

    requests: int | None = None
    tokens: int | None = None
    money: float | None = None
    per: str = "day"

    def __post_init__(self) -> None:
        if self.per not in PERIODS:
            raise GatewayError(f"budget per '{self.per}': write one of {', '.join(PERIODS)}")
        for name in ("requests", "tokens", "money"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not value >= 0):
                raise GatewayError(f"budget {name}: {value} is not a number from 0 upwards")

    @property
    def seconds(self) -> int:
        return PERIODS[self.per]


@dataclass(frozen=True)
class Key:
    """One API key, known by its SHA-256 only."""

    sha256: str
    tenant: str
    user: str = ""
    team: str = ""
    budget: Budget | None = None


@dataclass(frozen=True)
class Price:
    """Money per million tokens."""

    input: float = 0.0
    output: float = 0.0
    cached_input: float | None = None

    def of(self, usage: Usage) -> float:
        """What an answer costs."""
        cached = self.input if self.cached_input is None else self.cached_input
        fresh = usage.prompt - min(usage.cached, usage.prompt)
        prompt = fresh * self.input + min(usage.cached, usage.prompt) * cached
        return (prompt + usage.completion * self.output) / 1e6


@dataclass(frozen=True)
class GatewayConfig:
    """A gateway.

    Attributes:
        upstream: address of the engine or provider, with or without `/v1`.
        anthropic_upstream: for `/v1/messages`, where it is another one.
        models: address by pattern of the model's name; the first that matches goes before both.
        store: as `Answers` takes it: memory, sqlite:///PATH, redis://…, postgresql://….
        require_store: whether to start where the store cannot be used. None: not if it denies
            access; True: only if it answers; False: always, with nothing stored until it does.
        recipe, arguments: of `Answers`.
        scope: who shares answers: user, team, tenant or global.
        secret: keys the hashes of scopes; must stay the same for a store that outlives a process.
        keys: API keys; empty means that callers are told apart by the key they send upstream.
        tenant_budgets: by tenant, over all its keys.
        upstream_key: replaces the caller's key on the way up; empty lets it through.
        admin_key: for purging, the audit log and the dashboard's figures; empty turns them off.
        prices: by pattern of the model's name; the first that matches counts.
        keep: how an answer may have ended to be stored, of stop, length, content_filter,
            tool_calls, refusal.
        max_body, max_answer: bytes a request may have; bytes an answer may have to be stored.
        connect_seconds, read_seconds: how long to wait for a connection, for the next byte.
        disclose: `nothing`, `hits` (kind, age and entry) or `debug` (similarity and reasons too).
        floor: hits take as long as misses do, and are not told apart in headers.
        target_seconds, target_requests: when the upstream counts as fully loaded: seconds to the
            first byte, requests in flight; None leaves that one out.
        audit: file of the audit log; empty keeps none.
        budgets: SQLite file of what was spent; empty forgets it at the end.
        examples: past answers as examples, and routing between models; None does neither.
        trace: make OpenTelemetry spans.
        metrics: `open` or `admin` (asks for the admin key).
    """

    upstream: str
    anthropic_upstream: str = ""
    models: Mapping[str, str] = field(default_factory=dict)
    store: str = "memory"
    require_store: bool | None = None
    recipe: str = "exact"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    scope: str = "user"
    secret: bytes = field(default=b"", repr=False)
    keys: tuple[Key, ...] = field(default=(), repr=False)
    tenant_budgets: Mapping[str, Budget] = field(default_factory=dict)
    upstream_key: str = field(default="", repr=False)
    admin_key: str = field(default="", repr=False)
    prices: Mapping[str, Price] = field(default_factory=dict)
    keep: frozenset[str] = frozenset({"stop"})
    max_body: int = 32 << 20
    max_answer: int = 1 << 20
    connect_seconds: float = 5.0
    read_seconds: float = 600.0
    disclose: str = "hits"
    floor: bool = False
    target_seconds: float | None = None
    target_requests: int | None = None
    audit: str = ""
    budgets: str = ""
    examples: ExamplesConfig | None = None
    trace: bool = False
    metrics: str = "open"

    def __post_init__(self) -> None:
        addresses = [self.upstream, *filter(None, [self.anthropic_upstream]), *self.models.values()]
        for address in addresses:
            parts = urlsplit(address)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise GatewayError(
                    f"upstream '{address}' is no address; write e.g. http://localhost:8000"
                )
        _one_of("scope", self.scope, SCOPES)
        _one_of("disclose", self.disclose, DISCLOSURES)
        _one_of("metrics", self.metrics, ("open", "admin"))
        if self.floor and self.examples is not None and self.scope != "user":
            raise GatewayError(
                "floor hides the time of hits, not what examples change: "
                "use it with scope user, or without examples"
            )
        for name in ("max_body", "max_answer", "connect_seconds", "read_seconds"):
            if not getattr(self, name) > 0:
                raise GatewayError(f"{name} must be above 0")

    def address(self, model: str, protocol: str) -> str:
        """Where requests for a model go, without `/v1` at the end."""
        found = next((url for p, url in self.models.items() if fnmatchcase(model, p)), "")
        if not found and protocol == "messages":
            found = self.anthropic_upstream
        return (found or self.upstream).rstrip("/").removesuffix("/v1")

    def price(self, model: str) -> Price:
        """The price of a model; nothing for one without a price."""
        return next((p for name, p in self.prices.items() if fnmatchcase(model, name)), Price())


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, for `build_config`. Raises GatewayError."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise GatewayError(f"cannot read {path}: {reason}") from error
    if not isinstance(found, dict):
        raise GatewayError(f"{path} is no mapping; write e.g. upstream: http://localhost:8000")
    return found


def build_config(found: Mapping[str, Any]) -> GatewayConfig:
    """The configuration in plain values, as YAML has them. Raises GatewayError."""
    values = dict(found)
    tenants = values.pop("tenants", None) or {}
    known = {f.name for f in fields(GatewayConfig)} - {"keys", "tenant_budgets"}
    if unknown := sorted(values.keys() - known):
        raise GatewayError(f"unknown setting '{unknown[0]}'; there are: {', '.join(sorted(known))}")
    if not values.get("upstream"):
        raise GatewayError("no upstream given; write e.g. --upstream http://localhost:8000")
    try:
        values["prices"] = {k: Price(**v) for k, v in (values.get("prices") or {}).items()}
        values["keep"] = frozenset(values.get("keep") or {"stop"})
        if values.get("examples") is not None:
            values["examples"] = build_examples(values["examples"])
        if isinstance(values.get("secret"), str):
            values["secret"] = values["secret"].encode()
        keys, budgets = _tenants(tenants)
        return GatewayConfig(**values, keys=keys, tenant_budgets=budgets)
    except (TypeError, AttributeError) as error:
        raise GatewayError(f"the configuration is not readable: {error}") from error


def fingerprint(key: str) -> str:
    """SHA-256 of an API key in hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _tenants(found: Mapping[str, Any]) -> tuple[tuple[Key, ...], dict[str, Budget]]:
    keys: dict[str, Key] = {}
    budgets = {}
    for tenant, about in found.items():
        if about.get("budget"):
            budgets[tenant] = Budget(**about["budget"])
        for entry in about.get("keys") or ():
            key = _key(str(tenant), dict(entry))
            if keys.setdefault(key.sha256, key) is not key:
                raise GatewayError(f"tenant '{tenant}' has a key that is given twice")
    return tuple(keys.values()), budgets


def _key(tenant: str, entry: dict[str, Any]) -> Key:
    digest, plain, name = (entry.pop(field, None) for field in ("sha256", "key", "env"))
    if name is not None:
        plain = os.environ.get(name)
        if not plain:
            raise GatewayError(f"tenant '{tenant}': the environment has no {name}")
    if (digest is None) == (plain is None):
        raise GatewayError(f"tenant '{tenant}': a key needs one of sha256, key, env")
    budget = entry.pop("budget", None)
    return Key(
        sha256=fingerprint(plain) if plain is not None else str(digest).lower(),
        tenant=tenant,
        budget=Budget(**budget) if budget else None,
        **entry,
    )


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise GatewayError(f"{name} '{value}': write one of {', '.join(known)}")
