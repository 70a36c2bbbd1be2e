"""How far stored keys and values are from what a full prefill would compute.

Every entry carries one of these words, so that an approximation is never served where exactness was
promised. The word is about *content*; whether the bytes went through a lossy codec is said by the
frame's codec.
"""

from __future__ import annotations

from enum import StrEnum

from recollect.errors import StoreError


class Exactness(StrEnum):
    """From what the model itself computed down to what was carried over from another one."""

    EXACT = "exact"
    """Computed by this model over this very prefix, at these positions."""
    MOVED = "moved"
    """Exact, then rotated to other positions."""
    FOREIGN_CONTEXT = "foreign-context"
    """Computed behind another prefix, or behind none."""
    REPAIRED = "repaired"
    """From a foreign context, with part of the tokens recomputed in this one."""
    PROJECTED = "projected"
    """Carried over from another model, or predicted."""

    @classmethod
    def read(cls, word: object) -> Exactness:
        """The member with that value. Raises StoreError for any other word."""
        try:
            return cls(str(word))
        except ValueError:
            known = ", ".join(member.value for member in cls)
            raise StoreError(f"unknown exactness tag {word!r}; there are: {known}") from None
