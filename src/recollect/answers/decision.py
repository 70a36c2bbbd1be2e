"""The stages an answers recipe is made of, as protocols: what each is asked and what it replies.

`Answers` asks in this order. Lookup: classifier, index, decision, verifier. Store: admission,
lifetimes. A stage is a frozen dataclass of parameters; one that keeps state offers `build()`,
which returns the object that is asked. Similarities are cosines of unit vectors throughout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from recollect.answers.entry import Entry
from recollect.answers.identity import RequestIdentity

if TYPE_CHECKING:
    import numpy as np

SAME_ANSWER = "same_answer_as"  # fact of an entry: the entry whose answer equals its own


class Candidate(NamedTuple):
    """A stored entry near the query, without its body.

    `answer` is the entry whose answer this one's is known to equal; None: only its own.
    """

    entry_id: int
    similarity: float
    category: str
    parent: int | None
    created_at: float
    expires_at: float
    query: str
    status: str
    answer: int | None = None


@dataclass(frozen=True)
class Context:
    """What is known about the request that asks.

    Attributes:
        query: the text compared by similarity.
        category: as classified or as the caller said; empty when neither.
        conversation_parent: the entry that answered the previous turn; None for a first turn.
        load: of the model a miss would go to, 0 (idle) to 1 (overloaded).
        user: keyed hash of who asks.
        now: seconds, from the clock of the cache.
    """

    query: str
    category: str = ""
    conversation_parent: int | None = None
    load: float = 0.0
    user: str = ""
    now: float = 0.0


class Verdict(Enum):
    """What to do with a query."""

    HIT = "hit"
    MISS = "miss"
    EXPLORE = "explore"  # call the model, then compare its answer with the candidate's


class Decision(NamedTuple):
    """A verdict, the entry it is about (None for a miss), and why in a few words."""

    verdict: Verdict
    entry_id: int | None
    reason: str


class DecisionPolicy(Protocol):
    """Which candidate, if any, answers the query.

    Two optional attributes change what `Answers` does around it: with `by_category` true, only
    entries of the query's category are candidates; with `keeps_paraphrases` true, a query that
    was explored and got a known answer is stored as one more key of that answer.
    """

    def decide(self, candidates: Sequence[Candidate], context: Context) -> Decision:
        """Candidates come nearest first, alive at `context.now`, all of the asker's partition."""
        ...


@runtime_checkable
class Learner(Protocol):
    """A decision policy that learns from observations. Both calls may come from any thread."""

    def observe(self, entry_id: int, similarity: float, correct: bool) -> None:
        """At this similarity the entry's answer was, or was not, the right one."""
        ...

    def forget(self, entry_ids: Sequence[int]) -> None:
        """These entries are gone."""
        ...


class Outcome(Enum):
    """What a verifier says of a candidate."""

    ACCEPT = "accept"
    REJECT = "reject"
    ABSTAIN = "abstain"


class Check(NamedTuple):
    """An outcome and why in a few words."""

    outcome: Outcome
    reason: str


class Verifier(Protocol):
    """Second opinion on a hit: a rejection makes it a miss; abstaining lets it pass."""

    def check(self, query: str, candidate: Candidate, answer: str | None) -> Check:
        """`answer` is the text of the stored answer, or None where it has none."""
        ...


class Classifier(Protocol):
    """The category of a query, for requests that do not bring one."""

    def classify(self, query: str, vector: np.ndarray | None) -> str:
        """`vector` is the query's unit vector (dim,), or None when there is no encoder."""
        ...


class Lifetime(NamedTuple):
    """What a category's entries are allowed: a time, a share of the entries, to be stored at all.

    `ttl` is in seconds; `quota` is a fraction of the capacity; a category that is not `cacheable`
    is neither read nor written.
    """

    ttl: float
    quota: float = 1.0
    cacheable: bool = True


class Lifetimes(Protocol):
    """How long entries of a category live, how many there may be."""

    def lifetime(self, category: str, load: float) -> Lifetime: ...


@dataclass(frozen=True)
class Write:
    """An answer about to be stored.

    Attributes:
        identity: of the request it answers.
        protocol: ``chat``, ``responses``, ``embeddings``, ``completions`` or ``messages``.
        document: the answer, parsed.
        size: of the answer in bytes.
        category, now: as in `Context`.
        writer: keyed hash of who asked; empty when unknown.
        facts: what the caller knows: ``status`` (HTTP), ``complete``, ``personalised``,
            ``trusted``, ``model`` …
        peers: quarantined entries of other writers with the same exact or a near-identical
            request, with their similarity.
    """

    identity: RequestIdentity
    protocol: str
    document: Mapping[str, Any]
    size: int
    category: str
    now: float
    writer: str
    facts: Mapping[str, Any]
    peers: Sequence[tuple[Entry, float]] = ()


class Admission(NamedTuple):
    """Whether to store, as what, for how long at most (None: the category's time), and why not.

    `promote` names peers that this write confirms.
    """

    store: bool
    status: str = "live"
    ttl: float | None = None
    reason: str = ""
    promote: tuple[int, ...] = ()


class AdmissionPolicy(Protocol):
    """The gate before every write."""

    def admit(self, write: Write) -> Admission: ...
