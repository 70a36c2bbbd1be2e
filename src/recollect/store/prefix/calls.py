"""Reading a call of the model: is it the prefill of a prompt, and of which tokens?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from recollect.errors import HostError

KNOWN = {
    "input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache",
    "logits_to_keep", "return_dict",
}  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """Left-padded prompts of one batch.

    Attributes:
        ids: (B, T) int64 on the CPU.
        padding: columns in front of each row's first token.
    """

    ids: torch.Tensor
    padding: tuple[int, ...]

    @property
    def width(self) -> int:
        """T: columns, padding included."""
        return self.ids.shape[1]

    @property
    def tokens(self) -> int:
        """Real tokens of all rows."""
        return self.ids.numel() - sum(self.padding)

    def row(self, index: int) -> list[int]:
        """The tokens of a row."""
        return self.ids[index, self.padding[index] :].tolist()

    def chunks(self, size: int, columns: int | None = None) -> int:
        """Full chunks of `size` tokens within the first columns, over all rows."""
        columns = self.width if columns is None else columns
        return sum(max(columns - padding, 0) // size for padding in self.padding)


def read_call(
    model: PreTrainedModel, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Prompt | str | None:
    """The prompt of a prefill with an empty cache; None for other calls (decoding, scoring), or in
    words why a prefill cannot be helped.

    Only calls that ask for the last logits alone, as `generate` does, are prefills: whoever wants
    the logits of every token needs every token computed.

    Raises:
        HostError: the prompt is longer than the model's context.
    """
    cache, ids = kwargs.get("past_key_values"), kwargs.get("input_ids")
    if args or not isinstance(cache, Cache) or cache.get_seq_length() > 0:
        return None
    if not isinstance(ids, torch.Tensor) or ids.dim() != 2 or kwargs.get("logits_to_keep") != 1:
        return None
    more = [k for k, value in kwargs.items() if k not in KNOWN and not _is_off(value)]
    if more:
        return f"inputs besides tokens: {', '.join(sorted(more))}"
    padding = _left_padding(kwargs.get("attention_mask"), ids)
    if padding is None:
        return "padding that is not on the left"
    if not _positions_are_usual(kwargs.get("position_ids"), padding, ids):
        return "positions of the caller's own"
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = ids.shape[1] - int(padding.min())
    if limit is not None and longest > limit:
        raise HostError(
            f"the prompt has {longest} tokens and the model a context of {limit}; "
            f"shorten it by {longest - limit}"
        )
    return Prompt(ids.cpu(), tuple(padding.tolist()))


def without_prefix(kwargs: Mapping[str, Any], columns: int) -> dict[str, Any]:
    """The call without its first columns, which a cache now holds."""
    shorter = dict(kwargs)
    for name in ("input_ids", "position_ids"):
        if isinstance(shorter.get(name), torch.Tensor):
            shorter[name] = shorter[name][..., columns:]
    return shorter


def _is_off(value: Any) -> bool:
    """Whether an argument asks for nothing (output_attentions=False …)."""
    return value is None or value is False


def _left_padding(mask: Any, ids: torch.Tensor) -> torch.Tensor | None:
    """(B,) padded columns, or None for a mask of another kind."""
    batch, width = ids.shape
    if mask is None:
        return torch.zeros(batch, dtype=torch.int64)
    if not isinstance(mask, torch.Tensor) or mask.shape != ids.shape:
        return None
    visible = mask.bool().cpu()
    padding = (~visible).sum(-1)
    if not torch.equal(visible, torch.arange(width) >= padding[:, None]):
        return None
    return padding if int(padding.max()) < width else None


def _positions_are_usual(positions: Any, padding: torch.Tensor, ids: torch.Tensor) -> bool:
    """Whether every row's first token stands at position 0."""
    if positions is None:
        return not bool(padding.any())
    if not isinstance(positions, torch.Tensor) or positions.dim() != 2:
        return False
    expected = torch.arange(ids.shape[1]) - padding[:, None]
    found = positions.cpu().expand(ids.shape)
    return bool(((found == expected) | (expected < 0)).all())
