"""OpenAI's responses: `POST /v1/responses`, a stream of typed events without `[DONE]`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from recollect.errors import GatewayError
from recollect.gateway import documents
from recollect.gateway.protocols.base import (
    Assembler,
    Incomplete,
    Protocol,
    Usage,
    openai_error,
    openai_usage,
)
from recollect.gateway.sse import Event, write_event

_FINAL = ("response.completed", "response.incomplete")


class Responses(Protocol):
    """Responses that leave nothing behind at the provider."""

    name = "responses"
    path = "/v1/responses"

    def bypass(self, request: Mapping[str, Any]) -> str:
        items = request.get("input")
        if isinstance(items, list) and any(
            isinstance(item, dict) and item.get("type") == "item_reference" for item in items
        ):
            return "item_reference is state at the provider"
        return ""

    def assembler(self) -> Assembler:
        return ResponsesAssembler()

    def replay(self, document: Mapping[str, Any], request: Mapping[str, Any]) -> Iterator[bytes]:
        begun = {**document, "status": "in_progress", "output": [], "usage": None}
        begun["incomplete_details"] = None
        incomplete = document.get("status") == "incomplete"
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": begun},
            {"type": "response.in_progress", "response": begun},
        ]
        for index, item in enumerate(document["output"]):
            events += _item_events(item, index)
        events.append({"type": _FINAL[incomplete], "response": dict(document)})
        for sequence, event in enumerate(events):
            kind = str(event.pop("type"))
            data = {"type": kind, "sequence_number": sequence, **event}
            yield write_event(documents.dump(data), kind)

    def endings(self, document: Mapping[str, Any]) -> set[str]:
        found = set()
        if document.get("status") == "completed":
            found.add("stop")
        elif document.get("status") == "incomplete":
            reason = (document.get("incomplete_details") or {}).get("reason")
            found.add("length" if reason == "max_output_tokens" else reason or "unknown")
        else:
            found.add(str(document.get("status")))
        for item in document.get("output") or ():
            if item.get("type") not in ("message", "reasoning"):
                found.add("tool_calls")
            if any(part.get("type") == "refusal" for part in item.get("content") or ()):
                found.add("refusal")
        return found

    def usage(self, document: Mapping[str, Any]) -> Usage | None:
        return openai_usage(document, "input", "output")

    def error(self, status: int, message: str, code: str) -> dict[str, Any]:
        return openai_error(status, message, code)

    def broken(self, message: str) -> bytes:
        data = {"type": "error", "code": "upstream_broke", "message": message, "param": None}
        return write_event(documents.dump(data), "error")


class ResponsesAssembler(Assembler):
    """Waits for the last event, which carries the document, and counts what came before."""

    def __init__(self) -> None:
        self._items = 0
        self._document: dict[str, Any] | None = None

    def feed(self, event: Event) -> None:
        if not event.data or event.data == "[DONE]":
            return
        if self._document is not None:
            raise Incomplete("the stream went on after its last event")
        try:
            data = documents.load_object(event.data)
        except GatewayError as error:
            raise Incomplete(f"an event is {error}") from error
        kind = data.get("type") or event.kind
        if kind in ("response.failed", "error") or "error" in data:
            raise Incomplete("the upstream reported an error within the stream")
        if kind == "response.output_item.done":
            self._items += 1
        elif kind in _FINAL:
            self._document = data.get("response")

    def document(self) -> dict[str, Any]:
        if not isinstance(self._document, dict):
            raise Incomplete("the stream ended without response.completed")
        if len(self._document.get("output") or ()) != self._items:
            raise Incomplete("the last event does not hold every item of the stream")
        return self._document


def _item_events(item: Mapping[str, Any], index: int) -> list[dict[str, Any]]:
    """Events of one output item, from `added` to `done`."""
    place = {"item_id": item.get("id"), "output_index": index}
    empty = {name: value for name, value in item.items() if name != "encrypted_content"}
    middle: list[dict[str, Any]] = []
    if item.get("status") is not None:
        empty["status"] = "in_progress"
    if item.get("type") == "function_call":
        empty["arguments"] = ""
        middle = _text(place, "function_call_arguments", "arguments", item["arguments"])
        middle[-1]["name"] = item.get("name")
    elif item.get("type") == "custom_tool_call":
        empty["input"] = ""
        middle = _text(place, "custom_tool_call_input", "input", item["input"])
    elif item.get("type") in ("message", "reasoning"):
        for number_, part in enumerate(item.get("summary") or ()):
            middle += _part(
                {**place, "summary_index": number_}, part,
                "reasoning_summary_part", "reasoning_summary_text",
            )  # fmt: skip
        for number_, part in enumerate(item.get("content") or ()):
            kind = str(part.get("type"))
            middle += _part({**place, "content_index": number_}, part, "content_part", kind)
        empty |= {name: [] for name in ("summary", "content") if item.get(name) is not None}
    return [
        {"type": "response.output_item.added", "output_index": index, "item": empty},
        *middle,
        {"type": "response.output_item.done", "output_index": index, "item": dict(item)},
    ]


def _part(
    place: dict[str, Any], part: Mapping[str, Any], frame: str, kind: str
) -> list[dict[str, Any]]:
    field = "refusal" if part.get("type") == "refusal" else "text"
    empty = {**part, field: ""}
    empty |= {name: [] for name in ("annotations", "logprobs") if name in part}
    notes = [
        {
            "type": f"response.{kind}.annotation.added",
            **place,
            "annotation_index": number_,
            "annotation": note,
        }
        for number_, note in enumerate(part.get("annotations") or ())
    ]
    words = _text(place, kind, field, part.get(field) or "")
    if kind == "output_text":
        logprobs = part.get("logprobs") or []
        for place_, event in enumerate(words):
            # They belong to the whole text: they come with its first piece and at its end.
            event["logprobs"] = logprobs if place_ in (0, len(words) - 1) else []
    return [
        {"type": f"response.{frame}.added", **place, "part": empty},
        *words[:-1],
        *notes,
        words[-1],
        {"type": f"response.{frame}.done", **place, "part": dict(part)},
    ]


def _text(place: dict[str, Any], kind: str, field: str, text: str) -> list[dict[str, Any]]:
    deltas = [
        {"type": f"response.{kind}.delta", **place, "delta": piece}
        for piece in documents.pieces(text)
    ]
    return [*deltas, {"type": f"response.{kind}.done", **place, field: text}]
