"""The protocols the gateway speaks, by path."""

from __future__ import annotations

from recollect.gateway.protocols.base import Assembler, Incomplete, Protocol, Usage, openai_error
from recollect.gateway.protocols.chat import Chat
from recollect.gateway.protocols.completions import Completions
from recollect.gateway.protocols.messages import Messages
from recollect.gateway.protocols.responses import Responses

GENERATING: tuple[Protocol, ...] = (Chat(), Completions(), Responses(), Messages())

__all__ = [
    "GENERATING",
    "Assembler",
    "Chat",
    "Completions",
    "Incomplete",
    "Messages",
    "Protocol",
    "Responses",
    "Usage",
    "openai_error",
]
