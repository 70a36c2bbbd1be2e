"""Let a benchmark process keep the memory it frees.

glibc hands large blocks back to the system and asks for them anew, and which blocks depends on what
the process allocated before. Touching fresh pages then costs more than what is being measured.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """From now on reuse freed blocks of up to 1 GiB; does nothing where there is no glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(_MMAP_THRESHOLD, 1 << 30)
