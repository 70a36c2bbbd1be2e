"""Canonical JSON: one text for every spelling of the same value, and none shared by two values.

Keys are sorted, whitespace goes, number literals stay as they were written (`1.0` is not `1`).
What JSON parsers disagree about is refused: duplicate keys, NaN, lone surrogates, invalid UTF-8.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from json.encoder import encode_basestring
from typing import Any

from recollect.errors import RecipeError


class Literal(float):
    """A number whose spelling differs from Python's, e.g. ``1.00`` or ``1e2``."""

    literal: str

    def __new__(cls, literal: str) -> Literal:
        number = super().__new__(cls, literal)
        number.literal = literal
        return number


def parse(text: bytes | str) -> dict[str, Any]:
    """A JSON object with its number literals. Raises RecipeError saying what is wrong with it."""
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_float=_float,
            parse_int=_int,
            parse_constant=_constant,
        )
    except UnicodeDecodeError as error:
        raise RecipeError(f"the request is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise RecipeError("the request is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise RecipeError(
            f"the request is not JSON: {error.msg} at character {error.pos}"
        ) from error
    except ValueError as error:  # an integer of more digits than Python reads
        raise RecipeError(f"the request is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RecipeError("the request must be a JSON object")
    return value


def canonical(value: Any) -> bytes:
    """The canonical text of a JSON value as UTF-8.

    Raises RecipeError for what JSON has no text for: NaN, keys that are not strings, lone
    surrogates, objects of other types, nesting too deep to follow.
    """
    try:
        if _is_plain(value):
            return _FAST.encode(value).encode("utf-8")
        out: list[str] = []
        _write(value, out)
        return "".join(out).encode("utf-8")
    except RecursionError as error:
        raise RecipeError("the request is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise RecipeError("the request holds a lone surrogate, which is no text") from error
    except RecipeError:
        raise
    except ValueError as error:
        raise RecipeError("the request holds NaN or an infinity, which JSON has not") from error


# Writes what `_write` does, in C, for values of nothing but Python's own JSON types.
_FAST = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"), check_circular=False
)
_PLAIN_LEAVES = frozenset({str, int, float, bool, type(None)})


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str or not (type(item) in _PLAIN_LEAVES or _is_plain(item)):
                return False
        return True
    if kind is list:
        return all(type(item) in _PLAIN_LEAVES or _is_plain(item) for item in value)
    return kind in _PLAIN_LEAVES


def _write(value: Any, out: list[str]) -> None:
    if isinstance(value, str):
        out.append(encode_basestring(value))
    elif value is None:
        out.append("null")
    elif value is True:
        out.append("true")
    elif value is False:
        out.append("false")
    elif isinstance(value, int):
        out.append(int.__repr__(value))
    elif isinstance(value, float):
        out.append(_number(value))
    elif isinstance(value, dict | Mapping):
        if not all(isinstance(key, str) for key in value):
            raise RecipeError("the request has a key that is not a string")
        mark = "{"
        for key in sorted(value):
            out.append(mark)
            out.append(encode_basestring(key))
            out.append(":")
            _write(value[key], out)
            mark = ","
        out.append("}" if value else "{}")
    elif isinstance(value, list | tuple):
        mark = "["
        for item in value:
            out.append(mark)
            _write(item, out)
            mark = ","
        out.append("]" if value else "[]")
    else:
        raise RecipeError(f"the request holds a {type(value).__name__}, which JSON has not")


def _number(value: float) -> str:
    if isinstance(value, Literal):
        return value.literal
    if not math.isfinite(value):
        raise ValueError("not finite")
    return float.__repr__(value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RecipeError(f"the request has the key {json.dumps(twice)} twice")
    return value


def _float(literal: str) -> float:
    value = float(literal)
    return value if repr(value) == literal else Literal(literal)


def _int(literal: str) -> int | float:
    return Literal(literal) if literal == "-0" else int(literal)


def _constant(name: str) -> Any:
    raise RecipeError(f"the request holds {name}, which JSON has not")
