"""Identity of a request: when two requests may share an answer, and when never.

Every field of a request changes its fingerprint unless it is in `DROPPED`, which lists by protocol
what cannot change an answer. Isolation (user, model, policy, epoch) sits in the partition, where
only equality counts. Shape of the contract: vllm-project/semantic-router's two fingerprints.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from recollect.answers.canonical import canonical, parse
from recollect.answers.protocols import UserText, hidden_state, unsafe_for_similarity, user_text
from recollect.errors import RecipeError

__all__ = [
    "DROPPED",
    "KEY_HEADERS",
    "PROTOCOLS",
    "SCOPES",
    "Partition",
    "RequestIdentity",
    "SemanticRules",
    "canonical",
    "identify",
    "keyed",
    "parse",
    "scope_digest",
    "split_embeddings",
    "writer_digest",
]

PROTOCOLS = ("chat", "responses", "embeddings", "completions", "messages")
SCOPES = ("user", "team", "tenant", "global")

_OPENAI = (
    "metadata",
    "prompt_cache_key",
    "prompt_cache_retention",
    "request_id",
    "safety_identifier",
    "service_tier",
    "store",
    "stream_options",
    "user",
)
# Fields that cannot change the answer, by protocol; top level only. `model` moves to the partition
# for the compatibility fingerprint; `stream`, when a boolean, is the partition's wire mode; `user`
# and `safety_identifier` narrow the scope.
DROPPED: Mapping[str, frozenset[str]] = {
    "chat": frozenset(_OPENAI),
    "responses": frozenset(_OPENAI),
    "completions": frozenset({"request_id", "stream_options", "user"}),
    "embeddings": frozenset({"request_id", "user"}),
    "messages": frozenset({"metadata", "service_tier"}),
}
# Request headers that change what a provider answers; all others are left out of the key.
KEY_HEADERS = (
    "anthropic-beta",
    "anthropic-version",
    "openai-beta",
    "openai-organization",
    "openai-project",
)

_QUERY = "<query>"  # stands where the last user text of every comparable request stands
_DOMAIN = b"recollect.answers.identity.1"


class Partition(NamedTuple):
    """The hard isolation key: two requests of different partitions never see each other."""

    protocol: str
    wire: str
    scope: str
    scope_key: str
    model: str
    resolved_model: str
    policy: str
    epoch: str


@dataclass(frozen=True)
class SemanticRules:
    """Which requests may be answered by a similar one rather than by the same one.

    Attributes:
        max_history: messages before the last one, at most.
        max_temperature: above it the caller wants variety, not the same answer again.
        allow_tools: requests that offer tools may hit by similarity.
        chained: earlier turns are left out of the compatibility fingerprint; the decision
            policy must then test the conversation's parent entry (MeanCache).
    """

    max_history: int = 8
    max_temperature: float = 1.0
    allow_tools: bool = False
    chained: bool = False


@dataclass(frozen=True)
class RequestIdentity:
    """Who may share an answer to this request.

    Attributes:
        partition: a `Partition`; equality only, never similarity.
        exact_fp: SHA-256 of the canonical request.
        compat_fp: the same without model and with the last user text replaced by a placeholder:
            requests that differ in nothing but that text.
        query: the last user text, the only thing similarity compares.
        semantic_safe: whether it may be compared at all.
        reason: why not cacheable, or why not semantic_safe; empty when both.
        cacheable: False means neither read nor write.
        follow_up: there are earlier turns in the conversation.
    """

    partition: tuple[str, ...]
    exact_fp: bytes
    compat_fp: bytes
    query: str
    semantic_safe: bool
    reason: str
    cacheable: bool = True
    follow_up: bool = False


def identify(
    request: Mapping[str, Any] | bytes | str,
    *,
    protocol: str = "chat",
    scope: str = "user",
    scope_id: str = "",
    secret: bytes = b"",
    resolved_model: str = "",
    policy: str = "",
    epoch: int = 0,
    wire: str = "",
    headers: Mapping[str, str] | None = None,
    rules: SemanticRules | None = None,
    owns_state: bool = False,
) -> RequestIdentity:
    """The identity of a request.

    Args:
        request: parsed, or its JSON text (number literals are kept).
        protocol: one of `PROTOCOLS`.
        scope: who shares answers, one of `SCOPES`; the widest only by saying so.
        scope_id: who asks, as authenticated. Empty turns caching off, except for ``global``.
        secret: key of the HMAC-SHA256 that hides `scope_id`.
        resolved_model: what `model` stands for now: revision, adapter.
        policy: fingerprint of whatever else shapes answers (prompts added, filters).
        epoch: raise it to leave all earlier answers behind.
        wire: ``stream`` or ``body``; read from the request's `stream` when empty. Say ``body``
            always when one stored document serves both.
        headers: of the HTTP request; those in `KEY_HEADERS` belong to the key.
        rules: which requests may hit by similarity.
        owns_state: the caller can serve ids of replayed responses (`store` of Responses).

    Raises RecipeError when the request is not valid JSON or an argument is out of range.
    """
    if protocol not in PROTOCOLS:
        raise RecipeError(f"unknown protocol '{protocol}'; there are: {', '.join(PROTOCOLS)}")
    if scope not in SCOPES:
        raise RecipeError(f"unknown scope '{scope}'; there are: {', '.join(SCOPES)}")
    if isinstance(request, (bytes, str)):
        request = parse(request)
    rules = rules or SemanticRules()
    if protocol == "embeddings":
        request = _one_item(request)

    kept = {name: value for name, value in request.items() if name not in DROPPED[protocol]}
    stream = request.get("stream")
    if stream is None or isinstance(stream, bool):
        kept.pop("stream", None)
    answering = _key_headers(headers)
    digest = _digest(protocol, "exact", answering, kept)

    model = request.get("model")
    partition = Partition(
        protocol,
        wire or ("stream" if stream is True else "body"),
        scope,
        _scope_key(request, protocol, scope, scope_id, secret),
        model if isinstance(model, str) else "",
        resolved_model,
        policy,
        str(epoch),
    )
    last = user_text(request, protocol, _QUERY, rules.chained)
    refusal = "no scope id" if not scope_id and scope != "global" else ""
    refusal = refusal or hidden_state(request, protocol, owns_state)
    unsafe = refusal or last.problem or _unsafe(request, protocol, last, rules)
    if isinstance(model, str):
        del kept["model"]
    kept.update(last.replaced)
    return RequestIdentity(
        partition=partition,
        exact_fp=digest,
        compat_fp=_digest(protocol, "compat", answering, kept),
        query=last.text,
        semantic_safe=not unsafe,
        reason=unsafe,
        cacheable=not refusal,
        follow_up=last.history > 0,
    )


@lru_cache(maxsize=4096)
def keyed(secret: bytes, *names: str) -> str:
    """HMAC-SHA256 of names under the secret, in hex: names apart never run together."""
    return hmac.digest(secret, canonical(list(names)), "sha256").hex()


def scope_digest(secret: bytes, scope: str, scope_id: str) -> str:
    """What stands for a scope in the store."""
    return keyed(secret, "global") if scope == "global" else keyed(secret, scope, scope_id)


def writer_digest(secret: bytes, user: str) -> str:
    """What stands in the store for one who writes."""
    return keyed(secret, "writer", user)


def split_embeddings(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One request per item of an embeddings request, in order: each is cached by itself."""
    items = request.get("input")
    if not isinstance(items, list) or not items or isinstance(items[0], int):
        items = [items]  # one text, or one text as token ids
    return [{**request, "input": item} for item in items]


