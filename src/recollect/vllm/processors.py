"""Where a worker's own threads run: not on the processors that its forward is bound to.

vLLM binds a CPU worker to some processors and leaves others free for connectors. Threads inherit
the binding, and a copy beside the forward on one processor costs it as much time as the copy takes.
"""

from __future__ import annotations

import multiprocessing
import os
from contextlib import suppress

# What a second of a background thread costs the engine, in seconds: all of it where both share
# processors; some elsewhere, for memory bandwidth and Python's lock.
SHARED, APART = 1.0, 0.25


def others() -> set[int]:
    """Processors that the process that started this one may use and this one may not."""
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None or not hasattr(os, "sched_getaffinity"):
        return set()
    with suppress(OSError):
        return os.sched_getaffinity(parent.pid) - os.sched_getaffinity(0)
    return set()


def move_thread(processors: set[int]) -> None:
    """Have the calling thread, and those it starts, run on these; nothing for none."""
    if processors:
        with suppress(OSError):
            os.sched_setaffinity(0, processors)


def background_price(processors: set[int]) -> float:
    """What a second of threads on these `others` costs the engine."""
    return APART if processors else SHARED
