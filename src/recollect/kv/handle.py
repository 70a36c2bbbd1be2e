"""What `Cache.update()` returns instead of tensors: a ticket that only our attention can redeem."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch

from recollect.errors import HostError

if TYPE_CHECKING:
    from recollect.kv.layer import KVLayer


class KVHandle:
    """Stands for the keys (or values) of one layer between `update` and the attention function.

    The model must pass it on untouched. A model that computes with it, because it transforms
    cached keys before attending, gets a `HostError` that says so.
    """

    __slots__ = ("device", "dtype", "layer", "shape")

    def __init__(self, layer: KVLayer, new: torch.Tensor) -> None:
        self.layer = layer
        batch, heads, _, width = new.shape
        self.shape = torch.Size((batch, heads, layer.get_seq_length(), width))
        self.dtype = new.dtype
        self.device = new.device

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> NoReturn:
        raise HostError(
            f"the model computes with cached keys before attention "
            f"({getattr(func, '__name__', func)}); such models (MLA) keep the host's cache"
        )

    def __getattr__(self, name: str) -> NoReturn:
        raise HostError(
            f"the model touches cached keys before attention (.{name}); "
            "such models (the MLA family) keep the host's cache"
        )

    def __getitem__(self, item: Any) -> NoReturn:
        self.__getattr__("__getitem__")

    def dim(self) -> int:
        """Number of dimensions, as a tensor would say."""
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        """Shape or one of its entries, as a tensor would say."""
        return self.shape if dim is None else self.shape[dim]
