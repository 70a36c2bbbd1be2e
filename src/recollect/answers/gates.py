"""Write gates every cache has unless its recipe brings its own: what is no answer is not stored.

In order: a status of success, a complete answer, nothing personal in it, no error, a size, an
ending on the model's own account, no refusal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from recollect.answers.decision import Admission, Write


@dataclass(frozen=True)
class WriteGates:
    """Admission without quarantine.

    Facts it reads: ``status`` (HTTP), ``complete`` (True: the caller judged the ending; False: it
    was cut off), ``personalised`` (context was added after the key was taken), ``ttl`` (seconds).

    Attributes:
        endings: of a choice, a message or a response that may be stored.
        max_bytes: of an answer.
    """

    endings: tuple[str, ...] = ("stop", "end_turn", "stop_sequence", "completed")
    max_bytes: int = 1 << 20

    def admit(self, write: Write) -> Admission:
        """Store it live, or say in a few words why not."""
        problem = self._problem(write)
        if problem:
            return Admission(False, reason=problem)
        ttl = write.facts.get("ttl")
        return Admission(True, ttl=ttl if isinstance(ttl, int | float) else None)

    def _problem(self, write: Write) -> str:
        facts, document = write.facts, write.document
        if not 200 <= facts.get("status", 200) < 300:
            return f"status {facts['status']}"
        if facts.get("complete", True) is not True:
            return "the answer is incomplete"
        if facts.get("personalised"):
            return "the answer is personal"
        if document.get("error"):
            return "the answer is an error"
        if write.size > self.max_bytes:
            return f"larger than {self.max_bytes} bytes"
        if "complete" in facts:
            return ""
        for ending in _endings(document):
            if ending not in self.endings:
                return f"it ended with {ending!r}"
        return "the model refused" if _refuses(document) else ""


def _endings(document: Mapping[str, Any]) -> Iterator[Any]:
    """How the answer ended, where it says so; a null is a stream that never did."""
    for choice in _objects(document.get("choices")):
        if "finish_reason" in choice:
            yield choice["finish_reason"]
    if document.get("type") == "message" and "stop_reason" in document:
        yield document["stop_reason"]
    if document.get("object") == "response" and "status" in document:
        yield document["status"]


def _refuses(document: Mapping[str, Any]) -> bool:
    messages = [choice.get("message") for choice in _objects(document.get("choices"))]
    if any(isinstance(message, Mapping) and message.get("refusal") for message in messages):
        return True
    parts = [part for item in _objects(document.get("output")) for part in _parts(item)]
    return any(part.get("type") == "refusal" for part in parts)


def _parts(item: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return _objects(item.get("content"))


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []
