"""Candidates for tests of decisions, with everything but the point at hand filled in."""

from recollect.answers.decision import Candidate


def candidate(entry_id, similarity, **fields):
    common = {"category": "", "parent": None, "created_at": 0.0, "expires_at": 1e9}
    common |= {"query": "", "status": "live"}
    return Candidate(entry_id, similarity, **common | fields)
