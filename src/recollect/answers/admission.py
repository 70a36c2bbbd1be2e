"""Quarantine: an answer serves only who wrote it until others got the same one, or a trusted hand.

In a shared scope whoever can ask can plant: a key that collides with another's question, and the
answer to an instruction of their own (arXiv 2601.23088). Quarantined answers wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from recollect.answers.decision import Admission, AdmissionPolicy, Write
from recollect.answers.documents import answer_text, read_document, same_answer
from recollect.answers.gates import WriteGates
from recollect.answers.verifiers.contrast import Contrast
from recollect.errors import RecipeError


@dataclass(frozen=True)
class Quarantine:
    """Stage ``admission``: what an untrusted user writes is quarantined until it is confirmed.

    A write with the fact ``trusted`` set to True is live at once: set it for jobs of your own,
    never from what a client sent. `Answers.promote` sets entries live by hand. Whoever can make
    `confirmations` + 1 accounts can confirm himself.

    Attributes:
        confirmations: other users whose model gave the same answer to nearly the same question,
            until all of these answers are live.
        min_similarity: how near the questions of a confirmation must be.
        judge: whether two answers' texts say the same.
        gates: the write gates before it.
    """

    confirmations: int = 2
    min_similarity: float = 0.9
    judge: Callable[[str | None, str | None], bool] = same_answer
    gates: AdmissionPolicy = field(default_factory=WriteGates)

    def __post_init__(self) -> None:
        if self.confirmations < 1:
            raise RecipeError("a quarantine needs confirmations >= 1")

    def admit(self, write: Write) -> Admission:
        """Live, quarantined, or not at all; names the peers that this write sets free."""
        gate = self.gates.admit(write)
        if not gate.store or write.facts.get("trusted") is True:
            return gate
        if not write.writer:
            return Admission(False, reason="an unknown writer cannot be quarantined")
        agreeing = [peer for peer, near in write.peers if self._confirms(write, peer, near)]
        if len({peer.writer for peer in agreeing}) < self.confirmations:
            return Admission(True, "quarantined", gate.ttl, "quarantined until others confirm it")
        promoted = tuple(peer.id for peer in agreeing)
        known = any(peer.exact_fp == write.identity.exact_fp for peer in agreeing)
        return Admission(not known, "live", gate.ttl, "confirmed by others", promoted)

    def _confirms(self, write: Write, peer: Any, similarity: float) -> bool:
        if not peer.writer or peer.writer == write.writer:
            return False
        if peer.exact_fp != write.identity.exact_fp:
            if similarity < self.min_similarity:
                return False
            if next(Contrast().differences(write.identity.query, peer.query), None):
                return False
        theirs = answer_text(read_document(peer.response))
        return self.judge(theirs, answer_text(write.document))
