"""Haystacks: source text of a given length with lines hidden in it."""

from __future__ import annotations

from collections.abc import Sequence

from recollect.errors import RecipeError
from recollect.evaluate.tasks import sources
from recollect.evaluate.tasks.base import Setting

_PROBE = 64  # lines tokenized at a time


def hide(setting: Setting, hidden: Sequence[str]) -> tuple[str, list[float]]:
    """A context of at most `setting.length` tokens with the hidden lines in it, in their order.

    Returns the text and the depth of each hidden line, in [0, 1] by characters.
    """
    straw = _straw(setting, hidden)
    while True:
        text, starts = _mix(setting, straw, hidden)
        excess = len(setting.encoder.context(text)) - setting.length
        if excess <= 0:
            return text, [start / len(text) for start in starts]
        counts = setting.encoder.count(straw)
        while excess > 0:
            if not straw:
                raise RecipeError(
                    f"--length {setting.length} is too short for this task's "
                    f"{len(hidden)} hidden lines; give more tokens"
                )
            excess -= counts[len(straw) - 1]
            straw = straw[:-1]


def _straw(setting: Setting, hidden: Sequence[str]) -> list[str]:
    """Consecutive source lines that fill what the hidden ones leave free."""
    free = (
        setting.length - sum(setting.encoder.count(list(hidden))) - len(setting.encoder.context(""))
    )
    source = sources.lines(setting.rng)
    straw: list[str] = []
    for start in range(0, len(source), _PROBE):
        probe = source[start : start + _PROBE]
        for line, count in zip(probe, setting.encoder.count(probe), strict=True):
            if count > free:
                return straw
            straw.append(line)
            free -= count
    return straw


def _mix(setting: Setting, straw: list[str], hidden: Sequence[str]) -> tuple[str, list[int]]:
    """Straw with hidden lines at random places, and the character each of them starts at."""
    places = sorted(setting.rng.randint(0, len(straw)) for _ in hidden)
    by_place: dict[int, list[int]] = {}
    for index, place in enumerate(places):
        by_place.setdefault(place, []).append(index)
    pieces: list[str] = []
    starts, written = [0] * len(hidden), 0
    for place in range(len(straw) + 1):
        for index in by_place.get(place, []):
            starts[index] = written
            pieces.append(hidden[index])
            written += len(hidden[index])
        if place < len(straw):
            pieces.append(straw[place])
            written += len(straw[place])
    return "".join(pieces).removesuffix("\n"), starts
