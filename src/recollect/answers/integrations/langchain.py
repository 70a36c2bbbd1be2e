"""Answers as a LangChain cache: `set_llm_cache(LangChainCache(answers, scope_id="alice"))`.

The model's whole configuration (`llm_string`) is the model of the request, hence partition; the
serialised messages become a request whose last user text may be compared by similarity.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from recollect.answers.answers import Answers
from recollect.answers.results import Ticket
from recollect.errors import HostError

try:
    from langchain_core import messages as lc
    from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
    from langchain_core.load import dumpd, load
    from langchain_core.outputs import (
        ChatGeneration,
        ChatGenerationChunk,
        Generation,
        GenerationChunk,
    )
except ImportError as error:
    raise HostError(
        "the LangChain cache needs langchain-core: pip install recollect[langchain]"
    ) from error

WAITING = 1024  # lookups whose answer is awaited
_ROLES = {"human": "user", "ai": "assistant"}
# What a stored answer may turn into when it is read: data, nothing that connects anywhere.
_ALLOWED: list[Any] = [
    Generation,
    GenerationChunk,
    ChatGeneration,
    ChatGenerationChunk,
    lc.AIMessage,
    lc.AIMessageChunk,
    lc.ChatMessage,
]


class LangChainCache(BaseCache):
    """One user's answers; the async methods are LangChain's own, which run these in threads.

    Args:
        answers: where they are kept; its recipe says whether similar prompts hit.
        scope_id: whose they are; may be empty only where `answers` has the scope ``global``.
    """

    def __init__(self, answers: Answers, scope_id: str = "") -> None:
        self._answers, self._scope_id = answers, scope_id
        self._waiting: OrderedDict[tuple[str, str], Ticket] = OrderedDict()
        self._lock = threading.Lock()

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """The generations of an equal, or by the recipe similar enough, prompt; None otherwise."""
        request, protocol = _request(prompt, llm_string)
        lookup = self._answers.lookup(request, protocol=protocol, scope_id=self._scope_id)
        if lookup.hit:
            return _generations(lookup.document)
        if lookup.ticket is not None:
            with self._lock:
                self._waiting[prompt, llm_string] = lookup.ticket
                while len(self._waiting) > WAITING:
                    self._waiting.popitem(last=False)
        return None

    def update(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """Store what the model said."""
        with self._lock:
            ticket = self._waiting.pop((prompt, llm_string), None)
        document = _document(return_val)
        if ticket is not None:
            self._answers.store(ticket, document)
        else:
            request, protocol = _request(prompt, llm_string)
            self._answers.store(request, document, protocol=protocol, scope_id=self._scope_id)

    def clear(self, **kwargs: Any) -> None:
        """Remove this user's answers; all of them where the cache has no `scope_id`."""
        if self._scope_id:
            self._answers.purge(scope=self._scope_id, dry_run=False)
        else:
            self._answers.purge(everything=True, dry_run=False)


def _request(prompt: str, llm_string: str) -> tuple[dict[str, Any], str]:
    """A chat request where the prompt is a serialised list of messages, else a completion's."""
    try:
        turns = [_turn(message) for message in json.loads(prompt)]
    except (ValueError, TypeError, KeyError):
        return {"model": llm_string, "prompt": prompt}, "completions"
    return {"model": llm_string, "messages": turns}, "chat"


def _turn(message: Mapping[str, Any]) -> dict[str, Any]:
    """A serialised message with its role; all else of it stays and counts."""
    fields = dict(message["kwargs"])
    kind = fields.pop("type")
    return {**fields, "role": _ROLES.get(kind, kind), "class": message["id"]}


def _document(generations: Sequence[Generation]) -> dict[str, Any]:
    """An answer in the shape of a chat completion, for verifiers, with the generations in it."""
    choices = []
    for generation in generations:
        message: dict[str, Any] = {"role": "assistant", "content": generation.text}
        if isinstance(generation, ChatGeneration):
            calls = getattr(generation.message, "tool_calls", None)
            if calls:
                message["tool_calls"] = calls
        info = generation.generation_info or {}
        choices.append({"finish_reason": info.get("finish_reason", "stop"), "message": message})
    return {"choices": choices, "langchain": [dumpd(generation) for generation in generations]}


def _generations(document: Mapping[str, Any]) -> list[Generation] | None:
    try:
        return [load(each, allowed_objects=_ALLOWED) for each in document["langchain"]]
    except (KeyError, ValueError, TypeError):
        return None  # not written by this class, or by a newer LangChain
