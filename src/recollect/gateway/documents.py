"""JSON documents without losing anything: numbers keep their value, text its code points.

The standard library's reader keeps integers of any size, which faster ones turn into floats; an
answer is replayed as it was, or not at all.
"""

from __future__ import annotations

import json
import re
from typing import Any

from recollect.errors import GatewayError


def load(data: bytes | str) -> Any:
    """Read JSON. Raises GatewayError on anything that is not JSON in UTF-8."""
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise GatewayError("nested too deeply") from None
    except UnicodeDecodeError as error:
        raise GatewayError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except ValueError as error:
        raise GatewayError(f"not JSON: {error}") from None


def load_object(data: bytes | str) -> dict[str, Any]:
    """Read a JSON object. Raises GatewayError on anything else."""
    value = load(data)
    if not isinstance(value, dict):
        raise GatewayError("expected a JSON object")
    return value


def dump(value: Any) -> bytes:
    """Compact JSON in UTF-8."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "surrogatepass")


def pieces(text: str, size: int = 256) -> list[str]:
    """A text cut for streaming; one empty piece for an empty text."""
    return [text[i : i + size] for i in range(0, len(text), size)] or [""]


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def members(text: str) -> dict[str, str]:
    """The members of a JSON object, each as the text it was written in."""
    at, found = _start(text, "{"), {}
    while text[at] != "}":
        name, at = _DECODER.raw_decode(text, at)
        start = _skip(text, _skip(text, at) + 1)
        _, end = _DECODER.raw_decode(text, start)
        found[name] = text[start:end]
        at = _next(text, end)
    return found


def elements(text: str) -> list[str]:
    """The elements of a JSON array, each as the text it was written in."""
    at, found = _start(text, "["), []
    while text[at] != "]":
        _, end = _DECODER.raw_decode(text, at)
        found.append(text[at:end])
        at = _next(text, end)
    return found


_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\r\n]*")


def _skip(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _start(text: str, bracket: str) -> int:
    at = _skip(text, 0)
    if text[at : at + 1] != bracket:
        raise GatewayError(f"expected {bracket} in JSON")
    return _skip(text, at + 1)


def _next(text: str, at: int) -> int:
    at = _skip(text, at)
    return _skip(text, at + 1) if text[at] == "," else at
