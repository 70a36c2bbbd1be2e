"""What is attached to one denoiser: its policy, its structure and the state of its branches."""

from __future__ import annotations

import functools
import itertools
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from recollect.diffusion.engine.branches import Branch, Branches, Record, same
from recollect.diffusion.engine.clock import Step
from recollect.diffusion.engine.evaluation import Evaluation
from recollect.diffusion.engine.faults import Again
from recollect.diffusion.engine.values import Value, nbytes
from recollect.diffusion.gates import Ledger
from recollect.diffusion.host.blocks import Block
from recollect.diffusion.host.call import Call, Signature
from recollect.diffusion.host.modules import Submodule
from recollect.diffusion.host.solver import Solver
from recollect.diffusion.host.timeline import Timeline
from recollect.diffusion.policy import DiffusionPolicy
from recollect.diffusion.sites import BlockSite, ModuleSite, Range
from recollect.errors import RecipeError, RecollectError

Tap = Callable[[Branch, Step, str, Value], None]
"""Hears (branch, step, site, value) whenever a value is computed."""

Measure = Callable[[torch.nn.Module, DiffusionPolicy, Any, Any], dict[str, int] | None]
"""Tells the bytes of a value of every site from a call's arguments; None where it cannot."""

RECORDS = 10_000
"""Steps remembered for reports; older ones are dropped."""


