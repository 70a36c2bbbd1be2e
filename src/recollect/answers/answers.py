"""`Answers`: look a request up, store what the model said, remove what should not be there.

Looking up asks the exact tier, then, where the recipe has one, the semantic tier. A backend that
fails makes lookups misses and drops writes: no error of the cache reaches the caller's request.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from recollect.answers.backends.base import Backend, Filter, Observation, open_backend, scope_key
from recollect.answers.clock import Clock, SystemClock
from recollect.answers.decision import (
    SAME_ANSWER,
    Admission,
    Candidate,
    Context,
    Learner,
    Lifetime,
    Outcome,
    Verdict,
    Write,
)
from recollect.answers.documents import (
    answer_text,
    as_bytes,
    has_tool_calls,
    read_document,
    same_answer,
)
from recollect.answers.entry import Entry
from recollect.answers.identity import SCOPES, SemanticRules, identify, keyed
from recollect.answers.ledger import Ledger
from recollect.answers.results import Lookup, Purged, Stored, Ticket
from recollect.answers.stages import build_stages
from recollect.answers.wishes import Wishes, wishes
from recollect.errors import HostError, RecipeError, StoreError

if TYPE_CHECKING:
    from recollect.answers.semantic import Neighbourhood, SemanticTier

NEIGHBOURS = 8  # candidates a decision sees
CONVERSATIONS = 10_000  # whose last turn is remembered


class Answers:
    """A response cache: exact, and semantic where the recipe says so.

    Args:
        backend: ``memory``, ``sqlite:///path``, ``redis://…``, ``postgresql://…`` or a Backend.
        recipe: name or composition of recipes of the area ``answers``; ``exact`` has one tier.
        encoder: of queries: an Encoder, ``ngram`` or ``minilm``; the recipe's own when None.
        clock: where all times come from.
        secret: key of the HMAC that hides user ids in the store; one is made with the store when
            None. Give your own to keep it out of the store.
        scope: who shares answers: ``user``, ``team``, ``tenant``, ``global``.
        ttl: seconds an answer lives where no stage says otherwise.
        capacity: entries at most; the least used leave first.
        ledger: an audit log, the path of one, or None for the latest lines in memory.
        resolved_model, policy, epoch: see `identity.identify`.
        owns_state: see `identity.identify`.
        serve_tool_calls: answers with tool calls may be served to similar requests.
        judge: whether two answers' texts say the same; for `EXPLORE` and for promotion.
        arguments: parameters of the recipe's stages, or whole stages by kind (``verifier=…``).

    Raises RecipeError for unknown recipes and arguments, StoreError for a store written by a
    newer version.
    """

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
        self._scope, self._ttl, self._capacity = scope, ttl, capacity
        self._keyed_by = {"resolved_model": resolved_model, "policy": policy, "epoch": epoch}
        self._owns_state, self._serve_tool_calls, self._judge = owns_state, serve_tool_calls, judge
        self.ledger = ledger if isinstance(ledger, Ledger) else Ledger(ledger)
        self._counts: Counter[str] = Counter()
        self._saved = {"seconds": 0.0, "tokens": 0}
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

    # Reading ------------------------------------------------------------------------------------

    def lookup(
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
        """The stored answer to a request, or a miss that says why and carries a ticket.

        Args:
            request: as sent to the model, parsed or as JSON text.
            protocol, scope_id, wire, headers: see `identity.identify`.
            user: who asks within the scope, as authenticated; `scope_id` when empty.
            conversation: id of the conversation, so that a follow-up finds its previous turn.
            category: of the query; the recipe's classifier is asked when None.
            load: of the model a miss would go to, 0 to 1.
        """
        self._count("lookups")
        asked = wishes(headers)
        lookup = Lookup(False, reason="the cache's store is unavailable")
        with self._failing_open("lookup"):
            try:
                ticket = self._ticket(
                    request, protocol, scope_id, user, conversation, category, load, wire, headers
                )
            except RecipeError as error:
                self._count("unreadable")
                return Lookup(False, reason=str(error))
            lookup = Lookup(False, reason=lookup.reason, ticket=ticket)
            ticket.write = asked.write
            lookup = self._find(ticket, asked)
        self._count(f"hits_{lookup.tier}" if lookup.hit else "misses")
        return lookup

    def _find(self, ticket: Ticket, asked: Wishes) -> Lookup:
        if not ticket.identity.cacheable:
            return Lookup(False, reason=ticket.identity.reason, ticket=ticket)
        if not asked.read:
            return Lookup(False, reason="the caller asked for a fresh answer", ticket=ticket)
        now = self._clock.now()
        exact = self._exact(ticket, asked, now)
        if exact.hit or self._semantic is None:
            return exact
        return self._similar(ticket, asked, now)

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
        problem = "" if identity.semantic_safe else identity.reason
        if not problem and self._rules.chained and identity.follow_up and ticket.parent is None:
            problem = "a follow-up whose previous turn is unknown"
        if not problem and not asked.semantic:
            problem = "the caller asked for exact answers only"
        if problem:
            return Lookup(False, reason=problem, ticket=ticket)
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

    # Writing ------------------------------------------------------------------------------------

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
        if self._stages.admission is None:
            return Admission(True)
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
        quota = int(lifetime.quota * self._capacity)
        if lifetime.quota < 1:
            if quota < 1:
                return False
            over = self._backend.count(entry.category) - quota + 1
            self._evict(over, entry.category, now)
        self._evict(self._backend.count() - self._capacity + 1, None, now)
        return True

    def _evict(self, count: int, category: str | None, now: float) -> None:
        if count > 0:
            victims = self._backend.least_used(count, category)
            self._delete(victims, now, by="eviction")

    # Learning and removing ----------------------------------------------------------------------

    def observe(self, entry_id: int, similarity: float, correct: bool) -> None:
        """Tell the decision policy whether an entry's answer was right at this similarity."""
        with self._failing_open("observe"):
            self._backend.observe(entry_id, Observation(float(similarity), bool(correct)))
            if isinstance(self._stages.decision, Learner):
                self._stages.decision.observe(entry_id, float(similarity), bool(correct))
        self._count("observed_right" if correct else "observed_wrong")

    def purge(
        self,
        *,
        key: str | None = None,
        scope: str | None = None,
        writer: str | None = None,
        before: float | None = None,
        everything: bool = False,
        dry_run: bool = True,
    ) -> Purged:
        """Remove all entries that match every criterion given, and the turns that follow them.

        Args:
            key: of one request (`Entry.exact_fp` in hex), in every partition.
            scope: all that this scope id may be served.
            writer: all that this user wrote.
            before: written before this time, in seconds.
            everything: remove all; the only criterion then.
            dry_run: say what would go, remove nothing.

        Raises RecipeError without a criterion, and StoreError when the store is unavailable: a
        purge that did not happen must not look like one that did.
        """
        if everything == any(given is not None for given in (key, scope, writer, before)):
            raise RecipeError("say what to purge: key, scope, writer, before, or everything=True")
        try:
            fingerprint = bytes.fromhex(key) if key is not None else None
        except ValueError as error:
            raise RecipeError(f"'{key}' is no key: 64 hexadecimal digits") from error
        which = Filter(
            exact_fp=fingerprint,
            scope_key=None if scope is None else self._scope_key(scope),
            writer=None if writer is None else self._writer_key(writer),
            before=before,
        )
        entries = list(self._backend.scan(which))
        categories = dict(Counter(entry.category for entry in entries))
        ids = tuple(entry.id for entry in entries)
        if not dry_run:
            ids = tuple(sorted(self._delete(ids, self._clock.now(), by="purge")))
        return Purged(ids, dry_run, categories)

    def sweep(self) -> int:
        """Remove what has expired; how many. Lookups never serve it, this gives back its room."""
        now = self._clock.now()
        with self._failing_open("sweep"):
            expired = [entry.id for entry in self._backend.scan(Filter(expired=now))]
            return len(self._delete(expired, now, by="expiry"))
        return 0

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

    def stats(self) -> dict[str, Any]:
        """Counts since this object was made, what hits saved, and entries stored now."""
        with self._lock:
            counts: dict[str, Any] = dict(self._counts)
            saved = dict(self._saved)
        for name in ("lookups", "hits_exact", "hits_semantic", "misses", "stored", "not_stored"):
            counts.setdefault(name, 0)
        counts["backend"] = self._backend.name
        counts["saved_seconds"], counts["saved_tokens"] = saved["seconds"], saved["tokens"]
        counts["entries"] = None
        with self._failing_open("stats"):
            counts["entries"] = self._backend.count()
        return counts

    def close(self) -> None:
        """Write what was put off and let go of files and connections."""
        with self._failing_open("close"):
            self._backend.close()
        self.ledger.close()

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Parts --------------------------------------------------------------------------------------

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
        identity = identify(
            request,
            protocol=protocol,
            scope=self._scope,
            scope_id=scope_id,
            secret=self._secret(),
            wire=wire,
            headers=headers,
            rules=self._rules,
            owns_state=self._owns_state,
            **self._keyed_by,  # type: ignore[arg-type]
        )
        ticket = Ticket(identity, protocol, category=category or "", load=load)
        if user or scope_id:
            ticket.user = self._writer_key(user or scope_id)
        if conversation is not None:
            ticket.conversation = keyed(self._secret(), *identity.partition, conversation)
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
        ticket.write = wishes(asked.get("headers")).write
        return ticket

    def _secret(self) -> bytes:
        if self._given_secret is None:
            self._given_secret = self._backend.secret()
        return self._given_secret

    def _scope_key(self, scope_id: str) -> str:
        names = ("global",) if self._scope == "global" else (self._scope, scope_id)
        return keyed(self._secret(), *names)

    def _writer_key(self, user: str) -> str:
        return keyed(self._secret(), "writer", user)

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


def _other_answers(chosen: Candidate, near: list[Candidate]) -> tuple[int, ...]:
    """The nearest entry of each answer among the candidates, that of `chosen` left out."""
    nearest: dict[int, int] = {}
    for candidate in near:
        nearest.setdefault(_answer_of(candidate), candidate.entry_id)
    nearest.pop(_answer_of(chosen), None)
    return tuple(nearest.values())


def _answer_of(candidate: Candidate) -> int:
    return candidate.entry_id if candidate.answer is None else candidate.answer
