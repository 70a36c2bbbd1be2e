"""Layers that read a cached feature directly, found by the model's structure."""

from __future__ import annotations

import torch

from recollect.diffusion.host.blocks import find_blocks
from recollect.diffusion.sites import Branch, Hidden, Site


def find_consumers(
    model: torch.nn.Module, site: Site, width: int, names: tuple[str, ...]
) -> tuple[str, ...]:
    """The layers among `names` whose first `width` input channels are the cached feature.

    In a U-Net these are the first convolution and the shortcut of the up-block that is handed the
    feature: it concatenates it before a skip connection, and its norm keeps the order of channels.
    Behind the last block of a transformer it is the output projection. Outputs of attention and
    feed-forward modules are gated and added to the stream, and feed no layer.
    """
    if isinstance(site, Branch):
        ups = model.up_blocks
        assert isinstance(ups, torch.nn.ModuleList)  # or the site would not have been attached
        first = len(ups) - site.depth - 1
        resnet = f"up_blocks.{first}.resnets.0"
        return tuple(
            name
            for name in (f"{resnet}.conv1", f"{resnet}.conv_shortcut")
            if name in names and getattr(model.get_submodule(name), "in_channels", 0) >= width
        )
    if isinstance(site, Hidden):
        blocks = tuple(f"{block.name}." for block in find_blocks(model))
        last = max(i for i, name in enumerate(names) if name.startswith(blocks))
        return tuple(
            name
            for name in names[last + 1 :]
            if getattr(model.get_submodule(name), "in_features", 0) == width
        )[-1:]
    return ()
