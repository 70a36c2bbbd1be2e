"""Who asks: API keys to tenants, teams and users, and from them the scope that shares answers."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass

from recollect.gateway.config import Budget, GatewayConfig, Key, fingerprint
from recollect.gateway.refusals import Refusal

OWN_KEY = "x-recollect-key"


@dataclass(frozen=True)
class Caller:
    """One who asks.

    Attributes:
        id: who is charged, and the writer of what gets stored.
        scope_id: as `Answers` takes it; empty means that nothing is shared, so nothing is cached.
        tenant: for the dashboard; a short hash where no tenants are configured.
        spends: account -> budget, for each that this caller draws on.
        known: came with a key of ours, which is not for the upstream to see.
    """

    id: str
    scope_id: str
    tenant: str
    spends: Mapping[str, Budget]
    known: bool = False


class Callers:
    """Tells callers apart."""

    def __init__(self, config: GatewayConfig) -> None:
        self._keys = {key.sha256: key for key in config.keys}
        self._tenants = config.tenant_budgets
        self._scope = config.scope
        self._admin = config.admin_key

    def identify(self, headers: Mapping[str, str]) -> Caller:
        """Who sent these headers. Raises Refusal (401) where keys are configured and none fits."""
        sent = headers.get(OWN_KEY) or credential(headers)
        if not self._keys:
            return self._unlisted(sent)
        # A dictionary of digests: what timing tells about a digest tells nothing about a key.
        key = self._keys.get(fingerprint(sent)) if sent else None
        if key is None:
            told = "no API key given" if not sent else "this API key is not known"
            raise Refusal(401, f"{told}; send one as 'Authorization: Bearer …'", "invalid_api_key")
        return self._listed(key)

    def is_admin(self, headers: Mapping[str, str]) -> bool:
        """Whether these headers carry the admin key."""
        sent = headers.get(OWN_KEY) or credential(headers)
        return bool(self._admin) and hmac.compare_digest(
            fingerprint(sent), fingerprint(self._admin)
        )

    def _listed(self, key: Key) -> Caller:
        # A key without a user is a user of its own.
        user = key.user or key.sha256[:16]
        scope = {
            "user": [key.tenant, user],
            "team": [key.tenant, key.team],
            "tenant": [key.tenant],
            "global": ["global"],
        }[self._scope]
        spends = {}
        if key.tenant in self._tenants:
            spends[f"tenant:{key.tenant}"] = self._tenants[key.tenant]
        if key.budget is not None:
            spends[f"key:{key.sha256[:16]}"] = key.budget
        scope_id = json.dumps(scope) if all(scope) else ""
        return Caller(json.dumps([key.tenant, user]), scope_id, key.tenant, spends, known=True)

    def _unlisted(self, sent: str) -> Caller:
        name = hashlib.sha256(sent.encode("utf-8", "surrogateescape")).hexdigest() if sent else ""
        scope_id = {"user": name, "global": "global"}.get(self._scope, "")
        return Caller(name, scope_id, name[:8] or "anonymous", {})


def credential(headers: Mapping[str, str]) -> str:
    """The API key in the headers of OpenAI's or Anthropic's clients; empty when there is none."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key", "")
