"""Long-range code completion: the next line of a file, where the same line stood far back.

Nothing is planted: the repetition is the author's own, in held-out standard-library files.
"""

from __future__ import annotations

from dataclasses import dataclass

from recollect.errors import RecipeError
from recollect.evaluate.tasks import sources
from recollect.evaluate.tasks.base import Case, Setting, Task

_LEAD = 2  # lines before the target that are the question
_TRIES = 200


@dataclass(frozen=True)
class _Spot:
    """Line `target` of a file, and the nearest earlier line with the same text."""

    lines: list[str]
    target: int
    earlier: int


class CodeCompletion(Task):
    """The next line, exactly."""

    name = "code"
    title = "Long-range code completion"

    def case(self, setting: Setting) -> Case:
        for _ in range(_TRIES):
            spot = self._spot(setting)
            case = self._case(setting, spot) if spot is not None else None
            if case is not None:
                return case
        raise RecipeError(
            f"no line with an earlier twin fits into {setting.length} tokens; raise --length"
        )

    def _spot(self, setting: Setting) -> _Spot | None:
        lines = setting.rng.choice(sources.files()).splitlines(keepends=True)
        earlier: dict[str, int] = {}
        spots: list[_Spot] = []
        for n, line in enumerate(lines):
            worth = len(line.strip()) >= 16 and not line.lstrip().startswith(("#", '"', "'"))
            if worth and n > 40 and n - earlier.get(line, n) >= 20 + _LEAD:
                spots.append(_Spot(lines, n, earlier[line]))
            earlier[line] = n
        return setting.rng.choice(spots) if spots else None

    def _case(self, setting: Setting, spot: _Spot) -> Case | None:
        """The case of a spot; None when the earlier line is too far back or too near."""
        border = spot.target - _LEAD
        counts = setting.encoder.count(spot.lines[max(0, border - setting.length) : border])
        room = setting.length - len(setting.encoder.context("")) - 4
        start = border
        for count in reversed(counts):
            if count > room:
                break
            room -= count
            start -= 1
        context = "".join(spot.lines[start:border]).rstrip("\n")
        distance = sum(setting.encoder.count(spot.lines[spot.earlier : border]))
        fits = len(setting.encoder.context(context)) <= setting.length
        if spot.earlier < start or distance < setting.length // 8 or not fits:
            return None
        lead = "".join(spot.lines[border : spot.target])
        asked = lead.rstrip("\n")
        answer = lead[len(asked) :] + spot.lines[spot.target].rstrip("\n")
        question = setting.question(
            "\n" + asked, answer, chat="The file above goes on. Write its next line."
        )
        return setting.case(context, [question], line=answer.lstrip("\n"), distance=distance)
