"""What reading and writing share: the stages, the store, who asks, counters, the audit log."""

from __future__ import annotations

import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from recollect.answers.backends.base import Backend, Observation, open_backend, scope_key
from recollect.answers.clock import Clock, SystemClock
from recollect.answers.decision import Learner, Lifetime
from recollect.answers.documents import same_answer
from recollect.answers.entry import Entry
from recollect.answers.identity import (
    SCOPES,
    SemanticRules,
    identify,
    keyed,
    scope_digest,
    writer_digest,
)
from recollect.answers.ledger import Ledger
from recollect.answers.results import Lookup, Stored, Ticket
from recollect.answers.stages import build_stages
from recollect.answers.wishes import wishes
from recollect.errors import HostError, RecipeError, StoreError

if TYPE_CHECKING:
    from recollect.answers.semantic import Neighbourhood, SemanticTier

NEIGHBOURS = 8  # candidates a decision sees
CONVERSATIONS = 10_000  # whose last turn is remembered


class Core:
    """State of one cache; `Answers` documents the arguments."""

    def __init__(
        self,
        backend: str | Backend = "memory",
        *,
        recipe: Any = "exact",
        encoder: Any = None,
        clock: Clock | None = None,
        secret: bytes | None = None,
        scope: str = "user",
        ttl: float = 86_400.0,
        capacity: int = 100_000,
        ledger: Ledger | str | None = None,
        resolved_model: str = "",
        policy: str = "",
        epoch: int = 0,
        owns_state: bool = False,
        serve_tool_calls: bool = False,
        judge: Callable[[str | None, str | None], bool] = same_answer,
        **arguments: Any,
    ) -> None:
        if scope not in SCOPES:
            raise RecipeError(f"unknown scope '{scope}'; there are: {', '.join(SCOPES)}")
        if not ttl > 0 or capacity < 1:
            raise RecipeError("a cache needs ttl > 0 and capacity >= 1")
        self._stages = build_stages(recipe, arguments, encoder)
        self._rules = self._stages.rules or SemanticRules()
        self._backend = open_backend(backend) if isinstance(backend, str) else backend
        self._clock = clock or SystemClock()
        self._given_secret = secret
        self._stand_in = os.urandom(32)  # tells requests apart while the store's cannot be had
        self._scope, self._ttl, self._capacity = scope, ttl, capacity
        self._keyed_by = {"resolved_model": resolved_model, "policy": policy, "epoch": epoch}
        self._owns_state, self._serve_tool_calls, self._judge = owns_state, serve_tool_calls, judge
        self.ledger = ledger if isinstance(ledger, Ledger) else Ledger(ledger)
        self._counts: Counter[str] = Counter()
        self._saved = {"seconds": 0.0, "tokens": 0}
        self._room: dict[str | None, int] = {}  # writes until entries are counted again
        self._lock = threading.Lock()
        self._turns: OrderedDict[str, int] = OrderedDict()  # conversation -> its last entry
        self._semantic: SemanticTier | None = None
        if self._stages.encoder is not None and self._stages.index is not None:
            from recollect.answers.semantic import SemanticTier  # numpy, and only here

            self._semantic = SemanticTier(
                self._stages.encoder,
                self._stages.index,
                self._rules.chained,
                by_category=getattr(self._stages.decision, "by_category", False),
            )
            self._newest = 0
            with self._failing_open("refresh"):
                self.refresh()

    def observe(self, entry_id: int, similarity: float, correct: bool) -> None:
        """Tell the decision policy whether an entry's answer was right at this similarity."""
        with self._failing_open("observe"):
            self._backend.observe(entry_id, Observation(float(similarity), bool(correct)))
            if isinstance(self._stages.decision, Learner):
                self._stages.decision.observe(entry_id, float(similarity), bool(correct))
        self._count("observed_right" if correct else "observed_wrong")

    def refresh(self) -> int:
        """Index entries that are in the store and not in this process yet; how many."""
        if self._semantic is None:
            return 0
        added = 0
        for entry in self._backend.scan(after=self._newest):
            self._newest = entry.id
            if entry.id not in self._semantic and self._semantic.add(entry):
                added += 1
                if isinstance(self._stages.decision, Learner):
                    for similarity, correct in self._backend.observations(entry.id):
                        self._stages.decision.observe(entry.id, similarity, correct)
        return added

    def _ticket(
        self,
        request: Mapping[str, Any] | bytes | str,
        protocol: str = "chat",
        scope_id: str = "",
        user: str = "",
        conversation: str | None = None,
        category: str | None = None,
        load: float = 0.0,
        wire: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Ticket:
        secret, known = self._secret_or_stand_in()
        identity = identify(
            request,
            protocol=protocol,
            scope=self._scope,
            scope_id=scope_id,
            secret=secret,
            wire=wire,
            headers=headers,
            rules=self._rules,
            owns_state=self._owns_state,
            **self._keyed_by,  # type: ignore[arg-type]
        )
        ticket = Ticket(identity, protocol, category=category or "", load=load, write=known)
        if user or scope_id:
            ticket.user = writer_digest(secret, user or scope_id)
        if conversation is not None:
            ticket.conversation = keyed(secret, *identity.partition, conversation)
            if self._rules.chained and identity.follow_up:
                ticket.parent = self._turns.get(ticket.conversation)
        return ticket

    def _as_ticket(self, given: Any, asked: Mapping[str, Any]) -> Ticket:
        if isinstance(given, Lookup):
            given = given.ticket
        if isinstance(given, Ticket):
            if asked:
                raise RecipeError(f"a ticket already knows {', '.join(asked)}")
            return given
        if given is None:
            raise RecipeError("the lookup could not read the request")
        ticket = self._ticket(given, **asked)
        ticket.write = ticket.write and wishes(asked.get("headers")).write
        return ticket

    def _secret(self) -> bytes:
        if self._given_secret is None:
            self._given_secret = self._backend.secret()
        return self._given_secret

    def _secret_or_stand_in(self) -> tuple[bytes, bool]:
        """A secret, and whether it is the store's: under any other nothing may be stored."""
        try:
            return self._secret(), True
        except StoreError:
            return self._stand_in, False

    def _scope_key(self, scope_id: str) -> str:
        return scope_digest(self._secret(), self._scope, scope_id)

    def _writer_key(self, user: str) -> str:
        return writer_digest(self._secret(), user)

    def _lifetime(self, category: str, load: float) -> Lifetime:
        if self._stages.lifetimes is None:
            return Lifetime(self._ttl)
        return self._stages.lifetimes.lifetime(category, load)

    def _remember_turn(self, ticket: Ticket, entry_id: int) -> None:
        if not ticket.conversation:
            return
        with self._lock:
            self._turns[ticket.conversation] = entry_id
            self._turns.move_to_end(ticket.conversation)
            while len(self._turns) > CONVERSATIONS:
                self._turns.popitem(last=False)

    def _delete(self, ids: Any, now: float, *, by: str) -> list[int]:
        removed = self._backend.delete(ids)
        self._dropped(removed)
        for entry_id in removed:
            self._event("delete", now, by=by, entry=entry_id)
        self._count("deleted", len(removed))
        return removed

    def _dropped(self, ids: list[int]) -> None:
        if self._semantic is not None:
            self._semantic.remove(ids)
        if isinstance(self._stages.decision, Learner):
            self._stages.decision.forget(ids)

    def _refuse(self, reason: str) -> Stored:
        self._count("not_stored")
        return Stored(None, reason)

    def _log(self, event: str, now: float, user: str, entry: Entry, **facts: Any) -> None:
        key, scope = entry.exact_fp.hex(), scope_key(entry.partition)
        self._event(event, now, by=user, entry=entry.id, key=key, scope=scope, **facts)

    def _event(self, event: str, now: float, **facts: Any) -> None:
        try:
            self.ledger.append(event, now, **facts)
        except StoreError:
            self._count("ledger_failures")

    def _count(self, name: str, by: int = 1) -> None:
        with self._lock:
            self._counts[name] += by

    @contextmanager
    def _failing_open(self, what: str) -> Iterator[None]:
        """An error of the store ends the block, is counted, and goes no further."""
        try:
            yield
        except (StoreError, HostError):
            self._count(f"failed_{what}")

    @property
    def _keeps_paraphrases(self) -> bool:
        return getattr(self._stages.decision, "keeps_paraphrases", False)

    def _home(self, ticket: Ticket) -> Neighbourhood:
        """Where a request's neighbours are."""
        assert self._semantic is not None
        identity = ticket.identity
        return self._semantic.home(
            identity.partition, identity.compat_fp, ticket.parent, ticket.category
        )
