"""OpenAI's chat completions: `POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from recollect.gateway import documents
from recollect.gateway.protocols.base import Incomplete
from recollect.gateway.protocols.chunks import (
    DONE,
    ChunkAssembler,
    ChunkProtocol,
    head_of,
    wants_usage,
)
from recollect.gateway.sse import write_event

# Pieces of these fields are joined; `reasoning` and `reasoning_content` are two servers' names.
_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")
_EMPTY: tuple[Any, ...] = (None, "", [], {})


class Chat(ChunkProtocol):
    """Chat completions."""

    name = "chat"
    path = "/v1/chat/completions"

    def bypass(self, request: Mapping[str, Any]) -> str:
        if request.get("store") is True:
            return "store: true makes an object at the provider"
        if "audio" in (request.get("modalities") or ()):
            return "audio answers expire at the provider"
        return ""

    def assembler(self) -> ChunkAssembler:
        return ChatAssembler()

    def replay(self, document: Mapping[str, Any], request: Mapping[str, Any]) -> Iterator[bytes]:
        head = head_of(document, "chat.completion.chunk")
        if wants_usage(request):
            head["usage"] = None

        def chunk(index: int, delta: Any, finish: Any = None, **more: Any) -> bytes:
            choice = {"index": index, "delta": delta, **more, "finish_reason": finish}
            return write_event(documents.dump({**head, "choices": [choice]}))

        choices = document["choices"]
        for choice in choices:
            yield chunk(choice["index"], {"role": choice["message"].get("role", "assistant")})
        for choice in choices:
            for delta, more in _deltas(choice):
                yield chunk(choice["index"], delta, **more)
        for choice in choices:
            known = ("index", "message", "logprobs", "finish_reason")
            more = {name: value for name, value in choice.items() if name not in known}
            yield chunk(choice["index"], {}, choice["finish_reason"], **more)
        if wants_usage(request):
            last = {**head, "choices": [], "usage": document["usage"]}
            yield write_event(documents.dump(last))
        yield DONE

    def endings(self, document: Mapping[str, Any]) -> set[str]:
        found: set[str] = set()
        for choice in document.get("choices") or [{}]:
            reason = choice.get("finish_reason") or "unknown"
            message = choice.get("message") or {}
            found.add("tool_calls" if reason == "function_call" else reason)
            if message.get("refusal"):
                found.add("refusal")
            if message.get("tool_calls") or message.get("function_call"):
                found.add("tool_calls")
            if message.get("audio"):
                found.add("audio")
        return found


class ChatAssembler(ChunkAssembler):
    """Joins the deltas of each choice into its message."""

    def __init__(self) -> None:
        super().__init__("chat.completion")

    def take(self, kept: dict[str, Any], name: str, value: Any) -> bool:
        if name != "delta":
            return False
        message = kept.setdefault("message", {"role": "assistant", "content": None})
        for field, piece in (value or {}).items():
            _join(message, field, piece)
        return True

    def finish(self, choice: dict[str, Any]) -> dict[str, Any]:
        message = dict(choice.get("message") or {"role": "assistant", "content": None})
        if "tool_calls" in message:
            calls = message["tool_calls"]
            message["tool_calls"] = [calls[index] for index in sorted(calls)]
        order = {"index": choice["index"], "message": message}
        order["logprobs"] = choice.get("logprobs")
        order["finish_reason"] = choice["finish_reason"]
        return {**order, **{k: v for k, v in choice.items() if k not in order}}


def _join(message: dict[str, Any], field: str, piece: Any) -> None:
    if field in _TEXTS:
        if piece is not None:
            message[field] = (message.get(field) or "") + piece
        elif field not in message:
            message[field] = None
    elif field == "role":
        message["role"] = piece or message["role"]
    elif field == "tool_calls":
        calls = message.setdefault("tool_calls", {}) if piece else {}
        for part in piece or ():
            _join_call(calls, part)
    elif field == "function_call" and isinstance(piece, dict):
        call = message.setdefault("function_call", {"name": "", "arguments": ""})
        call["name"] = piece.get("name") or call["name"]
        call["arguments"] += piece.get("arguments") or ""
    elif piece not in _EMPTY:
        raise Incomplete(f"a delta has the field '{field}', which is not known")


def _join_call(calls: dict[int, dict[str, Any]], part: Any) -> None:
    """Tool calls come by index: id and name once, arguments in fragments."""
    if not isinstance(part, dict) or not isinstance(part.get("index"), int):
        raise Incomplete("a tool call without an index")
    call = calls.setdefault(part["index"], {})
    for name, value in part.items():
        if name in ("function", "custom") and isinstance(value, dict):
            inner = call.setdefault(name, {})
            for field, piece in value.items():
                if field in ("arguments", "input"):
                    inner[field] = inner.get(field, "") + (piece or "")
                elif piece is not None:
                    inner[field] = piece
        elif name != "index" and value is not None:
            call[name] = value


def _deltas(choice: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """What a choice says, in pieces: reasoning first, as models do, then text, then calls."""
    message = choice["message"]
    logprobs = choice.get("logprobs")
    more = {} if logprobs is None else {"logprobs": logprobs}
    for field in ("reasoning_content", "reasoning", "content", "refusal"):
        text = message.get(field)
        if not isinstance(text, str):
            continue
        for piece in documents.pieces(text):
            # Log-probabilities belong to the whole text: they come with its first piece.
            carried, more = (more, {}) if field in ("content", "refusal") else ({}, more)
            yield {field: piece}, carried
    if more:
        yield {}, more
    for index, call in enumerate(message.get("tool_calls") or ()):
        yield {"tool_calls": [{"index": index, **call}]}, {}
    if message.get("function_call"):
        yield {"function_call": message["function_call"]}, {}
