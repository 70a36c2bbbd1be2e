"""Blocks under a policy: they run, judge, or are left out span by span."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from recollect.diffusion.engine.faults import Enough, Fault
from recollect.diffusion.engine.values import Value, merge, where_rows
from recollect.diffusion.host.blocks import Block, Streams
from recollect.diffusion.host.call import take_rows
from recollect.diffusion.sites import Range
from recollect.errors import HostError

if TYPE_CHECKING:
    from recollect.diffusion.engine.evaluation import Evaluation

Forward = Callable[..., Any]


class BlockWalk:
    """The way of one call through the blocks, whose order and streams are known.

    Attributes:
        position: blocks that have begun.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation, self.session = evaluation, evaluation.session
        self.position = 0
        self._starts: dict[Range, Streams] = {}
        self._entry: torch.Tensor | None = None

    def finish(self) -> None:
        """Nothing is left to do at the end of the call."""

    @property
    def inside_the_skipped(self) -> bool:
        """Whether the block that runs now, and judges from inside, is one that is left out."""
        return self.session.policy.gate.probe == "modulated" and self._skipping(0) is not None

    def block(self, block: Block, forward: Forward, args: Any, kwargs: Any) -> Any:
        """Run, judge by, or leave out one block."""
        place, self.position = self.position, self.position + 1
        session, order = self.session, self.session.order
        if place >= len(order) or order[place] is not block:
            raise Fault(f"{block.name} ran out of its order")
        gate = session.policy.gate
        if place == 0 and gate.probe == "residual":
            self._entry = block.inputs(args, kwargs)[main(block)]
        for span in session.starting.get(place, ()):
            self._starts[span] = block.inputs(args, kwargs)
        skipping = self._skipping(place)
        if skipping is None:
            try:
                output = self.evaluation.blame.theirs(forward, args, kwargs)
            except Enough:  # the probe inside the first block has settled it
                if session.whole:
                    raise
                skipping = self._skipping(place)
                if skipping is None:
                    raise Fault("a block stopped early that is not left out") from None
        if skipping is not None:
            streams = self._left_out(block, skipping, place, forward, args, kwargs)
            output = block.passed(streams)
        elif place in session.watched:
            streams = block.outputs(output)
            self._observe_spans(place, streams)
        if gate.probe in ("residual", "output") and place == gate.probe_blocks - 1:
            seen = streams[main(block)]
            self.evaluation.probe(seen if self._entry is None else seen - self._entry)
        return output

    def _skipping(self, place: int) -> Range | None:
        """The span this block is left out with, for some samples or all."""
        evaluation = self.evaluation
        if evaluation.every:  # also before the gate has judged
            return None
        if self.session.whole:
            rest = (self.session.probe, len(self.session.order))
            return rest if rest[0] <= place < rest[1] else None
        return next((span for span in evaluation.skipped if span[0] <= place < span[1]), None)

    def _left_out(
        self, block: Block, span: Range, place: int, forward: Forward, args: Any, kwargs: Any
    ) -> Streams:
        """Streams after a block that runs for the computed samples only."""
        evaluation, compute = self.evaluation, self.evaluation.compute
        assert compute is not None
        streams = block.inputs(args, kwargs)
        if evaluation.some:
            given, named = take_rows(block.names, args, kwargs, compute)
            fresh = block.outputs(evaluation.blame.theirs(forward, given, named))
            streams = {
                name: merge(streams[name], tensor, compute) for name, tensor in fresh.items()
            }
        if place == span[1] - 1 and not self.session.whole and self._predicts(span):
            kept = self._span_value(span, block)
            if evaluation.some:
                value = tuple(streams[name] for name in block.streams.values())
                kept = where_rows(compute, value, kept)
                self._observe_spans(place, streams, compute)
            streams = dict(zip(block.streams.values(), kept, strict=True))
        return streams

    def _predicts(self, span: Range) -> bool:
        return not self.session.absolute or span == self.evaluation.skipped[-1]

    def _span_value(self, span: Range, block: Block) -> Value:
        value = self.evaluation.predict(label(span))
        if self.session.absolute:
            return value
        start = self._starts[span]
        names = block.streams.values()
        return tuple(start[name] + delta for name, delta in zip(names, value, strict=True))

    def _observe_spans(
        self, place: int, streams: Streams, rows: torch.Tensor | None = None
    ) -> None:
        for span in self.session.spans:
            if span[1] - 1 != place or span not in self._starts:
                continue
            if rows is None and not self.evaluation.every:
                continue  # on a skipped step other spans may have started from a prediction
            start = self._starts.pop(span) if rows is None else self._starts[span]
            observe_span(self.evaluation, span, start, streams, rows)


def observe_span(
    evaluation: Evaluation,
    span: Range,
    start: Streams,
    streams: Streams,
    rows: torch.Tensor | None = None,
) -> None:
    """Note what a span gave: its output, or what it added to the streams it was given.

    Raises HostError where it changes their shape.
    """
    if evaluation.session.absolute:
        if span == evaluation.session.spans[-1]:
            evaluation.observe(label(span), tuple(streams.values()), rows)
        return
    missing = [name for name in streams if name not in start]
    if missing or any(streams[n].shape != start[n].shape for n in streams):
        raise HostError(
            f"the blocks {span[0]} to {span[1] - 1} change the shape of their streams; "
            "use the site Hidden, Velocity or Modules"
        )
    delta = tuple(streams[name] - start[name] for name in streams)
    evaluation.observe(label(span), delta, rows)


def label(span: Range) -> str:
    """Name of a span, as profiles and correctors know it."""
    return f"blocks {span[0]}-{span[1] - 1}"


def main(block: Block) -> str:
    """The stream of image tokens."""
    names = list(block.streams.values())
    return "hidden_states" if "hidden_states" in names else names[0]
