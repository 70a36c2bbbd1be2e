"""Reading answers: the text a verifier compares, and whether an answer asks for tools.

Documents are what the provider sent, parsed; what does not look like one has no text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from recollect.errors import RecipeError


def read_document(response: bytes) -> Mapping[str, Any]:
    """The answer as JSON; an empty mapping when it is none."""
    try:
        document = json.loads(response)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def as_bytes(response: bytes | Mapping[str, Any]) -> bytes:
    """An answer as it is stored: bytes as they are, anything else as JSON.

    Raises RecipeError when JSON has no text for it.
    """
    if isinstance(response, bytes):
        return response
    try:
        return json.dumps(response, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError(f"JSON has no text for it: {error}") from error


def answer_text(document: Mapping[str, Any]) -> str | None:
    """The text of the first choice, or None when the answer has none.

    Reads chat completions, completions, Responses and Messages.
    """
    for message in _messages(document):
        content = message.get("content")
        if isinstance(content, str):
            return content
        if isinstance(content, list):
            texts = [part.get("text") for part in content if isinstance(part, Mapping)]
            return "".join(text for text in texts if isinstance(text, str)) or None
        if isinstance(message.get("text"), str):
            return message["text"]
    return None


def has_tool_calls(document: Mapping[str, Any]) -> bool:
    """Whether the answer asks its client to run something."""
    for message in [*_messages(document), *_items(document.get("output"))]:
        if message.get("tool_calls") or message.get("function_call"):
            return True
        if str(message.get("type", "")).endswith("_call"):
            return True
        for part in _items(message.get("content")):
            if str(part.get("type", "")).endswith("tool_use"):
                return True
    return False


def same_answer(old: str | None, new: str | None) -> bool:
    """Whether two answers say the same, letter case and spacing aside."""
    if old is None or new is None:
        return False
    return old.casefold().split() == new.casefold().split()


def _messages(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for choice in _items(document.get("choices")):
        message = choice.get("message")
        yield message if isinstance(message, Mapping) else choice
    for item in _items(document.get("output")):
        if item.get("type") == "message":
            yield item
    if document.get("type") == "message":
        yield document


def _items(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []
