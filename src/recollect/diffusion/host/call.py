"""One call of a denoiser, read by the names of its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from recollect.diffusion.engine.values import Value
from recollect.errors import HostError

TIMES = ("timestep", "timesteps", "t", "time", "sigma", "sigmas", "noise_level")
CONDITIONS = (
    "encoder_hidden_states",
    "class_labels",
    "cap_feats",
    "pooled_projections",
    "encoder_hidden_states_t5",
    "encoder_hidden_states_llama3",
    "input_ids",
    "text_embeds",
    "cond",
)
# Arguments along whose first axis there are tokens or heads, never samples.
_NO_ROWS = ("ids", "rotary", "rope", "freqs", "pos_emb", "position", "image_meta", "shapes")


@dataclass(frozen=True)
class Signature:
    """Which parameters of a forward are the latent, the time and the conditions."""

    names: tuple[str, ...]
    latent: str
    time: str
    conditions: tuple[str, ...]

    @classmethod
    def of(cls, module: torch.nn.Module, forward: Callable[..., Any]) -> Signature:
        """Read a model's forward. Raises HostError when it takes no timestep."""
        parameters = [
            name
            for name, parameter in inspect.signature(forward).parameters.items()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        time = next((name for name in TIMES if name in parameters), None)
        if not parameters or time is None:
            raise HostError(
                f"{type(module).__name__}.forward takes none of {', '.join(TIMES)}: without a "
                "timestep there is no trajectory to cache along"
            )
        latent = next(name for name in parameters if name != time)
        return cls(tuple(parameters), latent, time, tuple(n for n in CONDITIONS if n in parameters))

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by name."""
        return {**dict(zip(self.names, args, strict=False)), **kwargs}


@dataclass(frozen=True)
class Call:
    """What a call of the denoiser brings.

    Attributes:
        args, kwargs: as given.
        latent: the noisy input (B, …); lists of equal images are stacked.
        listed: whether the model was given a list.
        time: the timestep as given.
        conditions: tensors that tell prompts (and branches of guidance) apart.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    latent: torch.Tensor
    listed: bool
    time: Any
    conditions: Value

    @classmethod
    def read(cls, signature: Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Raises HostError when the latent is nothing that can be compared between steps."""
        named = signature.bind(args, kwargs)
        latent, listed = named.get(signature.latent), False
        if isinstance(latent, list | tuple):
            listed = True
            if not latent or len({getattr(x, "shape", None) for x in latent}) != 1:
                raise HostError(
                    f"'{signature.latent}' is a list of images of different sizes; "
                    "call the model once per size"
                )
            latent = torch.stack(list(latent))
        if not isinstance(latent, torch.Tensor) or latent.ndim < 2:
            raise HostError(f"'{signature.latent}' is not a tensor of samples")
        time = named.get(signature.time)
        if time is None:
            raise HostError(f"the model was called without '{signature.time}'")
        conditions = tuple(_tensors(named.get(name) for name in signature.conditions))
        return cls(args, kwargs, latent, listed, time, conditions)

    @property
    def rows(self) -> int:
        """Samples of the batch, both halves of batched guidance counted."""
        return self.latent.shape[0]


def take_rows(
    names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: torch.Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments for the samples marked in `rows` (B,) bool.

    Tensors with one entry per sample are indexed; those of positions and rotary embeddings have
    none, whatever their length.
    """

    def pick(name: str, value: Any) -> Any:
        if any(part in name for part in _NO_ROWS):
            return value
        if isinstance(value, torch.Tensor):
            if value.ndim and value.shape[0] == len(rows):
                return value[rows.to(value.device)]
            return value
        if isinstance(value, Mapping):
            return {key: pick(str(key), item) for key, item in value.items()}
        return value

    picked = tuple(pick(names[i] if i < len(names) else "", a) for i, a in enumerate(args))
    return picked, {name: pick(name, value) for name, value in kwargs.items()}


def _tensors(values: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found
