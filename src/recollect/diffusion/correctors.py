"""What is done to a predicted value before it is used."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from recollect.diffusion.clock import Step
from recollect.diffusion.values import Value


@dataclass(frozen=True)
class Corrector(ABC):
    """Corrects what a predictor says, by step and site."""

    @abstractmethod
    def correct(self, value: Value, step: Step, site: str) -> Value:
        """The corrected tensors.

        Args:
            value: predicted tensors (B, …).
            step: the skipped step.
            site: name of the site, as in reports.
        """
