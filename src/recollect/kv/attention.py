"""Attention over what a layer holds: our kernels where they are faster, else the host's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from recollect.core import kernels
from recollect.errors import HostError
from recollect.kv.host import CHANGES_LOGITS, HostAttention

if TYPE_CHECKING:
    from recollect.kv.layer import KVLayer

Output = tuple[torch.Tensor, Any]

# Elements of a dense float32 cache below which a call of ours costs more than it saves.
SHORT = 1 << 22


def attend(
    layer: KVLayer,
    module: torch.nn.Module,
    query: torch.Tensor,
    mask: Any,
    host: HostAttention,
    options: dict[str, Any],
) -> Output:
    """Attention of query (B, H, Q, D), whose tokens are the newest ones held, over all tokens.

    While nothing was dropped or encoded, storage and sequence agree: the host's mask and kernel
    apply as they are. Afterwards the mask is ours: everything held is visible, causally.
    """
    assert layer.slab is not None
    plain = not layer.dropped and layer.packed is None
    special = [name for name in CHANGES_LOGITS if options.get(name) is not None]
    ours = not special and _ours(layer, query)
    if plain:
        if ours and _sees_everything(mask, query) and layer.padding is None:
            return _by_kernel(layer, query, options)
        return host(module, query, *layer.slab.dense(), mask, **options)

    _check_mask(layer, mask, query)
    if layer.packed is not None:
        if special:
            raise HostError(
                f"{type(module).__name__} changes attention logits ({', '.join(special)}); "
                "encoded caches compute plain softmax attention only"
            )
        return _by_kernel(layer, query, options)
    if ours or (not special and layer.slab.length is None and query.shape[2] > 1):
        return _by_kernel(layer, query, options)
    return _by_host(layer, module, query, host, options)


def left_padding(mask: Any, total: int, *, strict: bool) -> torch.Tensor | None:
    """Number of left-padded tokens (B,) that the mask of a first forward pass tells, or None.

    Raises:
        HostError: with `strict`, for padding on the right and for masks with holes.
    """
    if not isinstance(mask, torch.Tensor) or mask.shape[-1] != total:
        return None
    if mask.dim() == 2:
        visible = mask.bool()
    else:
        last = mask[:, 0, -1]
        visible = last if last.dtype == torch.bool else last == 0
    if bool(visible.all()):
        return None
    padding = (~visible).sum(-1)
    expected = torch.arange(total, device=visible.device) >= padding[:, None]
    if strict and not torch.equal(visible, expected):
        raise HostError(
            "the batch is padded on the right, or its attention mask has holes; "
            "pad on the left (tokenizer.padding_side = 'left')"
        )
    return padding


def _ours(layer: KVLayer, query: torch.Tensor) -> bool:
    """Whether to use a kernel of ours: told to, or left to choose and ours beats the host's."""
    slab = layer.slab
    assert slab is not None
    if layer.plan.kernel != "auto":
        return layer.plan.kernel == "ours"
    elements = slab.longest * slab.heads * slab.batch * (slab.k.shape[-1] + slab.v.shape[-1])
    if slab.length is not None and query.dtype == torch.float32 and elements < SHORT:
        return False
    rows = query.shape[2] * query.shape[1] // slab.heads
    return kernels.is_fast(query.device, query.dtype, rows, ragged=slab.length is None)


def _sees_everything(mask: Any, query: torch.Tensor) -> bool:
    """Whether a single query may attend to every token (no mask, or one that masks nothing)."""
    if query.shape[2] != 1:
        return False
    if mask is None:
        return True
    if not isinstance(mask, torch.Tensor):
        return False
    return bool(mask.all()) if mask.dtype == torch.bool else not bool(mask.any())


def _by_kernel(layer: KVLayer, query: torch.Tensor, options: dict[str, Any]) -> Output:
    """Our kernels, in parts where some tokens are encoded; each part is read in its own form."""
    slab, packed = layer.slab, layer.packed
    assert slab is not None
    scale = options.get("scaling")
    scale = float(scale) if scale is not None else query.shape[-1] ** -0.5
    bias = slab.columns.get("bias")
    if slab.length is not None and bias is None:
        exact = kernels.dense_attention(query, *slab.dense(), scale=scale)
    else:
        exact = kernels.ragged_attention(
            query, slab.k, slab.v, slab.starts, slab.lengths, scale=scale, bias=bias
        )
    if packed is not None:
        old = kernels.packed_attention(query, packed, scale=scale)
        exact = kernels.merge_partials([old, exact])
    return exact[0].transpose(1, 2).contiguous(), None


def _by_host(
    layer: KVLayer,
    module: torch.nn.Module,
    query: torch.Tensor,
    host: HostAttention,
    options: dict[str, Any],
) -> Output:
    """The host's kernel over the tokens held, with a mask that says which those are."""
    slab = layer.slab
    assert slab is not None
    new, groups = query.shape[2], query.shape[1] // slab.heads
    if slab.length is not None:
        (k, v), padding = slab.dense(), None
        columns = {name: slab.column(name) for name in slab.columns}
    else:
        k, v, padding, columns = slab.aligned()
    total = k.shape[2]

    if options.get("position_bias") is not None:
        options = {**options, "position_bias": _gathered_bias(layer, columns, query, options)}
    bias = columns.get("bias")
    if new == 1 and padding is None and bias is None:
        return host(module, query, k, v, None, **options)
    place = torch.arange(total, device=query.device)
    visible = place <= total - new + torch.arange(new, device=query.device)[:, None]  # (Q, T)
    visible = visible[None, None]
    if padding is not None:
        real = place >= padding[..., None]
        visible = visible & real.repeat_interleave(groups, 1)[:, :, None]
    mask = torch.zeros((), dtype=query.dtype, device=query.device)
    if bias is not None:
        mask = bias.to(query.dtype).repeat_interleave(groups, 1)[:, :, None]
    lowest = torch.finfo(query.dtype).min
    return host(module, query, k, v, torch.where(visible, mask, lowest), **options)


def _gathered_bias(
    layer: KVLayer, columns: dict[str, torch.Tensor], query: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor:
    """Position bias (ALiBi …) of the tokens held, from that of all tokens seen."""
    bias: torch.Tensor = options["position_bias"]
    position = columns["position"].to(torch.int64)
    groups = query.shape[1] // position.shape[1]
    position = position.repeat_interleave(groups, 1)[:, :, None].clamp_min(0)
    shape = (query.shape[0], query.shape[1], bias.shape[2], -1)
    whole = bias.expand(shape[0], shape[1], bias.shape[2], layer.seen)
    return whole.gather(-1, position.expand(-1, -1, bias.shape[2], -1))


def _check_mask(layer: KVLayer, mask: Any, query: torch.Tensor) -> None:
    """Refuse masks that hide new tokens of a cache that no longer holds all of them."""
    new = query.shape[2]
    if new == 1 or not isinstance(mask, torch.Tensor) or mask.dim() != 4:
        return
    last = mask[:, 0, -1, -new:]
    visible = last if last.dtype == torch.bool else last == 0
    if not bool(visible.all()):
        raise HostError(
            "later tokens of a compressed batch cannot be padded; "
            "ask rows of different lengths one at a time (cache.copy() keeps the context)"
        )
