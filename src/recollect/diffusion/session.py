"""What is attached to one denoiser: its policy, its structure and the state of its branches."""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from recollect.diffusion.branches import Branch, Branches, Record, same
from recollect.diffusion.clock import Step
from recollect.diffusion.evaluation import Evaluation
from recollect.diffusion.host.blocks import Block, recognize
from recollect.diffusion.host.call import Call, Signature
from recollect.diffusion.host.timeline import Timeline
from recollect.diffusion.policy import DiffusionPolicy
from recollect.diffusion.sites import BlockSite, Range
from recollect.diffusion.values import Value
from recollect.errors import RecipeError, RecollectError

Tap = Callable[[Branch, Step, str, Value], None]
"""Hears (branch, step, site, value) whenever a value is computed."""

RECORDS = 10_000
"""Steps remembered for reports; older ones are dropped."""


class Session:
    """The state behind the hooks of one denoiser.

    Attributes:
        model: the denoiser.
        policy: what is reused, when and how.
        signature: how its calls are read.
        order: its blocks in the order in which they run; empty until seen, and where no site or
            gate needs them.
        spans: runs of blocks that are observed, cut where one list of blocks ends.
        probe: first blocks that run on every step.
        sites: names of the modules that are left out on a skipped step, in order.
        taps: told every computed value of a site.
        on_reset: called when the state of all requests is freed.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        policy: DiffusionPolicy,
        signature: Signature,
        timeline: Timeline | None = None,
    ) -> None:
        self.model, self.policy, self.signature = model, policy, signature
        self.timeline = timeline
        self.order: list[Block] = []
        self.spans: tuple[Range, ...] = ()
        self.probe = policy.gate.probe_blocks
        self.branches = Branches()
        self.records: deque[Record] = deque(maxlen=RECORDS)
        self.templates: dict[str, Any] = {}
        self.shapes: dict[str, Any] = {}
        self.sites: list[str] = []
        self.taps: list[Tap] = []
        self.on_reset: list[Callable[[], None]] = []
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
        if self.needs_blocks and not self.order:
            self._survey(forward, args, kwargs)
        evaluation = Evaluation(self, branch, call, step, forward)
        try:
            return evaluation.run()
        except RecollectError:
            branch.fail()
            raise
        except Exception as error:
            branch.fail()
            if evaluation.culprit == "model":
                raise
            warnings.warn(
                f"recollect: caching failed ({error}); this generation goes on uncached",
                RuntimeWarning,
                stacklevel=2,
            )
            return forward(*args, **kwargs)
        except BaseException:  # an interrupt leaves no state behind
            branch.fail()
            raise

    @property
    def needs_blocks(self) -> bool:
        """Whether the site or the gate looks into the blocks."""
        return isinstance(self.policy.site, BlockSite) or self.policy.gate.probe != "none"

    @property
    def evaluation(self) -> Evaluation | _Survey | None:
        """The call in progress on this thread."""
        return getattr(self._current, "evaluation", None)

    @property
    def step(self) -> Step | None:
        """The step that the call in progress on this thread is at."""
        evaluation = self.evaluation
        return evaluation.step if isinstance(evaluation, Evaluation) else None

    @contextmanager
    def using(self, evaluation: Evaluation | _Survey) -> Iterator[None]:
        """Make an evaluation the current one of this thread."""
        before, self._current.evaluation = self.evaluation, evaluation
        try:
            yield
        finally:
            self._current.evaluation = before

    def _survey(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Run the model once, plainly, to learn the order of its blocks and their streams."""
        survey = _Survey()
        with self.using(survey):
            forward(*args, **kwargs)
        self.order = survey.finish()
        site = self.policy.site
        if isinstance(site, BlockSite):
            spans = site.spans(len(self.order), self.probe)
            if not spans:
                raise RecipeError(
                    f"nothing is left to reuse: {type(self.model).__name__} has "
                    f"{len(self.order)} blocks, and {self.probe} of them judge"
                )
            self.spans = self.cut(spans)

    def cut(self, spans: tuple[Range, ...]) -> tuple[Range, ...]:
        """Spans cut where a list of blocks ends: streams are reshaped between lists."""
        pieces: list[Range] = []
        for begin, end in spans:
            for place in range(begin, end):
                new = not pieces or pieces[-1][1] != place or place == begin
                if new or self.order[place].group != self.order[place - 1].group:
                    pieces.append((place, place + 1))
                else:
                    pieces[-1] = (pieces[-1][0], place + 1)
        return tuple(pieces)

    # -- decisions shared between branches -------------------------------------------------------

    def lead(self, evaluation: Evaluation) -> None:
        """Note a decision, for the other branches of the same step."""
        self._last.evaluation = (evaluation.call, evaluation.branch, evaluation.compute)

    def leader(self, evaluation: Evaluation) -> torch.Tensor | None:
        """What the first branch of this step decided, where there was one."""
        if not self.policy.gate.measures:
            return None
        call, branch, compute = getattr(self._last, "evaluation", (None, None, None))
        if call is None or branch is evaluation.branch or call.rows != evaluation.call.rows:
            return None
        together = _same_time(call.time, evaluation.call.time) and same(
            (call.latent,), (evaluation.call.latent,)
        )
        return compute if together else None

    # -- bookkeeping -----------------------------------------------------------------------------

    def record(self, record: Record) -> None:
        """Note a step for the report."""
        self.records.append(record)

    def site_number(self, name: str) -> int:
        """Number of a module among those left out."""
        return self.sites.index(name)

    def check_limit(self, branch: Branch) -> None:
        """Raises RecipeError when the state would grow over the policy's limit."""
        if self.policy.limit is None:
            return
        whole = sum(
            sum(t.numel() * t.element_size() for t in history.terms[0])
            for history in branch.histories.values()
        )
        needed = whole * self.policy.predictor.tensors
        if needed > self.policy.limit:
            raise RecipeError(
                f"the state would take {needed:,} bytes per branch, over the limit of "
                f"{self.policy.limit:,}; use a smaller site (Velocity) or a lower order"
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


class _Survey:
    """A plain evaluation that watches the blocks."""

    def __init__(self) -> None:
        self.order: list[Block] = []
        self._waiting: tuple[Block, dict[str, Any], Any] | None = None
        self._known: dict[type, dict[int, str]] = {}

    def block(self, block: Block, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a block; tell the streams of the one before from this one's arguments."""
        named = block.bind(args, kwargs)
        self._recognize(block, named)
        output = forward(*args, **kwargs)
        self.order.append(block)
        self._waiting = (block, named, output)
        return output

    def module(
        self, name: str, mute: bool, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """Run a module plainly."""
        return forward(*args, **kwargs)

    def norm(self, output: Any) -> None:
        """Nothing is judged while surveying."""

    def finish(self) -> list[Block]:
        """The blocks in the order in which they ran."""
        self._recognize(None, {})
        return self.order

    def _recognize(self, block: Block | None, named: dict[str, Any]) -> None:
        if self._waiting is not None:
            before, given, output = self._waiting
            same = block is not None and block.group == before.group
            kind = type(before.module)
            recognize(before, given, output, named if same else None, self._known.get(kind))
            self._known[kind] = before.streams
            self._waiting = None
