"""Virtual arenas: tensors whose addresses are reserved at once and whose memory comes page by page.

A sequence then grows in place, without copies and without knowing its length beforehand, while
only the pages that hold its tokens take memory (vAttention, arXiv 2405.04437).
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from recollect.errors import HostError


class Pages(ABC):
    """A reserved range of addresses, seen as bytes; memory stands behind the pages in use.

    Attributes:
        page: bytes of one page.
        data: (N,) uint8 over the whole range. Bytes that were never backed must not be touched.
    """

    page: int
    data: torch.Tensor

    @abstractmethod
    def back(self, start: int, stop: int) -> None:
        """Make the pages of bytes ``start : stop`` usable, or none of them.

        Both are page multiples, and none of the pages is backed yet.
        """

    @abstractmethod
    def discard(self, start: int, stop: int) -> None:
        """Give back the memory of bytes ``start : stop`` (page multiples) and what they held."""

    @abstractmethod
    def resident(self, start: int, stop: int) -> int:
        """Bytes of memory that really stand behind ``start : stop``, as the system tells."""


class HostPages(Pages):
    """Anonymous memory that the operating system provides on the first write to a page."""

    page = mmap.PAGESIZE

    def __init__(self, nbytes: int) -> None:
        try:
            self._map = mmap.mmap(-1, nbytes, flags=_PRIVATE)
        except (OSError, ValueError, OverflowError) as error:
            raise HostError(
                f"cannot reserve {nbytes:,} bytes of addresses ({error}); "
                "ask for fewer slots or a shorter context"
            ) from error
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            self._map.madvise(mmap.MADV_NOHUGEPAGE)  # memory is to follow tokens, not 2 MiB steps
        self.data = torch.frombuffer(self._map, dtype=torch.uint8)

    def back(self, start: int, stop: int) -> None:
        """Nothing to do: writing is enough."""

    def discard(self, start: int, stop: int) -> None:
        if stop > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)

    def resident(self, start: int, stop: int) -> int:
        count = -(-(stop - start) // self.page)
        present = (ctypes.c_ubyte * count)()
        address = ctypes.c_void_p(self.data.data_ptr() + start)
        if ctypes.CDLL(None, use_errno=True).mincore(
            address, ctypes.c_size_t(stop - start), present
        ):
            raise OSError(ctypes.get_errno(), "mincore failed")
        return sum(byte & 1 for byte in bytes(present)) * self.page


def reserve(nbytes: int, device: torch.device) -> Pages:
    """Addresses for `nbytes` bytes on a device. Raises HostError where that is not possible."""
    if device.type == "cpu":
        return HostPages(nbytes)
    if device.type == "cuda":
        from recollect.core.arena_cuda import CudaPages

        return CudaPages(nbytes, device)
    raise HostError(f"virtual arenas exist on cpu and cuda, not on {device.type}")


class VirtualTensor:
    """Slots of one contiguous reservation, each with room for `context` tokens.

    Every slot begins on a page of its own, so that giving one back never touches another.

    Attributes:
        data: (slots, T, *row), T at least `context`; rounded up so that slots are whole pages.
        mapped: bytes of every slot that have memory behind them; always a prefix of the slot.
    """

    def __init__(
        self,
        slots: int,
        context: int,
        row: Sequence[int],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.context = context
        self.row_bytes = math.prod(row) * dtype.itemsize
        device = torch.device(device)
        step = _page_of(device) // math.gcd(_page_of(device), self.row_bytes)
        padded = -(-context // step) * step
        self.slot_bytes = padded * self.row_bytes
        self.pages = reserve(slots * self.slot_bytes, device)
        self.data = self.pages.data.view(dtype).view(slots, padded, *row)
        self.mapped = [0] * slots

    def missing(self, slot: int, tokens: int) -> int:
        """Bytes that `back` would add for the first `tokens` of a slot."""
        return max(self._rounded(tokens) - self.mapped[slot], 0)

    def back(self, slot: int, tokens: int) -> None:
        """Make room for the first `tokens` of a slot; what it holds stays where it is."""
        first, last = self.mapped[slot], self._rounded(tokens)
        if last > first:
            self.pages.back(slot * self.slot_bytes + first, slot * self.slot_bytes + last)
            self.mapped[slot] = last

    def discard(self, slot: int, keep: int = 0) -> None:
        """Give back all pages of a slot but those of its first `keep` tokens."""
        first, last = self._rounded(keep), self.mapped[slot]
        if last > first:
            self.pages.discard(slot * self.slot_bytes + first, slot * self.slot_bytes + last)
            self.mapped[slot] = first

    def resident(self, slot: int) -> int:
        """Bytes of memory behind a slot, as the system tells."""
        return self.pages.resident(slot * self.slot_bytes, (slot + 1) * self.slot_bytes)

    def _rounded(self, tokens: int) -> int:
        page = self.pages.page
        return -(-tokens * self.row_bytes // page) * page


class SlotPool:
    """Which slots are free, and how many tokens' pages each free one still has (its *warmth*)."""

    def __init__(self, slots: int) -> None:
        self.warmth: list[int | None] = [0] * slots  # None: in use

    @property
    def free(self) -> list[int]:
        """Numbers of the free slots."""
        return [slot for slot, warm in enumerate(self.warmth) if warm is not None]

    def take(self, count: int, tokens: int) -> int | None:
        """First of `count` adjacent free slots for `tokens` each, or None.

        Best fit: the run that needs the fewest new pages, then the one that wastes the fewest.
        """
        best = None
        for first in range(len(self.warmth) - count + 1):
            run = [warm for warm in self.warmth[first : first + count] if warm is not None]
            if len(run) < count:
                continue
            missing = sum(max(tokens - warm, 0) for warm in run)
            excess = sum(max(warm - tokens, 0) for warm in run)
            best = min(best or (missing, excess, first), (missing, excess, first))
        if best is None:
            return None
        self.warmth[best[2] : best[2] + count] = [None] * count
        return best[2]

    def give(self, slot: int, warmth: int) -> None:
        """Take a slot back, with the pages of `warmth` tokens still behind it."""
        self.warmth[slot] = warmth

    def reclaimable(self) -> list[int]:
        """Free slots that still have pages, in the order to take them away: highest first."""
        return [slot for slot in reversed(self.free) if self.warmth[slot]]

    def cool(self, slot: int) -> None:
        """Note that a free slot lost its pages."""
        self.warmth[slot] = 0


# Python 3.11 has no name for MAP_NORESERVE; elsewhere anonymous memory is not reserved anyway.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE


def _page_of(device: torch.device) -> int:
    if device.type == "cuda":
        from recollect.core.arena_cuda import granularity

        return granularity(device)
    return HostPages.page
