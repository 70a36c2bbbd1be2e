"""The first computed step: it runs whole, and shows the order of the blocks and their streams.

What a block's outputs continue is seen when the next block is called, so spans are observed and
probes judged one block late. Blocks are expected in the order of their lists; a model that goes
another way is run once more when its order is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from recollect.diffusion.engine.faults import Again
from recollect.diffusion.engine.spanwise import main, observe_span
from recollect.diffusion.host.blocks import Block, Streams, recognize
from recollect.diffusion.sites import Range

if TYPE_CHECKING:
    from recollect.diffusion.engine.evaluation import Evaluation


class _Ran(NamedTuple):
    """A block that has run and whose streams are not known yet."""

    block: Block
    named: Mapping[str, Any]
    output: Any


class Survey:
    """The way of one call through blocks that are seen for the first time.

    Attributes:
        position: blocks that have begun.
        inside_the_skipped: nothing is left out yet.
    """

    inside_the_skipped = False

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation, self.session = evaluation, evaluation.session
        self.order: list[Block] = []
        self.position = 0
        self._astray = False
        self._waiting: _Ran | None = None
        self._first: dict[str, torch.Tensor] = {}
        self._starts: dict[Range, dict[str, torch.Tensor]] = {}
        self._known: dict[type, dict[int, str]] = {}

    def block(self, block: Block, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a block; tell the streams of the one before from this one's arguments."""
        named = block.bind(args, kwargs)
        self._recognize(block, named)
        place, self.position = self.position, self.position + 1
        listed = self.session.order
        self._astray = self._astray or place >= len(listed) or listed[place] is not block
        tensors = {name: t for name, t in named.items() if isinstance(t, torch.Tensor)}
        if place == 0 and self.session.policy.gate.probe == "residual":
            self._first = tensors
        self._starts |= dict.fromkeys(self.session.starting.get(place, ()), tensors)
        output = self.evaluation.blame.theirs(forward, args, kwargs)
        self.order.append(block)
        self._waiting = _Ran(block, named, output)
        return output

    def finish(self) -> None:
        """Close the last block; the session knows the structure from now on.

        Raises Again where the blocks did not run in the order of their lists.
        """
        self._recognize(None, {})
        self.session.learn(self.order)
        if self._astray:
            raise Again

    def _recognize(self, following: Block | None, named: Mapping[str, Any]) -> None:
        if self._waiting is None:
            return
        (block, given, output), self._waiting = self._waiting, None
        alike = following is not None and following.group == block.group
        kind = type(block.module)
        recognize(block, given, output, named if alike else None, self._known.get(kind))
        self._known[kind] = block.streams
        if not self._astray:
            self._observe(len(self.order) - 1, block, block.outputs(output))

    def _observe(self, place: int, block: Block, streams: Streams) -> None:
        for span in [span for span in self._starts if span[1] == place + 1]:
            observe_span(self.evaluation, span, self._starts.pop(span), streams)
        gate = self.session.policy.gate
        if gate.probe in ("residual", "output") and place == gate.probe_blocks - 1:
            seen = streams[main(block)]
            entry = self._first.get(main(block)) if gate.probe == "residual" else None
            self._first = {}
            self.evaluation.probe(seen if entry is None else seen - entry)