def _one_item(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """`["text"]` asks for the same as `"text"`."""
    items = request.get("input")
    if isinstance(items, list) and len(items) == 1 and not isinstance(items[0], int):
        return {**request, "input": items[0]}
    return request


def _key_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    if not headers:
        return {}
    lowered = {name.lower(): value for name, value in headers.items()}
    return {name: lowered[name] for name in KEY_HEADERS if name in lowered}


def _digest(protocol: str, kind: str, headers: dict[str, str], request: dict[str, Any]) -> bytes:
    hasher = hashlib.sha256(_DOMAIN)
    hasher.update(canonical([protocol, kind, headers, request]))
    return hasher.digest()


def _scope_key(
    request: Mapping[str, Any], protocol: str, scope: str, scope_id: str, secret: bytes
) -> str:
    """Users named inside a body narrow the user scope (after the colon); they never widen it."""
    outer = scope_digest(secret, scope, scope_id)
    if scope != "user":
        return outer
    if protocol == "messages":
        metadata = request.get("metadata")
        inner = [metadata.get("user_id") if isinstance(metadata, Mapping) else None]
    else:
        inner = [request.get("user"), request.get("safety_identifier")]
    if all(name is None for name in inner):
        return outer
    return f"{outer}:{keyed(secret, 'inner', canonical(inner).decode())}"


def _unsafe(request: Mapping[str, Any], protocol: str, last: UserText, rules: SemanticRules) -> str:
    if last.history > rules.max_history:
        return f"more than {rules.max_history} earlier messages"
    temperature = request.get("temperature")
    if isinstance(temperature, int | float) and temperature > rules.max_temperature:
        return f"temperature above {rules.max_temperature}"
    return unsafe_for_similarity(request, protocol, rules.allow_tools)
