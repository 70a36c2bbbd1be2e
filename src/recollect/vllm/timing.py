"""How long a worker's forwards take, without waiting for any of them."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch

from recollect.vllm.messages import Forward, Orders


class ForwardTimer:
    """Times what lies between the start of a step and the end of its forward.

    On CUDA, where a forward goes on after the call that launched it, events mark the two ends on
    the device, and a forward's time is known some steps later.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._start: Any = None
        self._apart = 0.0
        self._running: deque[tuple[Orders, Any, Any, float]] = deque()

    def begin(self) -> None:
        """A step begins."""
        self._start, self._apart = self._mark(), 0.0

    def leave_out(self, seconds: float) -> None:
        """So much of this step was not the forward's."""
        self._apart += seconds

    def end(self, orders: Orders) -> None:
        """The forward that these orders came with was computed, or launched."""
        start, self._start = self._start, None
        if start is not None and orders.tokens:
            self._running.append((orders, start, self._mark(), self._apart))

    def take(self) -> list[Forward]:
        """Forwards whose time is known since the last call."""
        known = []
        while self._running and (not self._cuda or self._running[0][2].query()):
            orders, start, end, apart = self._running.popleft()
            seconds = start.elapsed_time(end) / 1e3 if self._cuda else end - start - apart
            known.append(Forward(orders.tokens, orders.pairs, seconds))
        return known

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
