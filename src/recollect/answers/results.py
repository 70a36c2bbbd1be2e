"""What `Answers` gives back: how a lookup went, how a write went, what a purge removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from recollect.answers.documents import read_document
from recollect.answers.entry import Entry
from recollect.answers.identity import RequestIdentity

if TYPE_CHECKING:
    import numpy as np


@dataclass
class Ticket:
    """A lookup to be continued: give it to `store` with the model's answer.

    Attributes:
        identity: of the request.
        protocol: of the request.
        user: keyed hash of who asks.
        conversation: key of the conversation, or an empty string.
        parent: entry that answered its previous turn.
        category, load: as found or given at lookup.
        vector: of the query (dim,), or None.
        write: whether the answer may be stored.
        explored: an entry whose answer is to be compared with the model's, and its similarity.
        rivals: entries near the query with other answers, for policies that keep paraphrases.
    """

    identity: RequestIdentity
    protocol: str = "chat"
    user: str = ""
    conversation: str = ""
    parent: int | None = None
    category: str = ""
    load: float = 0.0
    vector: np.ndarray | None = None
    write: bool = True
    explored: tuple[int, float] | None = None
    rivals: tuple[int, ...] = ()


@dataclass(frozen=True)
class Lookup:
    """How a lookup went.

    Attributes:
        hit: whether `entry` answers the request.
        entry: the stored answer, None on a miss.
        tier: ``exact`` or ``semantic`` on a hit, empty on a miss.
        similarity: cosine of the two queries; 1.0 for an exact hit. Tell clients in debug mode
            only: it helps those who probe for thresholds.
        age: seconds since the answer was stored.
        reason: why, in a few words.
        ticket: for `store`; None when the request cannot be read at all.
        readable: whether the request can be read; `reason` says why not.
        pending: no identical request was stored and similar ones have not been asked for, see
            `Answers.lookup_exact`.
    """

    hit: bool
    entry: Entry | None = None
    tier: str = ""
    similarity: float = 0.0
    age: float = 0.0
    reason: str = ""
    ticket: Ticket | None = None
    readable: bool = True
    pending: bool = False

    @property
    def response(self) -> bytes:
        """The stored answer, byte for byte; empty on a miss."""
        return self.entry.response if self.entry is not None else b""

    @property
    def document(self) -> Mapping[str, Any]:
        """The stored answer, parsed; empty on a miss."""
        return read_document(self.response)


@dataclass(frozen=True)
class Stored:
    """How a write went: the entry's id and status, or None and why not."""

    id: int | None
    reason: str = ""
    status: str = ""

    def __bool__(self) -> bool:
        return self.id is not None


@dataclass(frozen=True)
class Purged:
    """What a purge removed, or would remove (`dry_run`): ids, and how many by category."""

    ids: tuple[int, ...]
    dry_run: bool
    categories: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)
