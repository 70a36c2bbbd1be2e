"""Hooks on diffusers' official registry: one on the denoiser, others on its blocks or modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.hooks.hooks import BaseState, HookRegistry, StateManager

from recollect.diffusion.engine.evaluation import Evaluation
from recollect.diffusion.engine.session import Session
from recollect.diffusion.host.blocks import Block
from recollect.diffusion.host.hook import Hook
from recollect.errors import HostError

NAME = "recollect"


class _Nothing(BaseState):
    def reset(self, *args: Any, **kwargs: Any) -> None:
        pass


class _ContextName(StateManager):
    """Hears which branch a pipeline says it is calling; holds no state."""

    def __init__(self) -> None:
        super().__init__(_Nothing)

    @property
    def name(self) -> str | None:
        """Name of the branch, if the pipeline gives one."""
        return None if self._context is None else self._context.name


class DenoiserHook(Hook):
    """Runs every call of the denoiser under the session's policy."""

    _is_stateful = True

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session, self.context = session, _ContextName()

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        forward = self.fn_ref.original_forward
        return self.session.evaluate(forward, self.context.name, args, kwargs)

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        self.session.reset()
        return module


def session_of(model: torch.nn.Module) -> Session | None:
    """What is attached to a denoiser."""
    registry = getattr(model, "_diffusers_hook", None)
    hook = None if registry is None else registry.get_hook(NAME)
    return hook.session if isinstance(hook, DenoiserHook) else None


class BlockHook(Hook):
    """Lets the evaluation in progress run a block, or leave it out."""

    def __init__(self, session: Session, block: Block) -> None:
        super().__init__()
        self.session, self.block = session, block

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        forward, evaluation = self.fn_ref.original_forward, self.session.evaluation
        if evaluation is None:
            return forward(*args, **kwargs)
        return evaluation.block(self.block, forward, args, kwargs)


class SubmoduleHook(Hook):
    """Lets the evaluation in progress run an attention or feed-forward module, or leave it out."""

    def __init__(self, session: Session, name: str, mute: bool) -> None:
        super().__init__()
        self.session, self.name, self.mute = session, name, mute

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        forward, evaluation = self.fn_ref.original_forward, self.session.evaluation
        if evaluation is None:
            return forward(*args, **kwargs)
        return evaluation.module(self.name, self.mute, forward, args, kwargs)


class NormHook(Hook):
    """Shows the modulated input of the first block to the gate."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
        evaluation = self.session.evaluation
        if isinstance(evaluation, Evaluation) and evaluation.position == 1:
            seen = output[0] if isinstance(output, tuple | list) else output
            evaluation.probe(seen)
        return output


class Installed:
    """Hooks that can be taken off again, in reverse order; none stays when installing fails."""

    def __init__(self) -> None:
        self._hooks: list[tuple[torch.nn.Module, Hook, str]] = []
        self._undo: list[Callable[[], None]] = []

    def add(self, module: torch.nn.Module, hook: Hook, name: str = NAME) -> None:
        """Put a hook on a module; companions give theirs a name of their own."""
        registry = HookRegistry.check_if_exists_or_initialize(module)
        if registry.get_hook(name) is not None:
            raise HostError(
                f"{type(module).__name__} is accelerated already; call recollect.restore first"
            )
        registry.register_hook(hook, name)
        self._hooks.append((module, hook, name))

    def undo(self, change: Callable[[], None]) -> None:
        """Call this when everything is taken off, the latest first."""
        self._undo.append(change)

    def remove(self) -> None:
        """Take all hooks off; modules look as before."""
        while self._undo:
            self._undo.pop()()
        for module, hook, name in reversed(self._hooks):
            registry = HookRegistry.check_if_exists_or_initialize(module)
            if registry.get_hook(name) is hook:
                _take_off(registry, module, name)
        if self._hooks:
            root = self._hooks[0][0]
            HookRegistry.check_if_exists_or_initialize(root).invalidate_child_registries_cache()
        for module in dict.fromkeys(module for module, _, _ in reversed(self._hooks)):
            if not HookRegistry.check_if_exists_or_initialize(module).hooks:
                del module._diffusers_hook
        self._hooks = []


def _take_off(registry: HookRegistry, module: torch.nn.Module, name: str) -> None:
    """Remove our hook, keeping those above and below it.

    Hooks put on after ours come off first and go on again: taking one out from under another
    makes diffusers drop the upper one's forward.
    """
    names = list(registry.hooks)
    above = [(other, registry.hooks[other]) for other in names[names.index(name) + 1 :]]
    for other, _ in reversed(above):
        registry.remove_hook(other, recurse=False)
    registry.remove_hook(name, recurse=False)
    for other, hook in above:
        registry.register_hook(hook, other)
    # The last hook gone, diffusers leaves the class's own forward behind as an attribute.
    own = module.__dict__.get("forward")
    if not registry.hooks and getattr(own, "__func__", None) is type(module).forward:
        del module.__dict__["forward"]
