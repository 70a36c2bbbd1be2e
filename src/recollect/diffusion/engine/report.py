"""What an acceleration did: steps computed and reused, by branch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from recollect.diffusion.engine.branches import Record

if TYPE_CHECKING:
    from recollect.diffusion.engine.session import Session


@dataclass(frozen=True)
class DiffusionReport:
    """Steps of all branches so far.

    Attributes:
        steps: denoiser's name and what happened, in order.
        nbytes: state held now.
    """

    steps: tuple[tuple[str, Record], ...]
    nbytes: int

    @property
    def evaluations(self) -> int:
        """Calls of the denoisers."""
        return len(self.steps)

    @property
    def computed(self) -> float:
        """Calls that were computed; a call computed for some samples counts in part."""
        return sum(record.computed for _, record in self.steps)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "evaluations": self.evaluations,
            "computed": self.computed,
            "nbytes": self.nbytes,
            "steps": [{"model": name, **asdict(record)} for name, record in self.steps],
        }

    def __str__(self) -> str:
        share = self.computed / self.evaluations if self.evaluations else 1.0
        lines = [
            f"{self.computed:g} of {self.evaluations} evaluations computed ({share:.0%}), "
            f"{self.nbytes:,} bytes of state"
        ]
        branches = dict.fromkeys((name, record.branch) for name, record in self.steps)
        for name, branch in branches:
            marks = "".join(
                "█" if r.computed == 1 else "░" if r.computed == 0 else "▒"
                for n, r in self.steps
                if (n, r.branch) == (name, branch)
            )
            lines.append(f"{name} {branch}: {marks}")
        return "\n".join(lines)


def report(sessions: Mapping[str, Session]) -> DiffusionReport:
    """The report of some sessions."""
    steps = tuple((name, r) for name, session in sessions.items() for r in session.records)
    return DiffusionReport(steps, sum(session.nbytes for session in sessions.values()))