class Session:
    """The state behind the hooks of one denoiser.

    Attributes:
        model: the denoiser.
        policy: what is reused, when and how.
        signature: how its calls are read.
        needs_blocks: whether the site or the gate looks into the blocks.
        order: its blocks in the order in which they run: that of their lists until the first
            computed step has shown it (then `known` is set); empty where nothing needs them.
        whole: whether the site is the whole model.
        absolute: whether a span's output is held, rather than what it adds.
        watched: places of blocks whose outputs are looked at on a computed step.
        starting: spans by the place of their first block.
        spans: runs of blocks that are observed, cut where one list of blocks ends.
        probe: first blocks that run on every step.
        sites: names of the modules that are left out on a skipped step, in order.
        modules: these modules.
        solver: the pipeline's scheduler as an integrator, where there is one.
        owner: the acceleration that it is a part of.
        numbers: place in `sites` by name; modules whose output nobody reads go with the one that
            overwrites it.
        taps: told every computed value of a site.
        on_reset: called when the state of all requests is freed.
        inner: companions that stand between the policy and the denoiser: each is given the forward
            to call and its arguments, and runs while `evaluation` is the call in progress.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        policy: DiffusionPolicy,
        signature: Signature,
        timeline: Timeline | None = None,
        blocks: Sequence[Block] = (),
        measure: Measure = lambda *_: None,
    ) -> None:
        self.model, self.policy, self.signature = model, policy, signature
        self.timeline = timeline
        site, gate = policy.site, policy.gate
        self.needs_blocks = isinstance(site, BlockSite) or gate.probe != "none"
        self.known = not self.needs_blocks
        self.whole = not isinstance(site, BlockSite | ModuleSite)
        self.absolute = isinstance(site, BlockSite) and site.absolute
        self.probe = gate.probe_blocks
        self._arrange(list(blocks) if self.needs_blocks else [])
        self.branches = Branches()
        self.records: deque[Record] = deque(maxlen=RECORDS)
        self.templates: dict[str, Any] = {}
        self.sites: list[str] = []
        self.modules: tuple[Submodule, ...] = ()
        self.numbers: dict[str, int] = {}
        self.measure = measure
        self.solver: Solver | None = None
        self.owner: Any = None
        self._checked: set[Any] = set()
        self.taps: list[Tap] = []
        self.on_reset: list[Callable[[], None]] = []
        self.inner: list[Callable[..., Any]] = []
        self.request = threading.local()
        self._current = threading.local()
        self._last = threading.local()

    # -- calls -----------------------------------------------------------------------------------

    def evaluate(
        self, forward: Callable[..., Any], context: str | None, args: Any, kwargs: Any
    ) -> Any:
        """One call of the denoiser, under the policy."""
        call = Call.read(self.signature, args, kwargs)
        name = getattr(self.request, "name", "")
        branch = self.branches.find(call, context, name)
        timeline = self.timeline
        remaining = timeline.remaining(call.time, branch.clock) if timeline else None
        step = branch.begin(call, remaining)
        if branch.failed:
            return forward(*args, **kwargs)
        self.foresee(call)
        plain = forward
        for companion in self.inner:
            forward = functools.partial(companion, forward)
        evaluation = Evaluation(self, branch, call, step, forward)
        try:
            try:
                return evaluation.run()
            except Again:
                branch.histories, branch.ledger = {}, Ledger.of(call.rows)
                evaluation = Evaluation(self, branch, call, step, forward)
                return evaluation.run()
        except RecollectError:
            branch.fail()
            raise
        except Exception as error:
            branch.fail()
            if evaluation.blame.culprit == "model":
                raise
            warnings.warn(
                f"recollect: caching failed ({error}); this generation goes on uncached",
                RuntimeWarning,
                stacklevel=2,
            )
            return plain(*args, **kwargs)
        except BaseException:  # an interrupt leaves no state behind
            branch.fail()
            raise

    @property
    def evaluation(self) -> Evaluation | None:
        """The call in progress on this thread."""
        return getattr(self._current, "evaluation", None)

    @property
    def step(self) -> Step | None:
        """The step that the call in progress on this thread is at."""
        return None if self.evaluation is None else self.evaluation.step

    @contextmanager
    def using(self, evaluation: Evaluation) -> Iterator[None]:
        """Make an evaluation the current one of this thread."""
        before, self._current.evaluation = self.evaluation, evaluation
        try:
            yield
        finally:
            self._current.evaluation = before

    def learn(self, order: list[Block]) -> None:
        """Take note of the order in which the blocks have run."""
        if any(ran is not listed for ran, listed in itertools.zip_longest(order, self.order)):
            self._arrange(order)
        self.known = True

    def _arrange(self, order: list[Block]) -> None:
        """Set the order of blocks, and with it the spans."""
        self.order = order
        self.spans: tuple[Range, ...] = ()
        self._cuts: dict[tuple[Range, ...], tuple[Range, ...]] = {}
        site = self.policy.site
        if isinstance(site, BlockSite):
            spans = site.spans(len(order), self.probe)
            if not spans and not site.optional:
                raise RecipeError(
                    f"nothing is left to reuse: {type(self.model).__name__} has "
                    f"{len(order)} blocks, and {self.probe} of them judge"
                )
            self.spans = self.cut(spans)
        self.watched = {span[1] - 1 for span in self.spans} | {self.probe - 1}
        self.starting = {span[0]: [s for s in self.spans if s[0] == span[0]] for span in self.spans}

    def cut(self, spans: tuple[Range, ...]) -> tuple[Range, ...]:
        """Spans cut where a list of blocks ends: streams are reshaped between lists."""
        if spans in self._cuts:
            return self._cuts[spans]
        pieces: list[Range] = []
        for begin, end in spans:
            for place in range(begin, end):
                new = not pieces or pieces[-1][1] != place or place == begin
                if new or self.order[place].group != self.order[place - 1].group:
                    pieces.append((place, place + 1))
                else:
                    pieces[-1] = (pieces[-1][0], place + 1)
        self._cuts[spans] = tuple(pieces)
        return self._cuts[spans]

    # -- decisions shared between branches -------------------------------------------------------

    def lead(self, evaluation: Evaluation) -> None:
        """Note a decision, for the other branches of the same step."""
        self._last.evaluation = (evaluation.call, evaluation.branch, evaluation.compute)

    def leader(self, evaluation: Evaluation) -> torch.Tensor | None:
        """What the first branch of this step decided, where there was one."""
        if not self.policy.gate.measures:
            return None
        call, branch, compute = getattr(self._last, "evaluation", (None, None, None))
        if call is None or branch is evaluation.branch:
            return None
        return compute if self.together(call, evaluation.call) else None

    def together(self, call: Call, other: Call) -> bool:
        """Whether two calls are of branches of one step: the same latent at the same time."""
        return (
            call.rows == other.rows
            and _same_time(call.time, other.time)
            and same((call.latent,), (other.latent,))
        )

    # -- bookkeeping -----------------------------------------------------------------------------

    def record(self, record: Record) -> None:
        """Note a step for the report, and tell the solver of a reused one where it shall know."""
        if self.solver is not None and record.computed < 1 and self.policy.multistep == "inform":
            self.solver.lower()
        self.records.append(record)

    def foresee(self, call: Call) -> None:
        """Check the policy's limit before the first step of calls of this shape is computed.

        Raises RecipeError where the state of a branch would grow over it.
        """
        shape = (call.latent.shape, call.latent.dtype, *(c.shape for c in call.conditions))
        if self.policy.limit is None or shape in self._checked:
            return
        sizes = self.measure(self.model, self.policy, call.args, call.kwargs)
        if sizes is not None:
            self._refuse_over_limit(sum(sizes.values()))
            self._checked.add(shape)

    def check_limit(self, branch: Branch) -> None:
        """The same after a branch's first computed step, where shapes could not be foreseen."""
        if self.policy.limit is None or branch.checked:
            return
        self._refuse_over_limit(sum(nbytes(h.terms[0]) for h in branch.histories.values()))
        branch.checked = True

    def _refuse_over_limit(self, value: int) -> None:
        needed, limit = value * self.policy.predictor.tensors, self.policy.limit
        if limit is not None and needed > limit:
            raise RecipeError(
                f"the state would take {needed:,} bytes per branch, over the limit of "
                f"{limit:,}; use a smaller site (Velocity) or a lower order"
            )

    def reset(self) -> None:
        """Forget all requests and free their state."""
        self.branches.clear()
        self._last = threading.local()
        for free in self.on_reset:
            free()

    @property
    def nbytes(self) -> int:
        """Bytes of state held by all branches."""
        return sum(branch.nbytes for branch in self.branches)


def _same_time(one: Any, other: Any) -> bool:
    tensors = [isinstance(time, torch.Tensor) for time in (one, other)]
    if any(tensors):
        return all(tensors) and same((one,), (other,))
    return bool(one == other)
