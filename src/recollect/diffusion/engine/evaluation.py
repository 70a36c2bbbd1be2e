"""One call of the denoiser under a policy: decide, run what must run, predict the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from recollect.diffusion.engine.branches import Branch, Record
from recollect.diffusion.engine.clock import Step
from recollect.diffusion.engine.faults import Blame, Enough, Fault, ours
from recollect.diffusion.engine.modulewise import ModuleWalk
from recollect.diffusion.engine.spanwise import BlockWalk, label
from recollect.diffusion.engine.survey import Survey
from recollect.diffusion.engine.tokenwise import TokenWalk
from recollect.diffusion.engine.values import Value, beside, split, spread, where_rows
from recollect.diffusion.host.blocks import Block
from recollect.diffusion.host.call import Call, take_rows
from recollect.diffusion.predictors import History
from recollect.diffusion.selection import Tokens
from recollect.diffusion.sites import BlockSite, Range, Transform
from recollect.errors import HostError, RecipeError

if TYPE_CHECKING:
    from recollect.diffusion.engine.session import Session

Forward = Callable[..., Any]
OUTPUT = "output"  # the site of the whole model


class Evaluation:
    """What one call does. Made by the session, used by the hooks while the call lasts.

    Attributes:
        compute: which samples are computed (B,) bool; None until the gate has judged.
        every, some: whether all of them are, and whether any is.
        skipped: spans of blocks that are left out.
        flags: which modules are computed, for gates that decide per module.
        running: samples (B,) that the model is given now, where a companion runs a part of them.
        blame: where an exception came from.
        share: share of a whole evaluation that a companion had computed.
    """

    def __init__(
        self, session: Session, branch: Branch, call: Call, step: Step, forward: Forward
    ) -> None:
        self.session, self.branch, self.call, self.step = session, branch, call, step
        self.forward = forward
        self.policy = session.policy
        self.blame = Blame()
        self.compute: torch.Tensor | None = None
        self.share = 1.0
        self.every = self.some = True
        self.skipped: tuple[Range, ...] = ()
        self.flags: tuple[bool, ...] | None = None
        self.running: torch.Tensor | None = None
        assert branch.ledger is not None
        self.ledger = branch.ledger
        self.modules = TokenWalk(self) if isinstance(self.policy.site, Tokens) else ModuleWalk(self)
        self.blocks = BlockWalk(self) if session.known else Survey(self)

    def run(self) -> Any:
        """The output of the call."""
        if self.policy.gate.probe == "none":
            self.decide(self.call.latent)
        try:
            output = self._partly() if self.session.whole else self._forward()
        except Enough:
            output = None
        self.blocks.finish()
        compute = self.compute
        if compute is None:
            raise HostError(
                f"the gate {type(self.policy.gate).__name__} never saw what it judges by: no block "
                f"of {type(self.session.model).__name__} ran"
            )
        if output is not None and self.some:
            output = self._observe_output(output, compute)
        elif self.session.whole:
            assert self.branch.template is not None
            output = self.branch.template.fill(self._from_site(self.predict(OUTPUT)))
        self.ledger.settle(compute)
        self.session.record(self._record(compute))
        return output

    # -- the hooks' side -------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """Blocks that have begun."""
        return self.blocks.position

    @ours
    def block(self, block: Block, forward: Forward, args: Any, kwargs: Any) -> Any:
        """Run, judge by, or leave out one block."""
        return self.blocks.block(block, forward, args, kwargs)

    @ours
    def module(self, name: str, mute: bool, forward: Forward, args: Any, kwargs: Any) -> Any:
        """Run or leave out one attention or feed-forward module.

        Args:
            name: its dotted name.
            mute: whether its output is overwritten later in the block, so that any will do.
            forward: the module.
            args, kwargs: its arguments.
        """
        return self.modules.module(name, mute, forward, args, kwargs)

    @ours
    def probe(self, seen: torch.Tensor) -> None:
        """Judge by what the first blocks gave. Raises Enough where nothing more need run."""
        rows = self.call.rows
        if seen.shape[0] % rows:
            raise HostError(
                f"a probed tensor {tuple(seen.shape)} has no samples along its first axis; "
                "use a gate of the whole model (easycache, taylorseer)"
            )
        self.decide(seen.reshape(rows, -1) if seen.shape[0] != rows else seen)
        if not self.some and (self.session.whole or self.blocks.inside_the_skipped):
            raise Enough

    # -- deciding --------------------------------------------------------------------------------

    def decide(self, seen: torch.Tensor) -> None:
        """Ask the gate once; afterwards it is known what is computed."""
        gate = self.policy.gate
        leader = self.session.leader(self)
        reuse = gate.judge(self.step, self.ledger, seen).cpu()
        if leader is not None:
            reuse = ~leader
        reuse = reuse & gate.allowed(self.step, self.ledger)
        self.flags = gate.module_flags(self.step, self.session.modules)
        spans = self._spans_to_skip()
        other = spans is not None and self.branch.active not in (None, spans)
        self.branch.active = spans
        self.skipped = spans or ()
        # Another span starts from a fresh value.
        possible = not other and self._ready(spans) and (self.flags is None or not all(self.flags))
        reuse = self._agree(reuse) if possible else torch.zeros_like(reuse)
        self.compute = ~reuse
        self.every, self.some = not bool(reuse.any()), not bool(reuse.all())
        if self.call.listed and self.some and not self.every:
            raise RecipeError("batch='split' needs one tensor of samples, not a list; use 'any'")
        self.session.lead(self)

    def _agree(self, reuse: torch.Tensor) -> torch.Tensor:
        """What is reused (B,), by the batch policy; the halves of guidance are of one mind."""
        if self.branch.paired:
            half = len(reuse) // 2
            both = reuse[:half] & reuse[half:]
            reuse = torch.cat([both, both])
        if self.policy.batch == "any" and not bool(reuse.all()):
            return torch.zeros_like(reuse)
        if self.policy.batch == "all" and bool(reuse.any()):
            return torch.ones_like(reuse)
        return reuse

    def _spans_to_skip(self) -> tuple[Range, ...] | None:
        site = self.policy.site
        if not isinstance(site, BlockSite):
            return None
        return self.session.cut(site.active(self.step, len(self.session.order), self.session.probe))

    def _ready(self, spans: tuple[Range, ...] | None) -> bool:
        """Whether everything that would be predicted has been seen."""
        if not self.session.known:
            return False
        histories = self.branch.histories
        if self.session.whole:
            return OUTPUT in histories
        if spans is not None:
            needed = spans[-1:] if self.session.absolute else spans
            return bool(spans) and all(label(span) in histories for span in needed)
        return bool(histories)

    # -- the whole model -------------------------------------------------------------------------

    def _forward(self) -> Any:
        with self.session.using(self):
            return self.blame.theirs(self.forward, self.call.args, self.call.kwargs)

    def _partly(self) -> Any:
        """Run the model on the samples that are computed; None where there are none."""
        compute = self.compute
        if compute is None or self.every:
            return self._forward()
        if not self.some:
            return None
        args, kwargs = take_rows(
            self.session.signature.names, self.call.args, self.call.kwargs, compute
        )
        with self.session.using(self):
            some, template = split(self.blame.theirs(self.forward, args, kwargs))
        return template.fill([spread(tensor, compute) for tensor in some])

    def _observe_output(self, output: Any, compute: torch.Tensor) -> Any:
        value, self.branch.template = split(output)
        if self.session.whole:
            self.observe(OUTPUT, self._to_site(value), compute)
            if not self.every:
                kept = self._from_site(self.predict(OUTPUT))
                value = where_rows(compute, value, kept)
                output = self.branch.template.fill(value)
        main = value[0] if value and value[0].shape[0] == self.call.rows else self.call.latent
        self.policy.gate.learn(self.step, self.ledger, self.call.latent, main, compute)
        self.session.check_limit(self.branch)
        return output

    def _to_site(self, value: Value) -> Value:
        return self._beside_latent(value, -1) if isinstance(self.policy.site, Transform) else value

    def _from_site(self, value: Value) -> Value:
        return self._beside_latent(value, 1) if isinstance(self.policy.site, Transform) else value

    def _beside_latent(self, value: Value, sign: int) -> Value:
        latent, axis = self.call.latent, 0 if self.call.listed else 1
        parts = latent.unbind(0) if self.call.listed else [latent] * len(value)
        return tuple(
            beside(tensor, part, sign, axis) for tensor, part in zip(value, parts, strict=False)
        )

    @property
    def rows(self) -> int:
        """Samples that the model is given now."""
        return self.call.rows if self.running is None else int(self.running.sum())

    @contextmanager
    def only(self, rows: torch.Tensor) -> Iterator[None]:
        """The model runs on the samples `rows` (B,) of a batch that is computed."""
        self.running, self.share = rows, float(rows.float().mean())
        try:
            yield
        finally:
            self.running = None

    # -- what is remembered ----------------------------------------------------------------------

    def observe(self, site: str, value: Value, rows: torch.Tensor | None = None) -> None:
        """Give a computed value to the predictor; `rows` are the fresh ones."""
        history = self.branch.histories.get(site)
        if history is None:
            history = self.branch.histories[site] = History()
        value = tuple(tensor.detach() for tensor in value)
        if self.running is not None:
            rows = self.running
            value = tuple(spread(tensor, rows) for tensor in value)
        rows = self._all if rows is None else rows
        self.policy.predictor.observe(history, value, self._moment, rows)
        for tap in self.session.taps:
            tap(self.branch, self.step, site, value)

    def predict(self, site: str) -> Value:
        """The predictor's value, corrected."""
        history = self.branch.histories.get(site)
        if history is None or history.empty:
            raise Fault(f"nothing was seen of {site}")
        value = self.policy.predictor.predict(history, self._moment)
        if self.policy.corrector is not None:
            value = self.policy.corrector.correct(value, self.step, site)
        if self.running is not None:
            value = tuple(tensor[self.running.to(tensor.device)] for tensor in value)
        return value

    @cached_property
    def _all(self) -> torch.Tensor:
        return torch.ones(self.call.rows, dtype=torch.bool)

    @cached_property
    def _moment(self) -> torch.Tensor:
        moment = self.step.on(self.policy.predictor.scale)
        return torch.full((self.call.rows,), moment, dtype=torch.float64)

    def _record(self, compute: torch.Tensor) -> Record:
        drift = self.ledger.drift
        if self.flags is not None and not self.every:
            computed = sum(self.flags) / len(self.flags)
        else:
            computed = 1.0 if self.every else float(compute.float().mean())
        return Record(
            self.branch.name,
            self.step.index,
            self.step.time,
            computed * self.share,
            None if drift is None else float(drift.max()),
        )
