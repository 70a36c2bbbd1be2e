"""Put a policy on a denoiser or a pipeline, and take it off without a trace."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from recollect.diffusion.host.blocks import find_blocks
from recollect.diffusion.host.call import Signature
from recollect.diffusion.host.hooks import (
    BlockHook,
    DenoiserHook,
    Installed,
    NormHook,
    SubmoduleHook,
)
from recollect.diffusion.host.modules import find_deep_part, find_submodules
from recollect.diffusion.host.timeline import Timeline
from recollect.diffusion.policy import DiffusionPolicy, policy
from recollect.diffusion.report import DiffusionReport, report
from recollect.diffusion.session import Session
from recollect.diffusion.sites import BlockSite, Branch, Modules
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
        try:
            for name, model in denoisers(target).items():
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
            _ATTACHED.pop(session.model, None)

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
        signature = Signature.of(model, model.forward)
        site, gate = self.policy.site, self.policy.gate
        inside = isinstance(site, BlockSite | Modules) or gate.probe != "none"
        blocks = find_blocks(model) if inside else []
        if inside and not blocks:
            raise HostError(
                f"no blocks can be recognized in {type(model).__name__}; use a recipe of the whole "
                "model, e.g. taylorseer or easycache"
            )
        session = Session(model, self.policy, signature, timeline)
        installed = Installed()
        self._installed.append(installed)
        installed.add(model, DenoiserHook(session))
        if session.needs_blocks:
            for block in blocks:
                installed.add(block.module, BlockHook(session, block))
        if gate.probe == "modulated":
            installed.add(_first_norm(blocks[0].module), NormHook(session))
        if isinstance(site, Branch | Modules):
            submodules = (
                find_deep_part(model, site.depth)
                if isinstance(site, Branch)
                else find_submodules(blocks[gate.probe_blocks :], site)
            )
            if not submodules:
                raise HostError(
                    f"no attention or feed-forward modules can be recognized in "
                    f"{type(model).__name__}; use the site Hidden or Velocity"
                )
            session.sites = [sub.name for sub in submodules if not sub.mute]
            for sub in submodules:
                installed.add(sub.module, SubmoduleHook(session, sub.name, sub.mute))
        for companion in self.policy.companions:
            companion.install(model, session, installed)
        for part in self.policy.parts:
            part.check(model, tuple(session.sites))
        _ATTACHED[model] = self
        return session


_ATTACHED: weakref.WeakKeyDictionary[torch.nn.Module, Acceleration] = weakref.WeakKeyDictionary()


def accelerate(
    target: Any, spec: str | Composition | DiffusionPolicy = "taylorseer", **arguments: Any
) -> Acceleration:
    """Cache features of a diffusion model across its denoising steps.

    Args:
        target: a diffusers pipeline, or a denoiser (any transformer or U-Net of diffusers).
        spec: recipe name, ``"a + b(x=1)"``, or a `DiffusionPolicy`.
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
        if (found := _ATTACHED.get(model)) is not None:
            found.restore()


@contextmanager
def accelerated(
    target: Any, spec: str | Composition | DiffusionPolicy = "taylorseer", **arguments: Any
) -> Iterator[Acceleration]:
    """`accelerate` for the length of a block."""
    with accelerate(target, spec, **arguments) as acceleration:
        yield acceleration


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


def _first_norm(block: torch.nn.Module) -> torch.nn.Module:
    """The norm that modulates the first block's input."""
    for name, child in block.named_children():
        if "norm" in name.lower() or "Norm" in type(child).__name__:
            return child
    raise HostError(f"{type(block).__name__} has no norm to take the modulated input from")
