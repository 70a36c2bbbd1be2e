"""Virtual arenas on CUDA: addresses and memory apart, through the driver's virtual memory calls.

PyTorch has no names for these calls, so they are made through ctypes (CUDA driver API, chapter
"Virtual Memory Management"); the range itself becomes a tensor by `__cuda_array_interface__`.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from typing import Any

import torch

from recollect.core.arena import Pages
from recollect.errors import HostError

_PINNED, _DEVICE, _READ_WRITE, _MINIMUM = 1, 1, 3, 0  # enumerators of cuda.h


class _Location(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_int)]


class _Flags(ctypes.Structure):
    _fields_ = [
        ("compression", ctypes.c_ubyte),
        ("rdma", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    ]


class _Allocation(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", _Location),
        ("win32", ctypes.c_void_p),
        ("flags", _Flags),
    ]


class _Access(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = [("location", _Location), ("flags", ctypes.c_int)]


class Driver:
    """The handful of driver calls an arena needs, on one device. Addresses and handles are ints."""

    def __init__(self, device: torch.device) -> None:
        try:
            self._library: Any = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise HostError(f"no CUDA driver on this machine: {error}") from error
        torch.cuda.init()
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        torch.zeros(1, device=self.device)  # makes the device's context, which the calls run in
        self._location = _Location(_DEVICE, index)
        self._allocation = _Allocation(type=_PINNED, location=self._location)

    def granularity(self) -> int:
        """Bytes of the smallest page."""
        size = ctypes.c_size_t()
        wanted = ctypes.byref(self._allocation)
        self._call("cuMemGetAllocationGranularity", ctypes.byref(size), wanted, _MINIMUM)
        return size.value

    def reserve(self, nbytes: int) -> int:
        """An address range without memory."""
        address, none = ctypes.c_uint64(), ctypes.c_uint64(0)
        self._call(
            "cuMemAddressReserve",
            ctypes.byref(address), ctypes.c_size_t(nbytes), ctypes.c_size_t(0), none, none,
        )  # fmt: skip
        return address.value

    def release(self, address: int, nbytes: int) -> None:
        """Give the address range back."""
        self._call("cuMemAddressFree", ctypes.c_uint64(address), ctypes.c_size_t(nbytes))

    def map(self, address: int, nbytes: int) -> int:
        """Put fresh memory behind addresses; returns its handle."""
        handle, none = ctypes.c_uint64(), ctypes.c_uint64(0)
        at, size = ctypes.c_uint64(address), ctypes.c_size_t(nbytes)
        wanted = ctypes.byref(self._allocation)
        self._call("cuMemCreate", ctypes.byref(handle), size, wanted, none)
        try:
            self._call("cuMemMap", at, size, ctypes.c_size_t(0), handle, none)
            access = _Access(self._location, _READ_WRITE)
            self._call("cuMemSetAccess", at, size, ctypes.byref(access), ctypes.c_size_t(1))
        except HostError:
            self._library.cuMemUnmap(at, size)  # does nothing where mapping was what failed
            self._library.cuMemRelease(handle)
            raise
        return handle.value

    def unmap(self, address: int, nbytes: int, handle: int) -> None:
        """Take the memory away; kernels that read it must have ended."""
        self._call("cuMemUnmap", ctypes.c_uint64(address), ctypes.c_size_t(nbytes))
        self._call("cuMemRelease", ctypes.c_uint64(handle))

    def synchronize(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize(self.device)

    def tensor(self, addresses: Range) -> torch.Tensor:
        """A range as a (nbytes,) uint8 tensor that keeps it alive; its first page is mapped."""
        return torch.as_tensor(addresses, device=self.device)

    def _call(self, name: str, *arguments: Any) -> None:
        with torch.cuda.device(self.device):
            status = getattr(self._library, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            reason = (text.value or b"unknown error").decode()
            raise HostError(f"{name} failed: {reason}; ask for fewer slots or a shorter context")


class Range:
    """A reserved range of addresses, in the form PyTorch imports."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.address, self.nbytes = address, nbytes
        self.__cuda_array_interface__ = {
            "data": (address, False), "shape": (nbytes,), "typestr": "|u1", "version": 3,
        }  # fmt: skip


class CudaPages(Pages):
    """Device memory mapped page by page behind one reserved range.

    Raises:
        HostError: no CUDA driver, no addresses, or no memory left.
    """

    def __init__(self, nbytes: int, device: torch.device, driver: Driver | None = None) -> None:
        self._driver = driver = driver or _driver(device)
        self.page = driver.granularity()
        whole = -(-nbytes // self.page) * self.page
        self._handles: dict[int, int] = {}  # byte offset of a page -> handle of its memory
        addresses = Range(driver.reserve(whole), whole)
        self._base = addresses.address
        # Every view of the tensor keeps `addresses`: memory goes when the last of them is gone.
        end = weakref.finalize(
            addresses, _give_back, driver, self._base, whole, self.page, self._handles
        )
        end.atexit = False  # the driver may be gone by then
        # PyTorch asks the driver whose address this is, which it can tell of mapped ones only.
        self.back(0, self.page)
        self.data = driver.tensor(addresses)[:nbytes]
        self.discard(0, self.page)

    def back(self, start: int, stop: int) -> None:
        for offset in range(start, stop, self.page):
            try:
                self._handles[offset] = self._driver.map(self._base + offset, self.page)
            except HostError:
                self.discard(start, offset)
                raise

    def discard(self, start: int, stop: int) -> None:
        self._driver.synchronize()
        for offset in range(start, stop, self.page):
            if (handle := self._handles.pop(offset, None)) is not None:
                self._driver.unmap(self._base + offset, self.page, handle)

    def resident(self, start: int, stop: int) -> int:
        return sum(start <= offset < stop for offset in self._handles) * self.page


def granularity(device: torch.device) -> int:
    """Bytes of the smallest page of a device."""
    return _driver(device).granularity()


@functools.cache
def _driver(device: torch.device) -> Driver:
    return Driver(device)


def _give_back(driver: Driver, base: int, nbytes: int, page: int, handles: dict[int, int]) -> None:
    driver.synchronize()
    for offset, handle in handles.items():
        driver.unmap(base + offset, page, handle)
    handles.clear()
    driver.release(base, nbytes)
