"""Block codecs: keys and values inside an engine's paged cache, as views in logical order.

vLLM shows a layer's cache as (B, H, N, C): blocks, KV heads, slots per block, content per slot.
What lies where inside a block differs by device. A codec returns *views*, so that reading is a
gather, writing a scatter, and nothing else needs to know the layout.
"""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from recollect.errors import HostError

KV = tuple[torch.Tensor, torch.Tensor]
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class BlockCodec(ABC):
    """One physical layout of blocks whose slots hold D = `width` key and Dv value channels."""

    width: int
    value_width: int

    @abstractmethod
    def views(self, cache: torch.Tensor) -> KV:
        """Views of keys and values in a cache (B, H, N, C).

        Each is (B, H, …) with axes that make (B, H, N, D) or (B, H, N, Dv) when reshaped.
        """

    def read(self, cache: torch.Tensor, blocks: Sequence[int]) -> KV:
        """Copies k (H, n·N, D) and v (H, n·N, Dv) of n blocks. Keys are after RoPE."""
        k, v = self.views(cache)
        rows = len(blocks) * cache.shape[2]
        return _gather(k, blocks, (rows, self.width)), _gather(v, blocks, (rows, self.value_width))

    def write(
        self, cache: torch.Tensor, blocks: Sequence[int], k: torch.Tensor, v: torch.Tensor
    ) -> None:
        """Put k (H, n·N, D) and v (H, n·N, Dv) into n blocks."""
        for view, x in zip(self.views(cache), (k, v), strict=True):
            _scatter(view, blocks, x)


@dataclass(frozen=True)
class Plain(BlockCodec):
    """CUDA (FlashAttention, Triton, FlashInfer) and MLA: a slot's content is [key | value]."""

    def views(self, cache: torch.Tensor) -> KV:
        return cache[..., : self.width], cache[..., self.width :]


@dataclass(frozen=True)
class CpuVec(BlockCodec):
    """CPU, variants `vec` and `vec16`: a head's keys (D, N), then its values (N, Dv)."""

    def views(self, cache: torch.Tensor) -> KV:
        k, v = self._planes(cache)
        slots = cache.shape[2]
        return k.unflatten(-1, (self.width, slots)).transpose(-1, -2), v.unflatten(-1, (slots, -1))

    def _planes(self, cache: torch.Tensor) -> KV:
        """The two halves of every block's plane: (B, H, N·D) and (B, H, N·Dv)."""
        plane = cache.flatten(2)
        cut = cache.shape[2] * self.width
        return plane[..., :cut], plane[..., cut:]


@dataclass(frozen=True)
class CpuAmx(CpuVec):
    """CPU with AMX tiles, bf16: keys (N/16, D/2, 16, 2), values (Dv/16, N/2, 16, 2).

    Written after vLLM's source and checked against it only where a machine has AMX.
    """

    def views(self, cache: torch.Tensor) -> KV:
        k, v = self._planes(cache)
        slots = cache.shape[2]
        k = k.unflatten(-1, (slots // 16, self.width // 2, 16, 2))
        v = v.unflatten(-1, (self.value_width // 16, slots // 2, 16, 2))
        return k.permute(0, 1, 2, 4, 3, 5), v.permute(0, 1, 3, 5, 2, 4)


def codec_for(cache: torch.Tensor, width: int, value_width: int) -> BlockCodec:
    """The codec of a registered cache (B, H, N, C).

    Raises:
        HostError: a layout, dtype or processor this package does not know.
    """
    if cache.ndim != 4 or cache.shape[3] != width + value_width:
        raise HostError(
            f"expected a KV cache (blocks, heads, slots, {width + value_width}), got "
            f"{tuple(cache.shape)}: this attention backend is not supported"
        )
    if cache.dtype not in FLOATS:
        raise HostError(
            f"a KV cache of {cache.dtype} keeps its scales elsewhere; use --kv-cache-dtype auto"
        )
    if cache.device.type == "cuda":
        return Plain(width, value_width)
    if cache.device.type != "cpu":
        raise HostError(f"no block codec for KV caches on {cache.device.type}")
    if platform.machine().lower() not in ("x86_64", "amd64"):
        raise HostError(f"no block codec for vLLM's CPU kernels on {platform.machine()}")
    slots = cache.shape[2]
    if cache.stride(3) != 1 or cache.stride(2) != cache.shape[3]:
        raise HostError("vLLM's CPU kernels keep a head's block in one run; this cache does not")
    tiles = slots % 32 == 0 and width % 32 == 0 and cache.dtype == torch.bfloat16
    if tiles and torch.cpu._is_amx_tile_supported():
        return CpuAmx(width, value_width)
    return CpuVec(width, value_width)


def _gather(view: torch.Tensor, blocks: Sequence[int], shape: tuple[int, int]) -> torch.Tensor:
    """(B, H, …) -> (H, *shape), block after block."""
    heads, inner = view.shape[1], view.shape[2:]
    if view.is_cuda:  # one launch instead of n
        return view[list(blocks)].transpose(0, 1).reshape(heads, *shape)
    found = view.new_empty((heads, len(blocks), *inner))
    for place, block in enumerate(blocks):
        found[:, place] = view[block]
    return found.reshape(heads, *shape)


def _scatter(view: torch.Tensor, blocks: Sequence[int], x: torch.Tensor) -> None:
    """(H, n·N, width) -> its blocks of (B, H, …)."""
    rows = x.to(view.device).reshape(x.shape[0], len(blocks), *view.shape[2:])
    if view.is_cuda:
        view[list(blocks)] = rows.transpose(0, 1)
        return
    for place, block in enumerate(blocks):
        view[block] = rows[:, place]
