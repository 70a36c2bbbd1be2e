"""Streams and documents as real servers send them, in every shape the protocols have."""

from __future__ import annotations

import json
from typing import Any

from recollect.gateway.sse import SSEParser, write_event


def sse(*chunks: Any, done: bool = True) -> bytes:
    """Chunks of OpenAI's kind."""
    body = b"".join(write_event(json.dumps(chunk).encode()) for chunk in chunks)
    return body + (b"data: [DONE]\n\n" if done else b"")


def typed(*events: dict[str, Any]) -> bytes:
    """Events of Anthropic's and the responses' kind."""
    return b"".join(write_event(json.dumps(event).encode(), event["type"]) for event in events)


def assemble(protocol: Any, stream: bytes, step: int = 1 << 20) -> dict[str, Any]:
    """The document in a stream that arrives `step` bytes at a time."""
    parser, assembler = SSEParser(), protocol.assembler()
    for start in range(0, len(stream), step):
        for event in parser.feed(stream[start : start + step]):
            assembler.feed(event)
    return assembler.document()


def chunk(*choices: dict[str, Any], **more: Any) -> dict[str, Any]:
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return {**head, "choices": list(choices), **more}


def delta(index: int, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"index": index, "delta": fields, "finish_reason": finish}


def chat_document(*choices: dict[str, Any], **more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    document = {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "system_fingerprint": "fp",
        "choices": list(choices),
        "usage": usage,
    }
    return {**document, **more}


def choice(index: int = 0, finish: str = "stop", logprobs: Any = None, **message: Any) -> dict:
    message = {"role": "assistant", "content": None, **message}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1, 2]}'}}
CALLS = [CALL, {**CALL, "id": "call_2", "function": {"name": "g", "arguments": ""}}]

CHAT_DOCUMENTS = [
    chat_document(choice(content="Grüße, 世界 👋 " * 100)),
    chat_document(choice(content="")),
    chat_document(choice(0, content="one"), choice(1, content="two", finish="length")),
    chat_document(choice(refusal="I can't help with that.")),
    chat_document(choice(finish="tool_calls", tool_calls=CALLS)),
    chat_document(choice(content="a", reasoning_content="because " * 80)),
    chat_document(choice(content="a", reasoning="because")),
    chat_document(choice(finish="function_call", function_call={"name": "f", "arguments": "{}"})),
    chat_document(choice(content="ab", logprobs={"content": [{"token": "ab"}], "refusal": None})),
    chat_document(choice(content="x"), service_tier="default"),
]

MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude",
    "content": [],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 9, "output_tokens": 4, "cache_read_input_tokens": 2},
}


def message(*content: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**MESSAGE, "content": list(content), **more}


MESSAGE_DOCUMENTS = [
    message({"type": "text", "text": "Grüße 👋 " * 100}),
    message({"type": "text", "text": ""}),
    message(
        {"type": "thinking", "thinking": "hm " * 200, "signature": "c2ln"},
        {"type": "text", "text": "a", "citations": [{"type": "char_location", "n": 1}]},
    ),
    message(
        {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": [1, 2.5], "b": "ü" * 300}},
        {"type": "tool_use", "id": "t2", "name": "g", "input": {}},
        stop_reason="tool_use",
    ),
    message({"type": "redacted_thinking", "data": "eA=="}, {"type": "text", "text": "b"}),
]


def response(*output: dict[str, Any], status: str = "completed", **more: Any) -> dict[str, Any]:
    document = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1.0,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": "m",
        "output": list(output),
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": {
            "input_tokens": 3,
            "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
            "output_tokens": 4,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 7,
        },
    }
    return {**document, **more}


def said(*parts: dict[str, Any]) -> dict[str, Any]:
    head = {"id": "m1", "type": "message", "status": "completed", "role": "assistant"}
    return {**head, "content": list(parts)}


def text_part(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": [], **more}


NOTE = {"type": "url_citation", "url": "x", "title": "t", "start_index": 0, "end_index": 1}
RESPONSE_DOCUMENTS = [
    response(said(text_part("Grüße 👋 " * 100))),
    response(said(text_part("a", annotations=[NOTE]), text_part("b"))),
    response(said({"type": "refusal", "refusal": "no"})),
    response(
        {
            "id": "r1",
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "first " * 60}],
            "content": [{"type": "reasoning_text", "text": "then"}],
        },
        said(text_part("c")),
    ),
    response(
        {
            "id": "f1",
            "type": "function_call",
            "status": "completed",
            "call_id": "call_1",
            "name": "f",
            "arguments": '{"a": 1}',
        }
    ),
    response(
        said(text_part("cut")),
        status="incomplete",
        incomplete_details={"reason": "max_output_tokens"},
    ),
]

COMPLETION_DOCUMENTS = [
    {
        "id": "cmpl",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": i, "text": text, "logprobs": None, "finish_reason": "stop"}
            for i, text in enumerate(("Grüße 👋 " * 100, ""))
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
]
