"""What the gateway must know about a wire protocol: six questions, answered by one file each.

A *document* is what a request gets when it does not stream. An assembler turns a stream into the
document, `replay` turns the document into a stream; both together are the identity on documents.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from recollect.errors import GatewayError
from recollect.gateway.sse import Event


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer; `cached` is the part of the prompt the provider had cached."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    @property
    def total(self) -> int:
        return self.prompt + self.completion


class Incomplete(GatewayError):
    """A stream cannot be kept: broken, failed, or of a shape that is not known."""


class Assembler(ABC):
    """Collects one stream. Feed it every event; ask for the document at the end."""

    @abstractmethod
    def feed(self, event: Event) -> None:
        """Take an event. Raises Incomplete when the stream can no longer be kept."""

    @abstractmethod
    def document(self) -> dict[str, Any]:
        """The document. Raises Incomplete when the end of the stream was not seen."""


class Protocol(ABC):
    """One request-response protocol of an HTTP API.

    Attributes:
        name: as in `recollect.answers.identify`.
        path: the path below the upstream's address.
    """

    name: str
    path: str

    def bypass(self, request: Mapping[str, Any]) -> str:
        """Why this request is neither looked up nor stored; empty when it may be.

        State outside the request is `identify`'s to see; this is what a stored answer lacks.
        """
        return ""

    @abstractmethod
    def assembler(self) -> Assembler:
        """A fresh assembler."""

    @abstractmethod
    def replay(self, document: Mapping[str, Any], request: Mapping[str, Any]) -> Iterator[bytes]:
        """The document as the stream that `request` asks for."""

    def replayable(self, document: Mapping[str, Any], request: Mapping[str, Any]) -> str:
        """Why this document cannot answer this request; empty when it can."""
        return ""

    @abstractmethod
    def endings(self, document: Mapping[str, Any]) -> set[str]:
        """How the answer ended: of {stop, length, content_filter, tool_calls, refusal} and more.

        Everything but `stop` is kept only where the gateway's policy says so.
        """

    @abstractmethod
    def usage(self, document: Mapping[str, Any]) -> Usage | None:
        """What the answer cost, or None where the document does not say."""

    @abstractmethod
    def error(self, status: int, message: str, code: str) -> dict[str, Any]:
        """An error as this protocol's clients read it."""

    @abstractmethod
    def broken(self, message: str) -> bytes:
        """The event that tells a client that its stream broke."""


def openai_error(status: int, message: str, code: str) -> dict[str, Any]:
    """OpenAI's error document."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def openai_usage(document: Mapping[str, Any], given: str, made: str) -> Usage | None:
    """The usage of a document of OpenAI's.

    Args:
        document: the document.
        given, made: what its fields call the two sides, e.g. ``prompt`` and ``completion``.
    """
    found = document.get("usage")
    if not isinstance(found, dict):
        return None
    details = found.get(f"{given}_tokens_details")
    return Usage(
        number(found.get(f"{given}_tokens")),
        number(found.get(f"{made}_tokens")),
        number(details.get("cached_tokens")) if isinstance(details, dict) else 0,
    )


def number(value: Any) -> int:
    """A count in a document of someone else: anything but a whole number counts as 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
