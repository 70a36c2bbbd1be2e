"""Answers: what a model said once, said again to the same request or to one that means the same.

answers = Answers("sqlite:///answers.db")
lookup = answers.lookup(request, scope_id="alice")
if not lookup.hit:
    answers.store(lookup.ticket, call_the_model(request))
"""

from __future__ import annotations

from recollect.answers.answers import Answers
from recollect.answers.clock import Clock, ManualClock, SystemClock
from recollect.answers.entry import Entry
from recollect.answers.identity import RequestIdentity, SemanticRules, identify
from recollect.answers.ledger import Ledger
from recollect.answers.results import Lookup, Purged, Stored, Ticket

__all__ = [
    "Answers",
    "Clock",
    "Entry",
    "Ledger",
    "Lookup",
    "ManualClock",
    "Purged",
    "RequestIdentity",
    "SemanticRules",
    "Stored",
    "SystemClock",
    "Ticket",
    "identify",
]
