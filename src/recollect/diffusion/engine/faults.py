"""Whose fault an exception is: the model's own go to the caller, ours leave the call uncached."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


class Enough(Exception):
    """Raised where a gate has seen enough to leave out the rest; caught where that begins."""


class Again(Exception):
    """The structure is known now, and was not what this call went by: it is run once more."""


class Fault(Exception):
    """The model did not behave as planned: the call is run again without us."""


class Blame:
    """Notes where the first exception of a call came from: `model`, `ours`, or nothing yet."""

    def __init__(self) -> None:
        self.culprit = ""

    def theirs(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call the model's code; its exceptions are the caller's."""
        try:
            return forward(*args, **kwargs)
        except Exception as error:
            if not isinstance(error, Enough):
                self.culprit = self.culprit or "model"
            raise


def ours(method: Callable[..., Any]) -> Callable[..., Any]:
    """Marks exceptions that start in this method of an evaluation as ours.

    The model's code that runs inside marks its own before.
    """

    @functools.wraps(method)
    def guarded(self: Any, *args: Any) -> Any:
        try:
            return method(self, *args)
        except Exception as error:
            if not isinstance(error, Enough):
                self.blame.culprit = self.blame.culprit or "ours"
            raise

    return guarded
