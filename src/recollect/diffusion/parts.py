"""What site, gate, predictor, corrector and companion have in common."""

from __future__ import annotations

from abc import ABC
from typing import Any

import torch


class Part(ABC):  # noqa: B024 - each kind of part adds what it must do
    """One part of a policy: a frozen dataclass that can be written in a line of YAML."""

    def check(self, model: torch.nn.Module, sites: tuple[str, ...]) -> None:
        """Refuse a model that this part was not made for; called when it is attached.

        Args:
            model: the denoiser.
            sites: names of the modules that are left out on a skipped step, in order, where the
                site is one of modules; empty otherwise.

        Raises:
            HostError: the part was learned or profiled on another model, or does not fit.
        """
        return


def kinds_of(base: type[Any]) -> dict[str, type[Any]]:
    """Every part derived from `base`, by the name of its class."""
    found: dict[str, type[Any]] = {}
    waiting = base.__subclasses__()
    while waiting:
        kind = waiting.pop()
        found[kind.__name__] = kind
        waiting += kind.__subclasses__()
    return found
