"""What each protocol's requests look like to a cache: the last user text, and what forbids reuse.

Chat completions, Responses, completions and embeddings of OpenAI; Messages of Anthropic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_TEXT_PARTS = ("text", "input_text")
# Fields with which one request asks for several answers or for more than the text.
_EXACT_ONLY = ("logprobs", "top_logprobs", "prompt_logprobs", "echo", "audio", "prediction")
_TOOLS = ("tools", "functions")


class UserText(NamedTuple):
    """The last user text of a request.

    `replaced` holds the request's fields that contained it, with the text taken out; `history`
    counts earlier turns of the conversation; `problem` says why there is no such text.
    """

    text: str
    replaced: Mapping[str, Any]
    history: int
    problem: str


def user_text(
    request: Mapping[str, Any], protocol: str, placeholder: Any, chained: bool = False
) -> UserText:
    """Find the last user text and take it out.

    Args:
        placeholder: put in its place.
        chained: earlier user and assistant turns are taken out as well.
    """
    if protocol == "embeddings":
        return UserText("", {}, 0, "embeddings are cached exactly")
    if protocol == "completions":
        prompt = request.get("prompt")
        if not isinstance(prompt, str):
            return UserText("", {}, 0, "the prompt is not one text")
        return UserText(prompt, {"prompt": placeholder}, 0, "")
    name = "input" if protocol == "responses" else "messages"
    turns = request.get(name)
    if name == "input" and isinstance(turns, str):
        return UserText(turns, {name: [{"content": placeholder, "role": "user"}]}, 0, "")
    if not isinstance(turns, list) or not turns:
        return UserText("", {}, 0, f"{name} is empty")
    return _last_turn(name, turns, placeholder, chained)


def hidden_state(request: Mapping[str, Any], protocol: str, owns_state: bool = False) -> str:
    """Why the answer depends on more than the request, or an empty string.

    `owns_state`: the caller can serve the id of a replayed response.
    """
    fields: Sequence[str] = ()
    if protocol == "responses":
        fields = ("previous_response_id", "conversation", "background", "prompt")
        if not owns_state and request.get("store") is not False:
            return "the response would be stored upstream (send store=false)"
    elif protocol == "chat":
        fields = ("web_search_options",)
    elif protocol == "messages":
        fields = ("container", "mcp_servers", "context_management")
    for name in fields:
        if request.get(name):
            return f"'{name}' refers to state outside the request"
    tools = request.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        if not _is_callers_own(tool, protocol):
            return "a tool that runs on the server"
    return ""


def unsafe_for_similarity(request: Mapping[str, Any], protocol: str, allow_tools: bool) -> str:
    """Why only the same request may share this one's answer, or an empty string."""
    for name in ("n", "best_of"):
        if request.get(name) not in (None, 1):
            return f"'{name}' asks for several answers"
    for name in _EXACT_ONLY:
        if request.get(name):
            return f"'{name}' is given"
    if not allow_tools and any(request.get(name) for name in _TOOLS):
        return "tools are offered"
    modalities = request.get("modalities")
    if modalities and modalities != ["text"]:
        return "the answer is not only text"
    return ""


def _last_turn(name: str, turns: list[Any], placeholder: Any, chained: bool) -> UserText:
    last = turns[-1]
    history = sum(1 for turn in turns[:-1] if _is_conversation(turn))
    if not isinstance(last, Mapping) or last.get("role") != "user":
        return UserText("", {}, history, "the last turn is not the user's")
    text, content = _take_text(last.get("content"), placeholder)
    if text is None:
        return UserText("", {}, history, "the last turn is not only text")
    if any(_brings_context(turn) for turn in turns[:-1]):
        return UserText("", {}, history, "the conversation carries tool results or media")
    before = [turn for turn in turns[:-1] if not (chained and _is_conversation(turn))]
    return UserText(text, {name: [*before, {**last, "content": content}]}, history, "")


def _take_text(content: Any, placeholder: Any) -> tuple[str | None, Any]:
    if isinstance(content, str):
        return content, placeholder
    if not isinstance(content, list) or not content:
        return None, content
    texts: list[str] = []
    parts: list[Any] = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str) or part.get("type") not in _TEXT_PARTS:
            return None, content
        texts.append(text)
        parts.append({**part, "text": placeholder})
    return "\n".join(texts), parts


def _is_conversation(turn: Any) -> bool:
    return not isinstance(turn, Mapping) or turn.get("role") not in ("system", "developer")


def _brings_context(turn: Any) -> bool:
    """Tool results, files, images: the answer may rest on them."""
    if not isinstance(turn, Mapping) or turn.get("role") not in (
        "system",
        "developer",
        "user",
        "assistant",
    ):
        return True
    content = turn.get("content")
    if turn.get("tool_calls") or turn.get("function_call"):
        return True
    return isinstance(content, list) and any(
        not isinstance(part, Mapping)
        or part.get("type") not in (*_TEXT_PARTS, "output_text", "refusal")
        for part in content
    )


def _is_callers_own(tool: Any, protocol: str) -> bool:
    """Tools the caller runs have the type function or custom; all others run on the server."""
    kind = tool.get("type") if isinstance(tool, Mapping) else None
    own = ("function", "custom", None) if protocol == "messages" else ("function", "custom")
    return kind in own
