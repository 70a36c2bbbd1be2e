"""Anthropic's messages: `POST /v1/messages`, events from `message_start` to `message_stop`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from recollect.errors import GatewayError
from recollect.gateway import documents
from recollect.gateway.protocols.base import Assembler, Incomplete, Protocol, Usage, number
from recollect.gateway.sse import Event, write_event

_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_ENDINGS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
}
# Type of a delta -> the block's field that its text is joined to.
_JOINED = {"text_delta": "text", "thinking_delta": "thinking"}


class Messages(Protocol):
    """Messages."""

    name = "messages"
    path = "/v1/messages"

    def assembler(self) -> Assembler:
        return MessagesAssembler()

    def replay(self, document: Mapping[str, Any], request: Mapping[str, Any]) -> Iterator[bytes]:
        usage = document.get("usage") or {}
        begun = {**document, "content": [], "stop_reason": None, "stop_sequence": None}
        begun["usage"] = {**usage, "output_tokens": 0}
        yield _event("message_start", message=begun)
        for index, block in enumerate(document["content"]):
            yield from _block_events(block, index)
        stop = {name: document.get(name) for name in ("stop_reason", "stop_sequence")}
        yield _event("message_delta", delta=stop, usage=usage)
        yield _event("message_stop")

    def endings(self, document: Mapping[str, Any]) -> set[str]:
        reason = document.get("stop_reason") or "unknown"
        found = {_ENDINGS.get(reason, reason)}
        known = ("text", "thinking", "redacted_thinking")
        if any(block.get("type") not in known for block in document.get("content") or ()):
            found.add("tool_calls")
        return found

    def usage(self, document: Mapping[str, Any]) -> Usage | None:
        found = document.get("usage")
        if not isinstance(found, dict):
            return None
        cached = number(found.get("cache_read_input_tokens"))
        written = number(found.get("cache_creation_input_tokens"))
        fresh = number(found.get("input_tokens"))
        return Usage(fresh + written + cached, number(found.get("output_tokens")), cached)

    def error(self, status: int, message: str, code: str) -> dict[str, Any]:
        kind = _ERRORS.get(status, "invalid_request_error" if status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}}

    def broken(self, message: str) -> bytes:
        return write_event(documents.dump(self.error(502, message, "upstream_broke")), "error")


class MessagesAssembler(Assembler):
    """Joins the deltas of each block into its place in the message."""

    def __init__(self) -> None:
        self._message: dict[str, Any] | None = None
        self._blocks: dict[int, dict[str, Any]] = {}
        self._inputs: dict[int, str] = {}
        self._open: set[int] = set()
        self._stopped = False

    def feed(self, event: Event) -> None:
        if not event.data or event.kind == "ping":
            return
        if self._stopped:
            raise Incomplete("the stream went on after message_stop")
        try:
            data = documents.load_object(event.data)
            self._take(data.get("type") or event.kind, data)
        except (KeyError, TypeError, AttributeError) as error:
            raise Incomplete("an event of a shape that is not known") from error
        except Incomplete:
            raise
        except GatewayError as error:
            raise Incomplete(f"an event is {error}") from error

    def document(self) -> dict[str, Any]:
        if self._message is None or not self._stopped or self._open:
            raise Incomplete("the stream ended without message_stop")
        content = [self._blocks[index] for index in sorted(self._blocks)]
        return {**self._message, "content": content}

    def _take(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "ping":
            return
        if kind == "error":
            raise Incomplete("the upstream reported an error within the stream")
        if kind == "message_start":
            self._message = dict(data["message"])
            return
        if self._message is None:
            raise Incomplete("the stream does not begin with message_start")
        if kind == "content_block_start":
            self._blocks[data["index"]] = dict(data["content_block"])
            self._open.add(data["index"])
        elif kind == "content_block_delta":
            self._join(data["index"], data["delta"])
        elif kind == "content_block_stop":
            self._close(data["index"])
        elif kind == "message_delta":
            self._message |= data["delta"]
            seen = {k: v for k, v in (data.get("usage") or {}).items() if v is not None}
            self._message["usage"] = {**(self._message.get("usage") or {}), **seen}
        elif kind == "message_stop":
            self._stopped = True
        else:
            raise Incomplete(f"an event of type '{kind}', which is not known")

    def _join(self, index: int, delta: dict[str, Any]) -> None:
        block, kind = self._blocks[index], delta["type"]
        if kind in _JOINED:
            block[_JOINED[kind]] = (block.get(_JOINED[kind]) or "") + delta[_JOINED[kind]]
        elif kind == "signature_delta":
            block["signature"] = delta["signature"]
        elif kind == "input_json_delta":
            self._inputs[index] = self._inputs.get(index, "") + delta["partial_json"]
        elif kind == "citations_delta":
            block["citations"] = [*(block.get("citations") or []), delta["citation"]]
        else:
            raise Incomplete(f"a delta of type '{kind}', which is not known")

    def _close(self, index: int) -> None:
        self._open.remove(index)
        if self._inputs.get(index):
            self._blocks[index]["input"] = documents.load_object(self._inputs[index])


def _block_events(block: Mapping[str, Any], index: int) -> Iterator[bytes]:
    """Events of one content block, from start to stop."""
    begun = dict(block)
    deltas: list[dict[str, Any]] = []
    for kind, field in _JOINED.items():
        if isinstance(block.get(field), str) and block.get("type") == field:
            begun[field] = ""
            deltas += [{"type": kind, field: piece} for piece in documents.pieces(block[field])]
    for citation in block.get("citations") or ():
        begun["citations"] = []
        deltas.append({"type": "citations_delta", "citation": citation})
    if block.get("type") == "thinking" and block.get("signature"):
        begun["signature"] = ""
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
    if "input" in block:
        begun["input"] = {}
        text = json.dumps(block["input"], ensure_ascii=False)
        pieces = documents.pieces(text) if block["input"] else [""]
        deltas += [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    yield _event("content_block_start", index=index, content_block=begun)
    for delta in deltas:
        yield _event("content_block_delta", index=index, delta=delta)
    yield _event("content_block_stop", index=index)


def _event(kind: str, **data: Any) -> bytes:
    return write_event(documents.dump({"type": kind, **data}), kind)
