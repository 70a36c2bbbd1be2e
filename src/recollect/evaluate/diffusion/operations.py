"""Counts floating-point operations as they run.

torch's own counter also keeps book by module, which costs a tiny model more than its layers do,
and leaves out the attention kernel of CPUs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention
_FORMULAS: dict[Any, Any] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[_ATTENTION],
}


class Operations(TorchDispatchMode):
    """A block whose matrix products, convolutions and attention are counted.

    Attributes:
        total: floating-point operations so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is None and torch.is_inference_mode_enabled():
            with self:  # composed operations arrive whole there
                made = func.decompose(*args, **named)
            if made is not NotImplemented:
                return made
        out = func(*args, **named)
        if formula is not None:
            self.total += formula(*args, **named, out_val=out)
        return out
