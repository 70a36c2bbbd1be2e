"""What a cache holds and what that cost, layer by layer and head by head."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LayerReport:
    """One layer.

    Attributes:
        index: number of the layer in the model.
        seen: tokens of the sequence.
        kept: tokens held by each KV head, mean over the batch.
        nbytes: bytes really held.
        seconds: time spent deciding and encoding.
    """

    index: int
    seen: int
    kept: tuple[float, ...]
    nbytes: int
    seconds: float


@dataclass(frozen=True)
class CacheReport:
    """All layers that the policy governs, and the totals of the whole cache.

    Attributes:
        policy: the policy as one line of YAML.
        layers: one report per governed layer.
        nbytes: bytes really held, layers left to the host included.
        dense_nbytes: bytes the host's own cache would hold.
    """

    policy: str
    layers: tuple[LayerReport, ...]
    nbytes: int
    dense_nbytes: int

    @property
    def seconds(self) -> float:
        """Time spent deciding and encoding, over all layers."""
        return sum(layer.seconds for layer in self.layers)

    @property
    def ratio(self) -> float:
        """Bytes held over bytes of the host's cache."""
        return self.nbytes / self.dense_nbytes if self.dense_nbytes else 1.0

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return {**asdict(self), "seconds": self.seconds, "ratio": self.ratio}

    def __str__(self) -> str:
        lines = [
            f"{self.nbytes:,} of {self.dense_nbytes:,} bytes ({self.ratio:.1%}), "
            f"{self.seconds * 1e3:.1f} ms deciding and encoding",
            "layer   seen   kept per head",
        ]
        for layer in self.layers:
            kept = " ".join(f"{n:g}" for n in layer.kept)
            lines.append(f"{layer.index:5d} {layer.seen:6d}   {kept}")
        return "\n".join(lines)
