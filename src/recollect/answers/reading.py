"""Reading: from a request to the entry that answers it, or to the reason why none does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from recollect.answers.core import NEIGHBOURS, Core
from recollect.answers.decision import Candidate, Context, Outcome, Verdict
from recollect.answers.documents import answer_text, read_document
from recollect.answers.entry import Entry
from recollect.answers.results import Lookup, Ticket
from recollect.answers.wishes import Wishes, wishes
from recollect.errors import RecipeError

_UNAVAILABLE = "the cache's store is unavailable"


class Reading(Core):
    """`lookup` and its steps: exact tier, semantic tier, decision, verifier."""

    def lookup(self, request: Mapping[str, Any] | bytes | str, **asked: Any) -> Lookup:
        """The stored answer to a request, or a miss that says why and carries a ticket.

        Args:
            request: as sent to the model, parsed or as JSON text.
            asked: the keywords of `lookup_exact`.
        """
        return self.lookup_similar(self.lookup_exact(request, **asked), asked.get("headers"))

    def lookup_exact(
        self,
        request: Mapping[str, Any] | bytes | str,
        *,
        protocol: str = "chat",
        scope_id: str = "",
        user: str = "",
        conversation: str | None = None,
        category: str | None = None,
        load: float = 0.0,
        wire: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Lookup:
        """The half of `lookup` that needs no encoder, for those who must not wait for one.

        Args:
            request: as sent to the model, parsed or as JSON text.
            protocol, scope_id, wire, headers: see `identity.identify`.
            user: who asks within the scope, as authenticated; `scope_id` when empty.
            conversation: id of the conversation, so that a follow-up finds its previous turn.
            category: of the query; the recipe's classifier is asked when None.
            load: of the model a miss would go to, 0 to 1.

        Where the result is `pending`, give it to `lookup_similar`.
        """
        self._count("lookups")
        wanted = wishes(headers)
        found = Lookup(False, reason=_UNAVAILABLE)
        with self._failing_open("lookup"):
            try:
                ticket = self._ticket(
                    request, protocol, scope_id, user, conversation, category, load, wire, headers
                )
            except RecipeError as error:
                self._count("unreadable")
                return Lookup(False, reason=str(error), readable=False)
            ticket.write = ticket.write and wanted.write
            found = Lookup(False, reason=_UNAVAILABLE, ticket=ticket)
            found = self._find(ticket, wanted)
        return found if found.pending else self._counted(found)

    def lookup_similar(self, found: Lookup, headers: Mapping[str, str] | None = None) -> Lookup:
        """The other half: a similar request's answer, where `found` is pending, else `found`."""
        if not found.pending:
            return found
        assert found.ticket is not None
        similar = Lookup(False, reason=_UNAVAILABLE, ticket=found.ticket)
        with self._failing_open("lookup"):
            similar = self._similar(found.ticket, wishes(headers), self._clock.now())
        return self._counted(similar)

    def _counted(self, lookup: Lookup) -> Lookup:
        self._count(f"hits_{lookup.tier}" if lookup.hit else "misses")
        return lookup

    def _find(self, ticket: Ticket, asked: Wishes) -> Lookup:
        if not ticket.identity.cacheable:
            return Lookup(False, reason=ticket.identity.reason, ticket=ticket)
        if not asked.read:
            return Lookup(False, reason="the caller asked for a fresh answer", ticket=ticket)
        exact = self._exact(ticket, asked, self._clock.now())
        if exact.hit or self._semantic is None:
            return exact
        problem = self._incomparable(ticket, asked)
        return replace(exact, reason=problem or exact.reason, pending=not problem)

    def _incomparable(self, ticket: Ticket, asked: Wishes) -> str:
        """Why no similar request may answer this one; empty when one may."""
        identity = ticket.identity
        if not identity.semantic_safe:
            return identity.reason
        if self._rules.chained and identity.follow_up and ticket.parent is None:
            return "a follow-up whose previous turn is unknown"
        return "" if asked.semantic else "the caller asked for exact answers only"

    def _exact(self, ticket: Ticket, asked: Wishes, now: float) -> Lookup:
        if ticket.category and not self._lifetime(ticket.category, ticket.load).cacheable:
            ticket.write = False
            return Lookup(
                False, reason=f"category '{ticket.category}' is not cached", ticket=ticket
            )
        identity = ticket.identity
        entry = self._backend.by_exact(identity.partition, identity.exact_fp, ticket.user)
        if entry is None:
            return Lookup(False, reason="not stored", ticket=ticket)
        problem = self._withheld(entry, "exact", ticket, asked, now)
        if problem:
            return Lookup(False, reason=problem, ticket=ticket)
        return self._serve(entry, "exact", 1.0, "the same request", ticket, now)

    def _similar(self, ticket: Ticket, asked: Wishes, now: float) -> Lookup:
        assert self._semantic is not None
        assert self._stages.decision is not None
        identity = ticket.identity
        ticket.vector = self._semantic.encode(identity.query)
        if not ticket.category and self._stages.classifier is not None:
            ticket.category = self._stages.classifier.classify(identity.query, ticket.vector)
        if not self._lifetime(ticket.category, ticket.load).cacheable:
            ticket.write = False
            return Lookup(
                False, reason=f"category '{ticket.category}' is not cached", ticket=ticket
            )
        home = self._home(ticket)
        near = self._semantic.search(home, ticket.vector, NEIGHBOURS, now, ticket.user)
        return self._decide(near, ticket, asked, now)

    def _decide(self, near: list[Candidate], ticket: Ticket, asked: Wishes, now: float) -> Lookup:
        """Ask the policy; a hit that is refused leaves the candidates, and it is asked again."""
        assert self._stages.decision is not None
        context = Context(
            query=ticket.identity.query,
            category=ticket.category,
            conversation_parent=ticket.parent,
            load=ticket.load,
            user=ticket.user,
            now=now,
        )
        refused = ""
        while True:
            decision = self._stages.decision.decide(near, context)
            chosen = next((c for c in near if c.entry_id == decision.entry_id), None)
            if decision.verdict is Verdict.MISS or chosen is None:
                return Lookup(False, reason=refused or decision.reason, ticket=ticket)
            if decision.verdict is Verdict.EXPLORE:
                ticket.explored = (chosen.entry_id, chosen.similarity)
                ticket.rivals = _other_answers(chosen, near)
                self._count("explored")
                return Lookup(False, reason=decision.reason, ticket=ticket)
            entry = self._backend.get(chosen.entry_id)
            if entry is None:
                self._dropped([chosen.entry_id])
                refused = "the entry is gone"
            else:
                refused = self._withheld(entry, "semantic", ticket, asked, now) or self._rejected(
                    entry, chosen, ticket
                )
                if not refused:
                    return self._serve(
                        entry, "semantic", chosen.similarity, decision.reason, ticket, now
                    )
            near = [c for c in near if c is not chosen]

    def _withheld(self, entry: Entry, tier: str, ticket: Ticket, asked: Wishes, now: float) -> str:
        """Why a stored entry must not be served to this request; empty when it may."""
        age = now - entry.created_at
        if not entry.alive(now):
            return "expired" if now >= entry.expires_at else "written in the future"
        if age >= self._lifetime(entry.category, ticket.load).ttl:
            return "expired for its category"
        if age > asked.max_age:
            return "older than the caller allows"
        if entry.partition != ticket.identity.partition:
            return "of another partition"
        if entry.status != "live" and entry.writer != ticket.user:
            return "quarantined"
        if entry.facts.get("tool_calls"):
            if tier == "semantic" and not self._serve_tool_calls:
                return "the answer has tool calls"
            if self._scope != "user" and entry.writer != ticket.user:
                return "the answer has another user's tool calls"
        return ""

    def _rejected(self, entry: Entry, candidate: Candidate, ticket: Ticket) -> str:
        if self._stages.verifier is None:
            return ""
        answer = answer_text(read_document(entry.response))
        check = self._stages.verifier.check(ticket.identity.query, candidate, answer)
        if check.outcome is not Outcome.REJECT:
            return ""
        self._count("verifier_rejections")
        return f"verifier: {check.reason}"

    def _serve(
        self,
        entry: Entry,
        tier: str,
        similarity: float,
        reason: str,
        ticket: Ticket,
        now: float,
    ) -> Lookup:
        self._remember_turn(ticket, entry.id)
        self._backend.touch(entry.id, now)
        with self._lock:
            self._saved["seconds"] += entry.cost_seconds
            self._saved["tokens"] += entry.cost_tokens
        self._log("hit", now, ticket.user, entry, tier=tier, similarity=round(similarity, 4))
        age = max(0.0, now - entry.created_at)
        return Lookup(True, entry, tier, similarity, age, reason, ticket)


def _other_answers(chosen: Candidate, near: list[Candidate]) -> tuple[int, ...]:
    """The nearest entry of each answer among the candidates, that of `chosen` left out."""
    nearest: dict[int, int] = {}
    for candidate in near:
        nearest.setdefault(_answer_of(candidate), candidate.entry_id)
    nearest.pop(_answer_of(chosen), None)
    return tuple(nearest.values())


def _answer_of(candidate: Candidate) -> int:
    return candidate.entry_id if candidate.answer is None else candidate.answer
