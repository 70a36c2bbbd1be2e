"""What all our hooks have in common: they belong to the module they were put on."""

from __future__ import annotations

from typing import Any

from diffusers.hooks.hooks import ModelHook

from recollect.errors import HostError


class Uncopied:
    """Something that goes with no copy of the model it was put on.

    diffusers binds a hook's forward to one module: a copy of that module would go on computing
    with the weights of the original. So copying or pickling a model says what to do instead.
    """

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise HostError(
            "an accelerated model cannot be copied or pickled (its copy would run the original's "
            "weights); call recollect.restore first, and accelerate the copy by itself"
        )


class Hook(Uncopied, ModelHook):
    """A hook on one module, by diffusers' registry."""
