"""Which hooks a policy needs on a denoiser, found by the model's structure."""

from __future__ import annotations

import torch

from recollect.diffusion.engine.session import Session
from recollect.diffusion.host.blocks import find_blocks
from recollect.diffusion.host.call import Signature
from recollect.diffusion.host.hooks import (
    BlockHook,
    DenoiserHook,
    Installed,
    NormHook,
    SubmoduleHook,
)
from recollect.diffusion.host.modules import find_deep_part, find_submodules, numbers
from recollect.diffusion.host.timeline import Timeline
from recollect.diffusion.policy import DiffusionPolicy
from recollect.diffusion.sites import BlockSite, Branch, Modules
from recollect.errors import HostError


def install(
    model: torch.nn.Module,
    policy: DiffusionPolicy,
    installed: Installed,
    timeline: Timeline | None = None,
) -> Session:
    """Put the hooks of site and gate on a denoiser, around those of inner companions.

    Raises HostError where the model has not what they need.
    """
    site, gate = policy.site, policy.gate
    inside = isinstance(site, BlockSite | Modules) or gate.probe != "none"
    blocks = find_blocks(model) if inside else []
    if inside and not blocks:
        raise HostError(
            f"no blocks can be recognized in {type(model).__name__}; use a recipe of the whole "
            "model, e.g. taylorseer or easycache"
        )
    signature = Signature.of(model, model.forward)
    session = Session(model, policy, signature, timeline, blocks)
    for companion in policy.companions:
        if companion.inner:
            companion.install(model, session, installed)
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
            else find_submodules(blocks, site, gate.probe_blocks)
        )
        if not submodules:
            raise HostError(
                f"no attention or feed-forward modules can be recognized in "
                f"{type(model).__name__}; use the site Hidden or Velocity"
            )
        session.sites = [sub.name for sub in submodules if not sub.mute]
        session.modules = tuple(sub for sub in submodules if not sub.mute)
        session.numbers = numbers(submodules)
        for sub in submodules:
            installed.add(sub.module, SubmoduleHook(session, sub.name, sub.mute))
    return session


def _first_norm(block: torch.nn.Module) -> torch.nn.Module:
    """The norm that modulates the first block's input."""
    for name, child in block.named_children():
        if "norm" in name.lower() or "Norm" in type(child).__name__:
            return child
    raise HostError(f"{type(block).__name__} has no norm to take the modulated input from")
