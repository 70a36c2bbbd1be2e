"""Writing: from a model's answer to a stored entry, or to the reason why it was not stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from recollect.answers.core import NEIGHBOURS, Core
from recollect.answers.decision import SAME_ANSWER, Admission, Lifetime, Write
from recollect.answers.documents import answer_text, as_bytes, has_tool_calls, read_document
from recollect.answers.entry import Entry
from recollect.answers.results import Lookup, Stored, Ticket
from recollect.errors import RecipeError


class Writing(Core):
    """`store` and its steps: exploration, admission, promotion, room, the entry."""

    def store(
        self,
        request_or_ticket: Mapping[str, Any] | bytes | str | Ticket | Lookup,
        response: bytes | Mapping[str, Any],
        *,
        cost_seconds: float = 0.0,
        cost_tokens: int = 0,
        category: str | None = None,
        writer: str = "",
        ttl: float = math.inf,
        facts: Mapping[str, Any] | None = None,
        **asked: Any,
    ) -> Stored:
        """Store a model's answer, if the admission stage lets it in.

        Args:
            request_or_ticket: what was looked up, or its ticket (spares the work done there).
            response: the document as received; a mapping is written as JSON.
            cost_seconds, cost_tokens: what the answer cost.
            category: overrides the ticket's.
            writer: who wrote, when that is not who asked.
            ttl: seconds it may live at most; stages may give it less.
            facts: what the admission stage should know (``status``, ``complete`` …); kept.
            asked: keywords of `lookup`, when a request is given.
        """
        stored = Stored(None, "the cache's store is unavailable")
        with self._failing_open("store"):
            try:
                ticket = self._as_ticket(request_or_ticket, asked)
                body, kept = as_bytes(response), dict(facts or {})
                as_bytes(kept)  # they are stored as JSON
            except RecipeError as error:
                return self._refuse(f"not storable: {error}")
            if category is not None:
                ticket.category = category
            if writer:
                ticket.user = self._writer_key(writer)
            stored = self._write(ticket, body, cost_seconds, cost_tokens, ttl, kept)
        if not stored:
            self._count("not_stored")
        return stored

    def _write(
        self,
        ticket: Ticket,
        body: bytes,
        seconds: float,
        tokens: int,
        ttl: float,
        facts: dict[str, Any],
    ) -> Stored:
        identity, now = ticket.identity, self._clock.now()
        if not identity.cacheable:
            return Stored(None, identity.reason)
        if not ticket.write:
            return Stored(None, "the caller or the category forbids storing")
        document = read_document(body)
        facts.pop(SAME_ANSWER, None)
        same = self._compare_explored(ticket, document)
        if same is not None:
            if not self._keeps_paraphrases:
                self._remember_turn(ticket, same.id)
                return Stored(same.id, "the explored entry says the same", same.status)
            facts[SAME_ANSWER] = same.facts.get(SAME_ANSWER, same.id)
        vector = self._vector(ticket)
        lifetime = self._lifetime(ticket.category, 1.0)
        if not lifetime.cacheable or lifetime.ttl <= 0:
            return Stored(None, f"category '{ticket.category}' is not cached")
        admission = self._admit(ticket, document, len(body), facts, now)
        self._promote(admission.promote, now, ticket.user)
        if not admission.store:
            return Stored(None, admission.reason)
        ttl = min(ttl, lifetime.ttl, math.inf if admission.ttl is None else admission.ttl)
        if not ttl > 0:
            return Stored(None, "it would have expired at once")
        if has_tool_calls(document):
            facts["tool_calls"] = True
        entry = Entry(
            id=0,
            response=body,
            created_at=now,
            expires_at=now + ttl,
            category=ticket.category,
            partition=identity.partition,
            exact_fp=identity.exact_fp,
            compat_fp=identity.compat_fp,
            query=identity.query if vector else "",
            parent=ticket.parent,
            writer=ticket.user,
            status=admission.status,
            cost_seconds=seconds,
            cost_tokens=tokens,
            facts=facts,
            vector=vector,
            encoder_id=self._stages.encoder.encoder_id if self._stages.encoder and vector else "",
        )
        if not self._make_room(entry, lifetime, now):
            return Stored(None, f"category '{ticket.category}' has no share of the capacity")
        entry = replace(entry, id=self._backend.add(entry))
        if self._semantic is not None:
            self._semantic.add(entry)
        self._remember_turn(ticket, entry.id)
        self._count("stored")
        self._log("write", now, ticket.user, entry, status=entry.status)
        return Stored(entry.id, admission.reason, entry.status)

    def _admit(
        self,
        ticket: Ticket,
        document: Mapping[str, Any],
        size: int,
        facts: Mapping[str, Any],
        now: float,
    ) -> Admission:
        assert self._stages.admission is not None
        write = Write(
            identity=ticket.identity,
            protocol=ticket.protocol,
            document=document,
            size=size,
            category=ticket.category,
            now=now,
            writer=ticket.user,
            facts=facts,
            peers=self._peers(ticket, now) if self._scope != "user" else (),
        )
        return self._stages.admission.admit(write)

    def _peers(self, ticket: Ticket, now: float) -> list[tuple[Entry, float]]:
        """Quarantined entries of other writers that this request could have been answered with."""
        identity = ticket.identity
        same = self._backend.all_exact(identity.partition, identity.exact_fp)
        peers = {
            entry.id: (entry, 1.0)
            for entry in same
            if entry.status != "live" and entry.writer != ticket.user and entry.alive(now)
        }
        if self._semantic is not None and ticket.vector is not None:
            for candidate in self._semantic.search_others(
                self._home(ticket), ticket.vector, NEIGHBOURS, now, ticket.user
            ):
                entry = self._backend.get(candidate.entry_id)
                if entry is not None:
                    peers.setdefault(entry.id, (entry, candidate.similarity))
        return list(peers.values())

    def _promote(self, ids: tuple[int, ...], now: float, by: str) -> None:
        for entry_id in ids:
            if self._backend.set_status(entry_id, "live"):
                entry = self._backend.get(entry_id)
                if entry is not None:
                    if self._semantic is not None:
                        self._semantic.add(entry)
                    self._count("promoted")
                    self._log("promote", now, by, entry)

    def _compare_explored(self, ticket: Ticket, document: Mapping[str, Any]) -> Entry | None:
        """Learn from an exploration: an entry near the query whose answer agrees with the model's.

        Only a policy that keeps paraphrases asks about more than the explored entry.
        """
        if ticket.explored is None:
            return None
        entry_id, similarity = ticket.explored
        rivals = ticket.rivals if self._keeps_paraphrases else ()
        new = answer_text(document)
        for candidate_id in (entry_id, *rivals):
            entry = self._backend.get(candidate_id)
            if entry is None:
                continue
            agrees = self._judge(answer_text(read_document(entry.response)), new)
            if candidate_id == entry_id:
                self.observe(entry_id, similarity, agrees)
            if agrees:
                return entry
        return None

    def _vector(self, ticket: Ticket) -> bytes:
        if self._semantic is None or not ticket.identity.semantic_safe:
            return b""
        if self._rules.chained and ticket.identity.follow_up and ticket.parent is None:
            return b""
        if ticket.vector is None:
            ticket.vector = self._semantic.encode(ticket.identity.query)
        if not ticket.category and self._stages.classifier is not None:
            ticket.category = self._stages.classifier.classify(ticket.identity.query, ticket.vector)
        return ticket.vector.astype("<f4").tobytes()

    def _make_room(self, entry: Entry, lifetime: Lifetime, now: float) -> bool:
        """Evict for one more entry: first in its category, where that is at its quota."""
        if lifetime.quota < 1:
            quota = int(lifetime.quota * self._capacity)
            if quota < 1:
                return False
            self._keep_below(quota, entry.category, now)
        self._keep_below(self._capacity, None, now)
        return True

    def _keep_below(self, limit: int, category: str | None, now: float) -> None:
        """Counting is slow in a large store: after a count, as many writes as there was room for
        go by without one, up to a hundredth of the limit, as other processes write too."""
        left = self._room.get(category, 0)
        if left > 0:
            self._room[category] = left - 1
            return
        room = limit - self._backend.count(category)
        self._evict(1 - room, category, now)
        self._room[category] = min(max(room - 1, 0), limit // 100)

    def _evict(self, count: int, category: str | None, now: float) -> None:
        if count > 0:
            victims = self._backend.least_used(count, category)
            self._delete(victims, now, by="eviction")
