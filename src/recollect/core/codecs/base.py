"""What every codec of keys and values answers, so that caches and kernels can hold any of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, Self

import torch


class Tile(NamedTuple):
    """Decoded tokens of every segment; rows with `valid` false hold zeros.

    k (B*K, n, D), v (B*K, n, Dv), valid (B*K, n) bool.
    """

    k: torch.Tensor
    v: torch.Tensor
    valid: torch.Tensor


class Packed(ABC):
    """Encoded tokens of one layer. Segment b * K + h holds those of batch row b, KV head h.

    Encoding is append-only: codes once written are never rewritten. The reference attention kernel
    reads any codec through `decode_tile`; a fused kernel for a codec is an optimization.
    """

    batch: int
    heads: int
    lengths: torch.Tensor
    """Encoded tokens of each segment (B*K,), int64 on the CPU."""

    @property
    @abstractmethod
    def granule(self) -> int:
        """Tokens are encoded in multiples of this many."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes really held: codes, parameters, addresses and slack."""

    @abstractmethod
    def append(self, k: torch.Tensor, v: torch.Tensor) -> None:
        """Encode k (B, K, m, D), v (B, K, m, Dv) behind what every segment holds."""

    @abstractmethod
    def decode_tile(self, begin: int, end: int) -> Tile:
        """Tokens ``begin:end`` of every segment, in float32."""

    @abstractmethod
    def select_batch(self, index: torch.Tensor) -> Self:
        """A copy whose batch row i is row ``index[i]`` of this one."""

    @abstractmethod
    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything held, as plain tensors that can be saved."""

    @classmethod
    @abstractmethod
    def from_state_dict(cls, state: dict[str, torch.Tensor]) -> Self:
        """The inverse of `state_dict`."""
