"""Put a policy on a denoiser or a pipeline, and take it off without a trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from recollect.diffusion.artefacts import fingerprint
from recollect.diffusion.engine.footprint import foreseen
from recollect.diffusion.engine.installation import install
from recollect.diffusion.engine.report import DiffusionReport, report
from recollect.diffusion.engine.session import Session
from recollect.diffusion.engine.values import nbytes
from recollect.diffusion.host.hook import Uncopied
from recollect.diffusion.host.hooks import Installed, session_of
from recollect.diffusion.host.solver import Solver
from recollect.diffusion.host.timeline import Timeline
from recollect.diffusion.policy import DiffusionPolicy, policy
from recollect.errors import HostError
from recollect.recipe import Composition

_DENOISERS = ("transformer", "transformer_2", "transformer_3", "unet", "prior")


class Acceleration:
    """A policy at work on one pipeline or denoiser.

    Attributes:
        policy: what is reused, when and how.
        sessions: denoiser's name -> the state behind its hooks.
    """

    def __init__(self, target: Any, policy: DiffusionPolicy) -> None:
        self.policy = policy
        self.sessions: dict[str, Session] = {}
        self._installed: list[Installed] = []
        timeline = None if isinstance(target, torch.nn.Module) else Timeline(target)
        models = denoisers(target)
        if policy.model and policy.model not in map(fingerprint, models.values()):
            raise HostError(
                "this policy was tuned for another model (or its weights have changed); "
                "run recollect plan-diffusion on this one"
            )
        try:
            for name, model in models.items():
                self.sessions[name] = self._attach(model, timeline)
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Take the hooks off and free all state. Safe to call twice."""
        for installed in reversed(self._installed):
            installed.remove()
        self._installed = []
        for session in self.sessions.values():
            session.reset()

    def reset(self) -> None:
        """Forget all requests: the next call begins a trajectory."""
        for session in self.sessions.values():
            session.reset()

    @contextmanager
    def request(self, name: str) -> Iterator[None]:
        """Calls inside belong to the request of that name.

        Only needed where one thread interleaves requests with equal prompts; requests on other
        threads, or with other prompts, are told apart without it.
        """
        before = [getattr(s.request, "name", "") for s in self.sessions.values()]
        for session in self.sessions.values():
            session.request.name = name
        try:
            yield
        finally:
            for session, old in zip(self.sessions.values(), before, strict=True):
                session.request.name = old

    def report(self) -> DiffusionReport:
        """What was computed and reused so far."""
        return report(self.sessions)

    @property
    def nbytes(self) -> int:
        """Bytes of state held now."""
        return sum(session.nbytes for session in self.sessions.values())

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def _attach(self, model: torch.nn.Module, timeline: Timeline | None) -> Session:
        if getattr(model, "is_cache_enabled", False):
            raise HostError(
                f"{type(model).__name__} has a cache of diffusers enabled; call disable_cache first"
            )
        installed = Installed()
        self._installed.append(installed)
        session = install(model, self.policy, installed, timeline)
        session.measure = foreseen
        session.solver = None if timeline is None else Solver(timeline.pipe)
        for companion in self.policy.companions:
            if not companion.inner:
                companion.install(model, session, installed)
        for part in self.policy.parts:
            part.check(model, tuple(session.sites))
        _Loading(session).listen(installed)
        session.owner = self
        return session


class _Loading(Uncopied):
    """Hears when the weights of an accelerated denoiser are loaded anew."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def listen(self, installed: Installed) -> None:
        """Until the hooks are taken off."""
        model = self.session.model
        installed.undo(model.register_load_state_dict_pre_hook(self.before).remove)
        installed.undo(model.register_load_state_dict_post_hook(self.after).remove)

    def before(self, model: torch.nn.Module, *_: Any) -> None:
        """Refuse where there is nothing to load into."""
        if any(weight.numel() == 0 for weight in model.parameters()):
            raise HostError(
                f"weights of this {type(model).__name__} are put aside or held as integers; "
                "call recollect.restore first, load, and accelerate it again"
            )

    def after(self, model: torch.nn.Module, *_: Any) -> None:
        """Forget what other weights gave, and refuse what was learned for them."""
        self.session.reset()
        for part in self.session.policy.parts:
            part.check(model, tuple(self.session.sites))


def accelerate(
    target: Any, spec: str | Path | Composition | DiffusionPolicy = "taylorseer", **arguments: Any
) -> Acceleration:
    """Cache features of a diffusion model across its denoising steps.

    Args:
        target: a diffusers pipeline, or a denoiser (any transformer or U-Net of diffusers).
        spec: recipe name, ``"a + b(x=1)"``, a plan's file, or a `DiffusionPolicy`.
        arguments: any parameter of the recipe; `batch` (`any`, `all` or `split`) and `limit`
            (bytes of state per branch).

    Returns:
        The acceleration: `report()`, `restore()`; a context manager that restores at its end.

    Raises:
        RecipeError: unknown recipe or argument.
        HostError: the model cannot be accelerated like that; the message says what is missing.
    """
    return Acceleration(target, policy(spec, **arguments))


def restore(target: Any) -> None:
    """Take off whatever `accelerate` put on this pipeline or denoiser."""
    for model in denoisers(target).values():
        if (session := session_of(model)) is not None:
            session.owner.restore()


@contextmanager
def accelerated(
    target: Any, spec: str | Path | Composition | DiffusionPolicy = "taylorseer", **arguments: Any
) -> Iterator[Acceleration]:
    """`accelerate` for the length of a block."""
    with accelerate(target, spec, **arguments) as acceleration:
        yield acceleration


def state_bytes(
    target: Any,
    spec: str | Path | Composition | DiffusionPolicy,
    inputs: Mapping[str, Any],
    **arguments: Any,
) -> int:
    """Bytes of state that one branch of one request will hold under a policy.

    Nothing is computed: a copy of the model without weights is run on shapes. Where a model's
    shapes depend on its data, it is run once instead.

    Args:
        target: a denoiser, or a pipeline with one.
        spec, arguments: as for `accelerate`.
        inputs: arguments of the denoiser's call by name; a tuple of numbers stands for a tensor of
            that shape, in the model's dtype.

    Raises:
        RecipeError: unknown recipe or argument.
        HostError: the model cannot be accelerated like that, or is accelerated already.
    """
    model, *others = denoisers(target).values()
    if others:
        raise HostError(f"{type(target).__name__} has several denoisers; pass one of them")
    chosen = policy(spec, **arguments)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    given = {
        name: torch.zeros(value, dtype=dtype) if _is_shape(value) else value
        for name, value in inputs.items()
    }
    sizes = foreseen(model, chosen, (), given)
    if sizes is None:
        with torch.no_grad(), Acceleration(model, replace(chosen, limit=None)) as acceleration:
            model(**given)
            (session,) = acceleration.sessions.values()
            (branch,) = session.branches
            sizes = {site: nbytes(one.terms[0]) for site, one in branch.histories.items()}
    return sum(sizes.values()) * chosen.predictor.tensors


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(n, int) for n in value)


def denoisers(target: Any) -> dict[str, torch.nn.Module]:
    """The denoisers of a pipeline by name. Raises HostError where there are none."""
    if isinstance(target, torch.nn.Module):
        return {type(target).__name__: target}
    found = {name: getattr(target, name, None) for name in _DENOISERS}
    models = {name: m for name, m in found.items() if isinstance(m, torch.nn.Module)}
    if not models:
        raise HostError(
            f"{type(target).__name__} has no denoiser ({', '.join(_DENOISERS)}); pass the model"
        )
    return models
