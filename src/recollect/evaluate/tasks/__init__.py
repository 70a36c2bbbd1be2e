"""The tasks, side by side."""

from __future__ import annotations

import difflib

from recollect.errors import RecipeError
from recollect.evaluate.tasks.base import MODES, Case, Question, Setting, Task
from recollect.evaluate.tasks.code import CodeCompletion
from recollect.evaluate.tasks.continuation import Continuation
from recollect.evaluate.tasks.needles import MultiKey, MultiQuery, MultiValue, SingleNeedle
from recollect.evaluate.tasks.turns import MultiTurn
from recollect.evaluate.tasks.variables import VariableTracking
from recollect.evaluate.tasks.words import CommonWords

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        SingleNeedle(),
        MultiKey(),
        MultiValue(),
        MultiQuery(),
        MultiTurn(),
        VariableTracking(),
        CommonWords(),
        CodeCompletion(),
        Continuation(),
    )
}

__all__ = ["MODES", "TASKS", "Case", "Question", "Setting", "Task", "find"]


def find(name: str) -> Task:
    """The task of that name. Raises RecipeError with the nearest name when there is none."""
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise RecipeError(f"unknown task '{name}'{hint} (there are: {', '.join(TASKS)})")
    return TASKS[name]
