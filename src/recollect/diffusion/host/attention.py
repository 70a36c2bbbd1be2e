"""Attention of a denoiser as it happens: the queries, keys and values of every call.

Processors of diffusers end in torch's `scaled_dot_product_attention`, whatever they do before it
(projections, norms, rotary embeddings). A `TorchFunctionMode`, torch's own means to hear function
calls, is in force while an attention module runs: no processor is exchanged and none is rewritten.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from recollect.diffusion.host.blocks import find_blocks
from recollect.diffusion.host.hook import Hook
from recollect.diffusion.host.modules import is_attention

_ATTEND = torch.nn.functional.scaled_dot_product_attention
_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


@dataclass(frozen=True)
class Attending:
    """One call of scaled dot-product attention.

    Attributes:
        query, key, value: (B, H, Q, D), (B, H, K, D), (B, H, K, D), as they are used.
        mask: what is added to the scores, or where they count; None for nothing.
        causal: whether a query sees only the keys before it.
        scale: of the scores.
        visual: which queries are image or video tokens.
        visual_keys: which keys are; None where there are none.
        text_keys: which keys are text; None where there are none.
        unclear: image and text are joined and cannot be told apart, being equally many tokens.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    causal: bool
    scale: float
    visual: slice
    visual_keys: slice | None
    text_keys: slice | None
    unclear: bool = False

    def probabilities(self, rows: torch.Tensor) -> Iterator[torch.Tensor]:
        """Probabilities (B, R, K) float32 of the queries `rows` (R,), head by head.

        One head at a time: of a long video, all heads together would not fit.
        """
        group = self.query.shape[1] // self.key.shape[1]
        allowed = self._allowed(rows)
        for head in range(self.query.shape[1]):
            query, key = self.query[:, head, rows].float(), self.key[:, head // group].float()
            scores = query @ key.transpose(1, 2) * self.scale
            if allowed is not None:
                bias = allowed[:, head if allowed.shape[1] > 1 else 0]
                scores = (
                    scores.masked_fill(~bias, -torch.inf)
                    if bias.dtype is torch.bool
                    else (scores + bias.float())
                )
            yield scores.softmax(-1)

    def mean(self, rows: torch.Tensor) -> torch.Tensor:
        """Probabilities of the queries `rows`, averaged over heads: (B, R, K) float32."""
        total = torch.zeros((), device=self.query.device)
        for each in self.probabilities(rows):
            total = total + each
        return total / self.query.shape[1]

    def _allowed(self, rows: torch.Tensor) -> torch.Tensor | None:
        """The mask (1 or B, 1 or H, R or 1, K) of some queries."""
        if self.causal:
            keys = torch.arange(self.key.shape[2], device=rows.device)
            return (keys <= rows[:, None])[None, None]
        if self.mask is None:
            return None
        mask = self.mask[(None,) * (4 - self.mask.ndim)]
        return mask if mask.shape[2] == 1 else mask[:, :, rows]


Listener = Callable[[str, Attending], torch.Tensor | None]
"""Hears an attention call and the name of its module; what it returns replaces the output."""


@dataclass
class Layout:
    """How tokens of image and text were last joined in a model: later blocks keep it."""

    image: int = 0
    text: int = 0
    text_first: bool = False


class AttentionHook(Hook):
    """Lets a listener hear the calls of one attention module."""

    def __init__(
        self, name: str, module: torch.nn.Module, listen: Listener, layout: Layout | None = None
    ) -> None:
        super().__init__()
        self.name, self.listen = name, listen
        self._layout = layout or Layout()
        self._names = tuple(inspect.signature(type(module).forward).parameters)[1:]

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        named = {**dict(zip(self._names, args, strict=False)), **kwargs}
        hidden, other = named.get("hidden_states"), named.get("encoder_hidden_states")
        with _Hearing(self, _length(hidden), _length(other), self._layout):
            return self.fn_ref.original_forward(*args, **kwargs)


def attentions(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The innermost attention modules by their dotted names: of the blocks, where there are any."""
    homes = tuple(f"{block.name}." for block in find_blocks(model))
    found = {
        name: module
        for name, module in model.named_modules()
        if is_attention(name, module) and (not homes or name.startswith(homes))
    }
    return {
        name: module
        for name, module in found.items()
        if not any(other.startswith(f"{name}.") for other in found)
    }


class _Hearing(TorchFunctionMode):
    """Hears attention, and in which order tokens of image and text were joined before it."""

    def __init__(self, hook: AttentionHook, image: int, text: int, layout: Layout) -> None:
        super().__init__()
        self.hook, self.image, self.text, self.layout = hook, image, text, layout
        self.calls = 0
        self._joint = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.cat and args and len(args[0]) == 2:
            self._joined(*(tensor.shape for tensor in args[0]))
        if func is not _ATTEND:
            return func(*args, **kwargs)
        self.calls += 1
        name = self.hook.name if self.calls == 1 else f"{self.hook.name} call {self.calls}"
        changed = self.hook.listen(name, self._read(args, kwargs))
        return func(*args, **kwargs) if changed is None else changed

    def _joined(self, one: torch.Size, other: torch.Size) -> None:
        if not self.text or self.image == self.text:
            return  # of equal lengths it cannot be told which is which
        pairs = list(zip(one, other, strict=False))
        for text_first, pair in ((False, (self.image, self.text)), (True, (self.text, self.image))):
            if pair in pairs:
                self._joint = True
                self.layout.image, self.layout.text = self.image, self.text
                self.layout.text_first = text_first

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attending:
        given = {**dict(zip(_NAMES, args, strict=False)), **kwargs}
        query, key = given["query"], given["key"]
        scale = given.get("scale") or query.shape[-1] ** -0.5
        visual, visual_keys, text_keys = self._tokens(query.shape[2], key.shape[2])
        return Attending(
            query,
            key,
            given["value"],
            given.get("attn_mask"),
            bool(given.get("is_causal")),
            scale,
            visual,
            visual_keys,
            text_keys,
            unclear=bool(self.text) and not self._joint and key.shape[2] == self.image + self.text,
        )

    def _tokens(self, queries: int, keys: int) -> tuple[slice, slice | None, slice | None]:
        """Visual queries, visual keys and text keys."""
        layout = self.layout
        joint = layout.text and layout.image + layout.text == keys
        if joint and (self._joint or (not self.text and self.image == queries == keys)):
            begin = layout.text if layout.text_first else 0
            image = slice(begin, begin + layout.image)
            text = slice(0, begin) if layout.text_first else slice(layout.image, keys)
            return image if queries == keys else slice(0, queries), image, text
        if not self.text:
            return slice(0, queries), slice(0, keys), None
        # Where the condition is attended to in two parts (image, then text), text comes last.
        told = keys == self.text or (keys < self.text and self.calls > 1)
        return slice(0, queries), None, slice(0, keys) if told else None


def _length(tokens: Any) -> int:
    """Tokens of (B, S, C), positions of (B, C, H, W); 0 where there are none."""
    if not isinstance(tokens, torch.Tensor):
        return 0
    return tokens.shape[1] if tokens.ndim == 3 else tokens.shape[2:].numel()
