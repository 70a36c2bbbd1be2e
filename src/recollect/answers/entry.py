"""What is stored: one answer with where it came from, how long it holds, and a checksum.

An entry travels as one self-describing record: schema number, SHA-256, facts as JSON, the answer's
bytes as they were received. A record that fails its checks is a miss, never an answer.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recollect.errors import StoreError

SCHEMA = 1
MAGIC = b"RCLA"
SKEW = 1.0  # seconds by which clocks of several writers may differ

_HEAD = struct.Struct("<4sHII32s")  # magic, schema, two lengths, SHA-256 of all the rest
_SIGNED = _HEAD.size - 32


@dataclass(frozen=True)
class Entry:
    """One stored answer.

    Attributes:
        id: given by the backend; 0 until then.
        response: the document as received, in bytes.
        created_at, expires_at: seconds since the epoch, absolute; hits do not extend them.
        category: of the query; empty when there is none.
        partition, exact_fp, compat_fp, query: the identity it was stored under.
        parent: entry that answered the previous turn of the conversation.
        writer: keyed hash of whose request wrote it.
        status: ``live`` or ``quarantined`` (only its writer may be served).
        cost_seconds, cost_tokens: what the answer cost when it was made.
        hits: how often it was served.
        facts: anything else worth keeping, as JSON.
        vector: the query's unit vector as little-endian float32, empty without an encoder.
        encoder_id: who made the vector.
    """

    id: int
    response: bytes
    created_at: float
    expires_at: float
    category: str
    partition: tuple[str, ...]
    exact_fp: bytes
    compat_fp: bytes
    query: str
    parent: int | None = None
    writer: str = ""
    status: str = "live"
    cost_seconds: float = 0.0
    cost_tokens: int = 0
    hits: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    vector: bytes = b""
    encoder_id: str = ""

    def alive(self, now: float) -> bool:
        """Not expired (dead exactly at `expires_at`) and not from the future."""
        return self.created_at <= now + SKEW and now < self.expires_at

    def with_hits(self, hits: int) -> Entry:
        """The same entry served so often (`dataclasses.replace` is too slow for every hit)."""
        entry = object.__new__(Entry)
        entry.__dict__.update(self.__dict__, hits=hits)
        return entry

    @property
    def nbytes(self) -> int:
        """Bytes of answer, query and vector."""
        return len(self.response) + len(self.query.encode()) + len(self.vector)


# What changes after the write lives beside the record: id, status, hits.
_KEPT = (
    "created_at",
    "expires_at",
    "category",
    "partition",
    "query",
    "parent",
    "writer",
    "cost_seconds",
    "cost_tokens",
    "facts",
    "encoder_id",
)


def pack(entry: Entry) -> bytes:
    """The record of an entry, without what changes later (id, status, hits)."""
    head = {name: getattr(entry, name) for name in _KEPT}
    head["exact_fp"], head["compat_fp"] = entry.exact_fp.hex(), entry.compat_fp.hex()
    facts = json.dumps(head, ensure_ascii=False).encode()
    signed = _HEAD.pack(MAGIC, SCHEMA, len(facts), len(entry.vector), bytes(32))[:_SIGNED]
    rest = facts + entry.vector + entry.response
    return signed + _digest(signed, rest) + rest


def unpack(record: bytes, *, id: int, status: str = "live", hits: int = 0) -> Entry:
    """The entry in a record. Raises StoreError when it is torn, altered or of a newer schema."""
    if len(record) < _HEAD.size or record[:4] != MAGIC:
        raise StoreError(f"entry {id} is not a record of this package")
    _, schema, n_facts, n_vector, digest = _HEAD.unpack_from(record)
    if schema > SCHEMA:
        raise StoreError(f"entry {id} has schema {schema}, this version reads up to {SCHEMA}")
    rest = record[_HEAD.size :]
    if _digest(record[:_SIGNED], rest) != digest:
        raise StoreError(f"entry {id} fails its checksum")
    head = json.loads(rest[:n_facts])
    head["partition"] = tuple(head["partition"])
    head["exact_fp"] = bytes.fromhex(head["exact_fp"])
    head["compat_fp"] = bytes.fromhex(head["compat_fp"])
    body = n_facts + n_vector
    return Entry(
        id=id, status=status, hits=hits, vector=rest[n_facts:body], response=rest[body:], **head
    )


def _digest(head: bytes, rest: bytes) -> bytes:
    hasher = hashlib.sha256(head)
    hasher.update(rest)
    return hasher.digest()
