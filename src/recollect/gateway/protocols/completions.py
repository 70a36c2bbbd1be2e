"""OpenAI's plain completions: `POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from recollect.gateway import documents
from recollect.gateway.protocols.chunks import (
    DONE,
    ChunkAssembler,
    ChunkProtocol,
    head_of,
    wants_usage,
)
from recollect.gateway.sse import write_event

_KIND = "text_completion"


class Completions(ChunkProtocol):
    """Plain completions; a chunk and a document are both a `text_completion`."""

    name = "completions"
    path = "/v1/completions"

    def assembler(self) -> ChunkAssembler:
        return CompletionsAssembler()

    def replay(self, document: Mapping[str, Any], request: Mapping[str, Any]) -> Iterator[bytes]:
        head = head_of(document, _KIND)
        if wants_usage(request):
            head["usage"] = None
        for choice in document["choices"]:
            *most, last = documents.pieces(choice["text"])
            logprobs = choice.get("logprobs")
            for piece in most:
                part = {
                    "index": choice["index"], "text": piece,
                    "logprobs": logprobs, "finish_reason": None,
                }  # fmt: skip
                logprobs = None  # they come once, with the first piece
                yield write_event(documents.dump({**head, "choices": [part]}))
            part = {**choice, "text": last, "logprobs": logprobs}
            yield write_event(documents.dump({**head, "choices": [part]}))
        if wants_usage(request):
            usage = {**head, "choices": [], "usage": document["usage"]}
            yield write_event(documents.dump(usage))
        yield DONE

    def endings(self, document: Mapping[str, Any]) -> set[str]:
        choices = document.get("choices") or [{}]
        return {choice.get("finish_reason") or "unknown" for choice in choices}


class CompletionsAssembler(ChunkAssembler):
    """Joins the texts of each choice."""

    def __init__(self) -> None:
        super().__init__(_KIND)

    def take(self, kept: dict[str, Any], name: str, value: Any) -> bool:
        if name != "text":
            return False
        kept["text"] = kept.get("text", "") + (value or "")
        return True

    def finish(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {"index": choice["index"], "text": "", "logprobs": None, **choice}
