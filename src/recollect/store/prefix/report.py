"""What a prefix cache did: tokens matched and computed, bytes moved, and calls it left alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class PrefixReport:
    """Sums over all prompts since the prefix cache was made.

    Attributes:
        prompts: prompts looked up; rows of a batch count one by one.
        tokens: their tokens, padding excluded.
        matched: tokens taken from the store at their own positions; none is moved or repaired.
        layers: layers of the model.
        entries, loaded: entries read, and their bytes.
        load_seconds: from the question to the filled cache, on the way to the first token.
        saved, saved_bytes: entries written, and their bytes.
        refused: entries the store had no room for, the codec no form, or the writer no time.
        unusable: entries that failed their checks; deleted, and their tokens computed.
        declined: tokens found, but cheaper to compute than to load.
        untouched: calls left to the host, by reason.
    """

    layers: int
    prompts: int = 0
    tokens: int = 0
    matched: int = 0
    entries: int = 0
    loaded: int = 0
    load_seconds: float = 0.0
    saved: int = 0
    saved_bytes: int = 0
    refused: int = 0
    unusable: int = 0
    declined: int = 0
    untouched: Counter[str] = field(default_factory=Counter)

    @property
    def computed(self) -> int:
        """Tokens that went through the model."""
        return self.tokens - self.matched

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "untouched": dict(self.untouched), "computed": self.computed}

    def __str__(self) -> str:
        whole = self.tokens * self.layers
        lines = [
            f"{self.matched:,} of {self.tokens:,} tokens matched in {self.prompts:,} prompts; "
            f"{self.computed * self.layers:,} of {whole:,} token-layers computed",
            f"{self.entries:,} entries ({self.loaded:,} bytes) loaded in "
            f"{self.load_seconds * 1e3:.1f} ms; {self.saved:,} ({self.saved_bytes:,} bytes) saved",
        ]
        odd = {name: getattr(self, name) for name in ("refused", "unusable", "declined")}
        lines += [f"{name}: {count:,}" for name, count in odd.items() if count]
        lines += [f"left alone: {count} x {why}" for why, count in self.untouched.items()]
        return "\n".join(lines)
