"""What an in-context cache gives back: how a request was prepared, what came of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from recollect.answers.examples.example import Example
from recollect.answers.examples.router import Model
from recollect.answers.examples.selector import Choice


@dataclass(frozen=True)
class Used:
    """What one request was prepared with; hand it back to `observe`.

    Attributes:
        model: the request goes to.
        examples: shown to it, in the order of the prompt.
        tokens: estimate of what they add to the prompt.
        wants_feedback: what is unknown about this request is worth asking the user.
        query: the request's last user text.
        partition, key, writer: of an example made of it, see `Example`.
        refusal: why none may be made of it, or empty.
    """

    model: Model
    examples: tuple[Example, ...]
    tokens: int
    wants_feedback: bool
    choice: Choice = field(repr=False)
    context: np.ndarray = field(repr=False)
    query: str = field(repr=False)
    partition: tuple[str, ...] = field(repr=False)
    key: str = field(repr=False)
    writer: str = field(repr=False)
    refusal: str = field(repr=False)


class Prepared(NamedTuple):
    """Where a request goes, as what, and with what."""

    model: str
    request: Mapping[str, Any]
    used: Used


class Observed(NamedTuple):
    """The id under which an answer became an example, or why it did not."""

    example_id: int | None
    reason: str


class Maintained(NamedTuple):
    """Answers made again, those that were better, examples evicted."""

    replayed: int
    improved: int
    evicted: int
