"""Streams of OpenAI's `chat.completion.chunk` kind: choices by index, deltas, then `[DONE]`.

Chat completions and plain completions stream the same way and differ in what a choice holds, so
the bookkeeping around the choices is here once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
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

DONE = write_event(b"[DONE]")

# Said anew in every chunk, or padding: no part of the document.
_NOT_KEPT = {"object", "choices", "usage", "obfuscation"}


class ChunkAssembler(Assembler):
    """Joins chunks into one document.

    Args:
        kind: `object` of the document.
    """

    def __init__(self, kind: str) -> None:
        self._head: dict[str, Any] = {}
        self._kind = kind
        self._choices: dict[int, dict[str, Any]] = {}
        self._usage: Any = None
        self._done = False

    def feed(self, event: Event) -> None:
        if not event.data:
            return
        if self._done:
            raise Incomplete("the stream went on after [DONE]")
        if event.data == "[DONE]":
            self._done = True
            return
        try:
            chunk = documents.load_object(event.data)
        except GatewayError as error:
            raise Incomplete(f"a chunk is {error}") from error
        if "error" in chunk or event.kind == "error":
            raise Incomplete("the upstream reported an error within the stream")
        for name, value in chunk.items():
            if name not in _NOT_KEPT and (value is not None or name not in self._head):
                self._head[name] = value
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
        for choice in chunk.get("choices") or ():
            self._feed_choice(choice)

    def document(self) -> dict[str, Any]:
        if not self._done:
            raise Incomplete("the stream ended without [DONE]")
        if not self._choices:
            raise Incomplete("the stream had no choices")
        choices = [self._choices[index] for index in sorted(self._choices)]
        if any(choice.get("finish_reason") is None for choice in choices):
            raise Incomplete("a choice has no finish_reason")
        head = {"id": self._head.get("id"), "object": self._kind}
        rest = {name: value for name, value in self._head.items() if name != "id"}
        document = {**head, **rest, "choices": [self.finish(choice) for choice in choices]}
        if self._usage is not None:
            document["usage"] = self._usage
        return document

    def _feed_choice(self, choice: Any) -> None:
        if not isinstance(choice, dict) or not isinstance(choice.get("index", 0), int):
            raise Incomplete("a choice is not an object with an index")
        index = choice.get("index", 0)
        kept = self._choices.setdefault(index, {"index": index})
        for name, value in choice.items():
            if name == "index":
                continue
            if name == "logprobs":
                kept["logprobs"] = join_logprobs(kept.get("logprobs"), value)
            elif not self.take(kept, name, value) and (value is not None or name not in kept):
                kept[name] = value

    @abstractmethod
    def take(self, kept: dict[str, Any], name: str, value: Any) -> bool:
        """Join one field of a choice; False when the last value simply stays."""

    @abstractmethod
    def finish(self, choice: dict[str, Any]) -> dict[str, Any]:
        """A collected choice as it stands in the document."""


class ChunkProtocol(Protocol):
    """What protocols of this kind share."""

    def replayable(self, document: Mapping[str, Any], request: Mapping[str, Any]) -> str:
        if wants_usage(request) and document.get("usage") is None:
            return "the stored answer has no usage and the request asks for it"
        return ""

    def usage(self, document: Mapping[str, Any]) -> Usage | None:
        return openai_usage(document, "prompt", "completion")

    def error(self, status: int, message: str, code: str) -> dict[str, Any]:
        return openai_error(status, message, code)

    def broken(self, message: str) -> bytes:
        return write_event(documents.dump(self.error(502, message, "upstream_broke")))


def wants_usage(request: Mapping[str, Any]) -> bool:
    """Whether a streaming request asks for a last chunk with the usage."""
    options = request.get("stream_options")
    return bool(
        request.get("stream") and isinstance(options, dict) and options.get("include_usage")
    )


def head_of(document: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The fields that every chunk repeats."""
    rest = {k: v for k, v in document.items() if k not in ("object", "choices", "usage")}
    return {**rest, "object": kind}


def join_logprobs(kept: Any, new: Any) -> Any:
    """Log-probabilities of two pieces: lists one after the other."""
    if new is None or kept is None:
        return new if kept is None else kept
    if not (isinstance(kept, dict) and isinstance(new, dict)):
        raise Incomplete("log-probabilities of a shape that is not known")
    joined = dict(kept)
    for name, value in new.items():
        old = joined.get(name)
        joined[name] = [*old, *value] if isinstance(old, list) and value is not None else value
        if value is None:
            joined[name] = old
    return joined
