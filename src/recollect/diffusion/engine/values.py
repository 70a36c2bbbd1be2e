"""What a denoiser or a block returns, as plain tensors and the shape around them.

Models return tensors, tuples, lists and dataclasses of them; what is stored and predicted are the
tensors inside, in their order. Everything else (`None`, flags) is taken from the last full step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from recollect.errors import HostError

Value = tuple[torch.Tensor, ...]
"""The tensors of one output, in order."""


class Template(NamedTuple):
    """How to put tensors back into the shape of an output.

    Attributes:
        spec: `torch.Tensor` for a lone tensor, `tuple` for a plain tuple of tensors, which are what
            most modules return and need no tree; else a tree of PyTorch's.
        rest: leaves that are no tensors, None where a tensor belongs.
        places: where the tensors belong.
    """

    spec: Any
    rest: tuple[Any, ...]
    places: tuple[int, ...]

    def fill(self, value: Sequence[torch.Tensor]) -> Any:
        """The output with these tensors in it."""
        if self.spec is torch.Tensor:
            (tensor,) = value
            return tensor
        if self.spec is tuple and len(value) == len(self.places):
            return tuple(value)
        leaves = list(self.rest)
        for place, tensor in zip(self.places, value, strict=True):
            leaves[place] = tensor
        return pytree.tree_unflatten(leaves, self.spec)


def split(output: Any) -> tuple[Value, Template]:
    """The tensors of an output, and the rest of it."""
    if isinstance(output, torch.Tensor):
        return (output,), _LONE
    if type(output) is tuple and all(isinstance(leaf, torch.Tensor) for leaf in output):
        return output, Template(tuple, (), tuple(range(len(output))))
    leaves, spec = pytree.tree_flatten(output)
    places = tuple(i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor))
    value = tuple(leaves[i] for i in places)
    rest = tuple(None if i in places else leaf for i, leaf in enumerate(leaves))
    return value, Template(spec, rest, places)


_LONE = Template(torch.Tensor, (), (0,))


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


def spread(tensor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Results of the samples in `rows` (B,) at their places among all; the others are 0."""
    full = tensor.new_zeros(len(rows), *tensor.shape[1:])
    full[rows.to(tensor.device)] = tensor
    return full


def merge(old: torch.Tensor, some: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`old` with the samples in `rows` (B,) replaced by `some`."""
    merged = old.clone()
    merged[rows.to(old.device)] = some
    return merged


def beside(tensor: torch.Tensor, latent: torch.Tensor, sign: int, axis: int) -> torch.Tensor:
    """An output plus (1) or minus (-1) the latent, in the channels along `axis` that both have.

    Some models are given more channels than they return (an image to start from), others return
    more (a learned variance). Raises HostError where the output is not of the latent's shape.
    """
    shared = min(tensor.shape[axis], latent.shape[axis])
    rest = tensor.narrow(axis, shared, tensor.shape[axis] - shared)
    part, latent = tensor.narrow(axis, 0, shared), latent.narrow(axis, 0, shared)
    if part.shape != latent.shape:
        raise HostError(
            f"the output {tuple(tensor.shape)} does not continue the latent "
            f"{tuple(latent.shape)}; use the site Velocity"
        )
    moved = torch.add(part, latent, alpha=sign)
    return torch.cat([moved, rest], axis) if rest.shape[axis] else moved


def relative_change(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference over mean absolute `old`, for each row: (B,) float32.

    A published gate takes the mean over the whole batch, which makes a sample's result depend on
    its neighbours.
    """
    return mean_abs(new.float() - old.float()) / mean_abs(old).clamp_min(1e-12)


def mean_abs(value: torch.Tensor) -> torch.Tensor:
    """Mean absolute value of each row: (B,) float32."""
    axes = tuple(range(1, value.ndim))
    half = value.dtype in (torch.float16, torch.bfloat16)
    total = torch.linalg.vector_norm(value, 1, axes, dtype=torch.float32 if half else None)
    return total.float() / max(1, value[0].numel())
