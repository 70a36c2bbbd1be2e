"""Files that never change, mapped and checked: their bytes are those of the page cache."""

from __future__ import annotations

import mmap
import sys
from contextlib import suppress

from recollect.errors import StoreError

try:
    from xxhash import xxh3_64 as new_checksum
except ImportError as error:  # pragma: no cover
    raise StoreError("the disk tier needs xxhash: pip install recollect[store]") from error

PIECE = 1 << 20  # bytes that are checked at a time
MADV_POPULATE_READ = 22  # of Linux: map a range at once; a fault for each page costs as much


def mapped(file: int, nbytes: int) -> mmap.mmap | bytes:
    """The bytes of an open file, which is being read from now on."""
    if not nbytes:
        return b""  # an empty file cannot be mapped
    found = mmap.mmap(file, nbytes, prot=mmap.PROT_READ)
    if hasattr(mmap, "MADV_WILLNEED"):
        found.madvise(mmap.MADV_WILLNEED)  # one long read, not page by page
    return found


def checksum(data: mmap.mmap | bytes) -> int:
    """xxh3 of mapped bytes; afterwards their pages are in place."""
    digest, view = new_checksum(), memoryview(data)
    for start in range(0, len(view), PIECE):
        part = view[start : start + PIECE]
        if isinstance(data, mmap.mmap) and sys.platform == "linux":
            with suppress(OSError):  # a kernel before 5.14 takes them in one by one
                data.madvise(MADV_POPULATE_READ, start, len(part))
        digest.update(part)
    return digest.intdigest()
