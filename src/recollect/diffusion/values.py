"""What a denoiser or a block returns, as plain tensors and the shape around them.

Models return tensors, tuples, lists and dataclasses of them; what is stored and predicted are the
tensors inside, in their order. Everything else (`None`, flags) is taken from the last full step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

Value = tuple[torch.Tensor, ...]
"""The tensors of one output, in order."""


class Template(NamedTuple):
    """How to put tensors back into the shape of an output."""

    spec: Any
    rest: tuple[Any, ...]  # leaves that are no tensors, None where a tensor belongs
    places: tuple[int, ...]  # where the tensors belong

    def fill(self, value: Sequence[torch.Tensor]) -> Any:
        """The output with these tensors in it."""
        leaves = list(self.rest)
        for place, tensor in zip(self.places, value, strict=True):
            leaves[place] = tensor
        return pytree.tree_unflatten(leaves, self.spec)


def split(output: Any) -> tuple[Value, Template]:
    """The tensors of an output, and the rest of it."""
    leaves, spec = pytree.tree_flatten(output)
    places = tuple(i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor))
    value = tuple(leaves[i] for i in places)
    rest = tuple(None if i in places else leaf for i, leaf in enumerate(leaves))
    return value, Template(spec, rest, places)


def nbytes(value: Sequence[torch.Tensor]) -> int:
    """Bytes of the tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in value)


def per_row(vector: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A number per row (B,), shaped to multiply `like`: (B, 1, …), or () where rows are no axis.

    Models that take a list of images return a list; a tensor without a batch axis follows the
    largest entry.
    """
    vector = vector.to(like.device)
    if like.ndim and like.shape[0] == len(vector):
        return vector.view(-1, *[1] * (like.ndim - 1))
    return vector.max()


def where_rows(rows: torch.Tensor, new: Value, old: Value) -> Value:
    """`new` in the rows marked in `rows` (B,), `old` in the others."""
    if bool(rows.all()):
        return new
    return tuple(
        torch.where(per_row(rows.float(), n) > 0, n, o) for n, o in zip(new, old, strict=True)
    )


def relative_change(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference over mean absolute `old`, for each row: (B,) float32.

    A published gate takes the mean over the whole batch, which makes a sample's result depend on
    its neighbours.
    """
    axes = tuple(range(1, new.ndim))
    difference = (new.float() - old.float()).abs().mean(axes)
    return difference / old.float().abs().mean(axes).clamp_min(1e-12)


def mean_abs(value: torch.Tensor) -> torch.Tensor:
    """Mean absolute value of each row: (B,) float32."""
    return value.float().abs().mean(tuple(range(1, value.ndim)))
