"""What the OpenAPI document says of each path: the fields the gateway reads itself, no more.

The upstream decides what else a request may hold, so schemas are open where it is its concern.
"""

from __future__ import annotations

from typing import Any

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}
_OBJECT: dict[str, Any] = {"type": "object"}
_MODEL = {"type": "string", "minLength": 1, "description": "Name of a model of the upstream."}
_STREAM = {"type": ["boolean", "null"], "description": "Answer with server-sent events."}
_EVENT = {"type": "object", "properties": {"event": {"type": "string"}, "data": {"type": "string"}}}
_COUNTS = {"type": "integer", "minimum": 0}

_SUMMARIES = {
    "/v1/chat/completions": ("OpenAI", "Chat completion"),
    "/v1/completions": ("OpenAI", "Completion"),
    "/v1/responses": ("OpenAI", "Response"),
    "/v1/embeddings": ("OpenAI", "Embeddings, cached by item"),
    "/v1/models": ("OpenAI", "Models of the upstream"),
    "/v1/messages": ("Anthropic", "Message"),
    "/recollect": ("recollect", "Dashboard"),
    "/recollect/figures": ("recollect", "Figures of the dashboard"),
    "/recollect/audit": ("recollect", "Latest lines of the audit log"),
    "/recollect/feedback": ("recollect", "Say how good a routed answer was"),
    "/recollect/replay": ("recollect", "Make answers of examples again, keep the better"),
    "/recollect/purge": ("recollect", "Remove stored answers, or say which would go"),
    "/metrics": ("recollect", "Prometheus metrics"),
    "/healthz": ("recollect", "Whether the gateway is up"),
}
_GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")

_DRY_RUN = {"type": "boolean", "default": True, "description": "Only say what would go."}
_PURGE = {
    "oneOf": [
        {
            "type": "object",
            "description": "What matches every criterion given.",
            "additionalProperties": False,
            "anyOf": [{"required": [name]} for name in ("key", "scope", "writer", "before")],
            "properties": {
                "key": {
                    "type": "string",
                    "pattern": "^[0-9a-f]{64}$",
                    "description": "Of one request, as in the audit log.",
                },
                "scope": {"type": "string", "description": "All this scope id may be served."},
                "writer": {"type": "string", "description": "All that this caller wrote."},
                "before": {"type": "number", "description": "Written before, Unix seconds."},
                "dry_run": _DRY_RUN,
            },
        },
        {
            "type": "object",
            "description": "All there is.",
            "additionalProperties": False,
            "required": ["everything"],
            "properties": {"everything": {"const": True}, "dry_run": _DRY_RUN},
        },
    ]
}
_PURGED = {
    "type": "object",
    "required": ["count", "examples", "ids", "categories", "dry_run"],
    "properties": {
        "count": _COUNTS,
        "examples": {**_COUNTS, "description": "Examples for other models."},
        "ids": {"type": "array", "items": {"type": "integer"}},
        "categories": {"type": "object", "additionalProperties": _COUNTS},
        "dry_run": {"type": "boolean"},
    },
}

_FEEDBACK = {
    "type": "object",
    "required": ["answer", "quality"],
    "properties": {
        "answer": {"type": "string", "description": "x-recollect-answer of the answer."},
        "quality": {"type": "number", "minimum": 0, "maximum": 1},
    },
}
_OURS: dict[str, dict[str, Any]] = {"/recollect/purge": _PURGE, "/recollect/feedback": _FEEDBACK}


def describe(method: str, path: str) -> dict[str, Any]:
    """Keywords of FastAPI's `add_api_route`; `extra` is for its `openapi_extra`."""
    tag, summary = _SUMMARIES[path]
    about: dict[str, Any] = {"summary": summary, "tags": [tag], "extra": {}}
    about["responses"] = {
        200: {"description": "Successful response", "content": _content(path)},
        "default": {"description": "Error", "content": {"application/json": {"schema": _ERROR}}},
    }
    if path == "/v1/messages":
        failed = {"type": "object", "required": ["error"], "properties": {"error": _OBJECT}}
        about["responses"]["default"]["content"]["application/json"]["schema"] = failed
    if method == "POST":
        about["extra"] = _request(path)
    if path == "/recollect/audit":
        limit = {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 100}
        about["extra"]["parameters"] = [{"name": "limit", "in": "query", "schema": limit}]
    return about


def _content(path: str) -> dict[str, Any]:
    if path == "/metrics":
        return {"text/plain": {"schema": {"type": "string"}}}
    if path == "/recollect":
        return {"text/html": {"schema": {"type": "string"}}}
    schema = _PURGED if path == "/recollect/purge" else _OBJECT
    content = {"application/json": {"schema": schema}}
    if path in _GENERATING:
        content["text/event-stream"] = {"schema": _EVENT}
    return content


def _request(path: str) -> dict[str, Any]:
    if path == "/recollect/replay":
        return {}
    if path in _OURS:
        schema = _OURS[path]
    else:
        schema = {"type": "object", "required": ["model"], "properties": {"model": _MODEL}}
        if path in _GENERATING:
            schema["properties"] = {"model": _MODEL, "stream": _STREAM}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    if path in _OURS:
        return {"requestBody": body}
    names = {
        "cache-control": ("no-cache, no-store, max-age=SECONDS, only-if-cached", {}),
        "x-recollect-cache": ("bypass, or exact for no answer to a similar request", {}),
        "x-recollect-ttl": ("Seconds to store the answer at most", {"pattern": r"^\d{1,10}$"}),
        "x-recollect-category": ("Category of the query", {}),
        "x-recollect-conversation": ("Conversation that this request continues", {}),
    }
    parameters = [
        {"name": n, "in": "header", "description": text, "schema": {"type": "string", **more}}
        for n, (text, more) in names.items()
    ]
    return {"requestBody": body, "parameters": parameters}
