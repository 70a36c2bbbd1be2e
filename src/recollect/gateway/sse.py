"""Server-sent events as bytes: a parser that keeps what it read, and a writer.

The parser cuts a byte stream at event boundaries, wherever the network cut it, and gives each
event together with its exact bytes, so that a proxy can forward what it read unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from recollect.errors import GatewayError

# The blank line that ends an event, in any of the three line endings of the standard.
_BOUNDARY = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n|\r\n\n")
_LINE = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True)
class Event:
    """One event: its type, its data lines joined by newlines, and the bytes it was read from."""

    kind: str
    data: str
    raw: bytes


class SSEParser:
    """Cuts bytes into events.

    Args:
        limit: the longest event in bytes; a longer one raises GatewayError.
    """

    def __init__(self, limit: int = 64 << 20) -> None:
        self._limit = limit
        self._pending = bytearray()

    @property
    def pending(self) -> bytes:
        """Bytes of an event that is not complete."""
        return bytes(self._pending)

    def feed(self, data: bytes) -> Iterator[Event]:
        """Events that end within `data`; those of comments only have neither kind nor data.

        Raises GatewayError when an event is not UTF-8 or longer than the limit.
        """
        searched = max(0, len(self._pending) - 3)
        self._pending += data
        start = 0
        try:
            while (end := self._boundary(max(start, searched))) is not None:
                event = parse_event(bytes(self._pending[start:end]))
                start = end
                yield event
        finally:
            # What cannot be read stays pending: whoever forwards it must not lose it.
            del self._pending[:start]
        if len(self._pending) > self._limit:
            raise GatewayError(f"an event of the upstream is longer than {self._limit} bytes")

    def _boundary(self, start: int) -> int | None:
        found = _BOUNDARY.search(self._pending, start)
        return found.end() if found else None


def parse_event(raw: bytes) -> Event:
    """Read one event. Raises GatewayError when it is not UTF-8."""
    try:
        text = raw.removeprefix(b"\xef\xbb\xbf")
        kind, data = "", []
        for line in _LINE.split(text):
            name, _, value = line.decode("utf-8").partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                data.append(value)
            elif name == "event":
                kind = value
    except UnicodeDecodeError as error:
        raise GatewayError("the upstream sent a stream that is not UTF-8") from error
    return Event(kind, "\n".join(data), raw)


def write_event(data: bytes, kind: str = "") -> bytes:
    """One event; `data` has no line breaks."""
    head = b"event: " + kind.encode() + b"\n" if kind else b""
    return head + b"data: " + data + b"\n\n"
