"""One call of the denoiser under a policy: decide, run what must run, predict the rest."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from recollect.diffusion.branches import Branch, Record
from recollect.diffusion.clock import Step
from recollect.diffusion.host.blocks import Block, Streams
from recollect.diffusion.host.call import Call, take_rows
from recollect.diffusion.predictors import History
from recollect.diffusion.sites import BlockSite, ModuleSite, Range, Transform
from recollect.diffusion.values import Value, split, where_rows
from recollect.errors import HostError, RecipeError

if TYPE_CHECKING:
    from recollect.diffusion.session import Session

Forward = Callable[..., Any]
OUTPUT = "output"  # the site of the whole model


class Enough(Exception):
    """Raised where a gate has seen enough to leave out the rest; caught where that begins."""


class Fault(Exception):
    """The model did not behave as planned: the call is run again without us."""


def _ours(method: Callable[..., Any]) -> Callable[..., Any]:
    """Marks exceptions that start in this method as ours; those of the model are marked before."""

    @functools.wraps(method)
    def guarded(self: Evaluation, *args: Any) -> Any:
        try:
            return method(self, *args)
        except Exception as error:
            if not isinstance(error, Enough):
                self.culprit = self.culprit or "ours"
            raise

    return guarded


class Evaluation:
    """What one call does. Made by the session, used by the hooks while the call lasts.

    Attributes:
        compute: which samples are computed (B,) bool; None until the gate has judged.
        culprit: `model` or `ours`: where an exception came from.
    """

    def __init__(
        self, session: Session, branch: Branch, call: Call, step: Step, forward: Forward
    ) -> None:
        self.session, self.branch, self.call, self.step = session, branch, call, step
        self.forward = forward
        self.policy = session.policy
        self.compute: torch.Tensor | None = None
        self.culprit = ""
        self.position = 0
        self.starts: dict[Range, Streams] = {}
        self.entry: torch.Tensor | None = None
        self.calls: Counter[str] = Counter()
        self.skipped: tuple[Range, ...] = ()
        site = self.policy.site
        self.whole = not isinstance(site, BlockSite | ModuleSite)
        self.absolute = isinstance(site, BlockSite) and site.absolute
        assert branch.ledger is not None
        self.ledger = branch.ledger

    # -- the whole model -------------------------------------------------------------------------

    def run(self) -> Any:
        """The output of the call."""
        if self.policy.gate.probe == "none":
            self.decide(self.call.latent)
        try:
            output = self._partly() if self.whole else self._forward()
        except Enough:
            output = None
        compute = self.compute
        if compute is None:
            raise HostError(
                f"the gate {type(self.policy.gate).__name__} never saw what it judges by: no block "
                f"of {type(self.session.model).__name__} ran"
            )
        if output is not None and bool(compute.any()):
            output = self._observe_output(output, compute)
        elif self.whole:
            output = self._predicted_output()
        self.ledger.settle(compute)
        self.session.record(self._record(compute))
        return output

    def _forward(self) -> Any:
        with self.session.using(self):
            return self._theirs(self.forward, self.call.args, self.call.kwargs)

    def _theirs(self, forward: Forward, args: Any, kwargs: Any) -> Any:
        """Call the model's code; its exceptions are the caller's."""
        try:
            return forward(*args, **kwargs)
        except Exception as error:
            if not isinstance(error, Enough):
                self.culprit = self.culprit or "model"
            raise

    def _partly(self) -> Any:
        """Run the model on the samples that are computed; None where there are none."""
        compute = self.compute
        if compute is None or bool(compute.all()):
            return self._forward()
        if not bool(compute.any()):
            return None
        args, kwargs = take_rows(
            self.session.signature.names, self.call.args, self.call.kwargs, compute
        )
        some, template = split(self._theirs(self.forward, args, kwargs))
        return template.fill([_spread(tensor, compute) for tensor in some])

    def _observe_output(self, output: Any, compute: torch.Tensor) -> Any:
        value, self.branch.template = split(output)
        if self.whole:
            self.observe(OUTPUT, self._to_site(value), compute)
            if not bool(compute.all()):
                kept = self._from_site(self.predict(OUTPUT))
                value = where_rows(compute, value, kept)
                output = self.branch.template.fill(value)
        main = value[0] if value and value[0].shape[0] == self.call.rows else self.call.latent
        self.policy.gate.learn(self.step, self.ledger, self.call.latent, main, compute)
        return output

    def _predicted_output(self) -> Any:
        assert self.branch.template is not None
        return self.branch.template.fill(self._from_site(self.predict(OUTPUT)))

    def _to_site(self, value: Value) -> Value:
        return self._beside_latent(value, -1) if isinstance(self.policy.site, Transform) else value

    def _from_site(self, value: Value) -> Value:
        return self._beside_latent(value, 1) if isinstance(self.policy.site, Transform) else value

    def _beside_latent(self, value: Value, sign: int) -> Value:
        """Output tensors plus (1) or minus (-1) the latent, in the channels that both have.

        Some models are given more channels than they return (an image to start from), others
        return more (a learned variance).
        """
        moved = []
        for place, tensor in enumerate(value):
            latent = self.call.latent[place] if self.call.listed else self.call.latent
            axis = 0 if self.call.listed else 1
            shared = min(tensor.shape[axis], latent.shape[axis])
            rest = tensor.narrow(axis, shared, tensor.shape[axis] - shared)
            part, latent = tensor.narrow(axis, 0, shared), latent.narrow(axis, 0, shared)
            if part.shape != latent.shape:
                raise HostError(
                    f"the output {tuple(tensor.shape)} does not continue the latent "
                    f"{tuple(self.call.latent.shape)}; use the site Velocity"
                )
            moved.append(torch.cat([part + sign * latent, rest], axis))
        return tuple(moved)

    # -- deciding --------------------------------------------------------------------------------

    def decide(self, seen: torch.Tensor) -> None:
        """Ask the gate once; afterwards `compute` and `skipped` are known."""
        leader = self.session.leader(self)
        reuse = self.policy.gate.judge(self.step, self.ledger, seen).cpu()
        if leader is not None:
            reuse = ~leader
        reuse = reuse & self.policy.gate.allowed(self.step, self.ledger)
        spans = self._spans_to_skip()
        if spans is not None and self.branch.active not in (None, spans):
            reuse = torch.zeros_like(reuse)  # another span: it starts from a fresh value
        self.branch.active = spans
        self.skipped = spans or ()
        if not self._ready(spans):
            reuse = torch.zeros_like(reuse)
        if self.branch.paired:
            half = len(reuse) // 2
            both = reuse[:half] & reuse[half:]
            reuse = torch.cat([both, both])
        if self.policy.batch == "any" and not bool(reuse.all()):
            reuse = torch.zeros_like(reuse)
        elif self.policy.batch == "all" and bool(reuse.any()) and self._ready(spans):
            reuse = torch.ones_like(reuse)
        if self.call.listed and 0 < int(reuse.sum()) < len(reuse):
            raise RecipeError("batch='split' needs one tensor of samples, not a list; use 'any'")
        self.compute = ~reuse
        self.session.lead(self)

    def _spans_to_skip(self) -> tuple[Range, ...] | None:
        site = self.policy.site
        if not isinstance(site, BlockSite):
            return None
        active = site.active(self.step, len(self.session.order), self.session.probe)
        return self.session.cut(active)

    def _ready(self, spans: tuple[Range, ...] | None) -> bool:
        """Whether everything that would be predicted has been seen."""
        if self.whole:
            return OUTPUT in self.branch.histories
        if spans is not None:
            needed = spans[-1:] if self.absolute else spans
            return bool(spans) and all(_label(span) in self.branch.histories for span in needed)
        return bool(self.branch.histories)

    # -- blocks ----------------------------------------------------------------------------------

    @_ours
    def block(self, block: Block, forward: Forward, args: Any, kwargs: Any) -> Any:
        """Run, judge by, or leave out one block."""
        place, self.position = self.position, self.position + 1
        order = self.session.order
        if place >= len(order) or order[place] is not block:
            raise Fault(f"{block.name} ran out of its order")
        gate = self.policy.gate
        if place == 0 and gate.probe == "residual":
            self.entry = block.inputs(args, kwargs)[_main(block)]
        for span in self.session.spans:
            if span[0] == place:
                self.starts[span] = block.inputs(args, kwargs)
        skipping = self._skipping(place)
        if skipping is None:
            try:
                output = self._theirs(forward, args, kwargs)
            except Enough:  # the probe inside the first block has settled it
                if self.whole:
                    raise
                skipping = self._skipping(place)
                if skipping is None:
                    raise Fault("a block stopped early that is not left out") from None
        if skipping is not None:
            streams = self._left_out(block, skipping, place, forward, args, kwargs)
            output = block.passed(streams)
        else:
            streams = block.outputs(output)
            self._observe_spans(place, streams)
        if gate.probe in ("residual", "output") and place == gate.probe_blocks - 1:
            seen = streams[_main(block)]
            self.probe(seen if self.entry is None else seen - self.entry)
        return output

    @_ours
    def probe(self, seen: torch.Tensor) -> None:
        """Judge by what the first blocks gave. Raises Enough where nothing more need run."""
        rows = self.call.rows
        if seen.shape[0] % rows:
            raise HostError(
                f"a probed tensor {tuple(seen.shape)} has no samples along its first axis; "
                "use a gate of the whole model (easycache, taylorseer)"
            )
        self.decide(seen.reshape(rows, -1) if seen.shape[0] != rows else seen)
        assert self.compute is not None
        inside = self.whole or (
            self.policy.gate.probe == "modulated" and self._skipping(0) is not None
        )
        if inside and not bool(self.compute.any()):
            raise Enough

    def _skipping(self, place: int) -> Range | None:
        """The span this block is left out with, for some samples or all."""
        if self.compute is None or bool(self.compute.all()):
            return None
        if self.whole:
            rest = (self.session.probe, len(self.session.order))
            return rest if rest[0] <= place < rest[1] else None
        return next((span for span in self.skipped if span[0] <= place < span[1]), None)

    def _left_out(
        self, block: Block, span: Range, place: int, forward: Forward, args: Any, kwargs: Any
    ) -> Streams:
        """Streams after a block that runs for the computed samples only."""
        assert self.compute is not None
        compute, streams = self.compute, block.inputs(args, kwargs)
        some = bool(compute.any())
        if some:
            given, named = take_rows(block.names, args, kwargs, compute)
            fresh = block.outputs(self._theirs(forward, given, named))
            streams = {
                name: _merge(streams[name], tensor, compute) for name, tensor in fresh.items()
            }
        if place == span[1] - 1 and not self.whole and self._predicts(span):
            kept = self._span_value(span, block)
            if some:
                value = tuple(streams[name] for name in block.streams.values())
                kept = where_rows(compute, value, kept)
                self._observe_spans(place, streams, compute)
            streams = dict(zip(block.streams.values(), kept, strict=True))
        return streams

    def _predicts(self, span: Range) -> bool:
        return not self.absolute or span == self.skipped[-1]

    def _span_value(self, span: Range, block: Block) -> Value:
        value = self.predict(_label(span))
        if self.absolute:
            return value
        start = self.starts[span]
        names = block.streams.values()
        return tuple(start[name] + delta for name, delta in zip(names, value, strict=True))

    def _observe_spans(
        self, place: int, streams: Streams, rows: torch.Tensor | None = None
    ) -> None:
        for span in self.session.spans:
            if span[1] - 1 != place or span not in self.starts:
                continue
            if rows is None and self.compute is not None and not bool(self.compute.all()):
                continue  # on a skipped step other spans may have started from a prediction
            start = self.starts.pop(span) if rows is None else self.starts[span]
            if self.absolute:
                if span == self.session.spans[-1]:
                    self.observe(_label(span), tuple(streams.values()), rows)
                continue
            missing = [name for name in streams if name not in start]
            if missing or any(streams[n].shape != start[n].shape for n in streams):
                raise HostError(
                    f"the blocks {span[0]} to {span[1] - 1} change the shape of their streams; "
                    "use the site Hidden, Velocity or Modules"
                )
            delta = tuple(streams[name] - start[name] for name in streams)
            self.observe(_label(span), delta, rows)

    # -- modules ---------------------------------------------------------------------------------

    @_ours
    def module(self, name: str, mute: bool, forward: Forward, args: Any, kwargs: Any) -> Any:
        """Run or leave out one attention or feed-forward module.

        Args:
            name: its dotted name.
            mute: whether its output is overwritten later in the block, so that any will do.
            forward: the module.
            args, kwargs: its arguments.
        """
        templates = self.session.templates
        flags = self.policy.gate.site_flags(self.step)
        skip = self.compute is not None and not bool(self.compute.all())
        if flags is not None and skip:
            skip = not flags[self.session.site_number(name)]
        self.calls[name] += 1
        if self.calls[name] > 1:  # some blocks send both streams through one module
            name = f"{name} call {self.calls[name]}"
        if not skip:
            output = self._theirs(forward, args, kwargs)
            value, templates[name] = split(output)
            if mute:
                self.session.shapes[name] = [(t.shape, t.dtype, t.device) for t in value]
            else:
                self.observe(name, value)
            return output
        assert self.compute is not None
        if bool(self.compute.any()) and flags is None:
            given, named = take_rows((), args, kwargs, self.compute)
            value, _ = split(self._theirs(forward, given, named))
            value = tuple(_spread(tensor, self.compute) for tensor in value)
            if not mute:
                self.observe(name, value, self.compute)
                value = where_rows(self.compute, value, self.predict(name))
        elif mute:
            value = tuple(
                torch.zeros((), dtype=dtype, device=device).expand(shape)
                for shape, dtype, device in self.session.shapes[name]
            )
        else:
            value = self.predict(name)
        return templates[name].fill(value)

    # -- what is remembered ----------------------------------------------------------------------

    def observe(self, site: str, value: Value, rows: torch.Tensor | None = None) -> None:
        """Give a computed value to the predictor; `rows` are the fresh ones."""
        count = self.call.rows
        rows = torch.ones(count, dtype=torch.bool) if rows is None else rows
        history = self.branch.histories.setdefault(site, History())
        value = tuple(tensor.detach() for tensor in value)
        self.policy.predictor.observe(history, value, self._moment(), rows)
        for tap in self.session.taps:
            tap(self.branch, self.step, site, value)
        self.session.check_limit(self.branch)

    def predict(self, site: str) -> Value:
        """The predictor's value, corrected."""
        history = self.branch.histories.get(site)
        if history is None or history.empty:
            raise Fault(f"nothing was seen of {site}")
        value = self.policy.predictor.predict(history, self._moment())
        if self.policy.corrector is not None:
            value = self.policy.corrector.correct(value, self.step, site)
        return value

    def _moment(self) -> torch.Tensor:
        moment = self.step.on(self.policy.predictor.scale)
        return torch.full((self.call.rows,), moment, dtype=torch.float64)

    def _record(self, compute: torch.Tensor) -> Record:
        drift = self.ledger.drift
        return Record(
            self.branch.name,
            self.step.index,
            self.step.time,
            float(compute.float().mean()),
            None if drift is None else float(drift.max()),
        )


def _label(span: Range) -> str:
    return f"blocks {span[0]}-{span[1] - 1}"


def _main(block: Block) -> str:
    """The stream of image tokens."""
    names = list(block.streams.values())
    return "hidden_states" if "hidden_states" in names else names[0]


def _spread(tensor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Results of some samples at their places among all; the others are 0."""
    full = tensor.new_zeros(len(rows), *tensor.shape[1:])
    full[rows.to(tensor.device)] = tensor
    return full


def _merge(old: torch.Tensor, some: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`old` with the marked samples replaced."""
    merged = old.clone()
    merged[rows.to(old.device)] = some
    return merged
