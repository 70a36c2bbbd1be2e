"""Sizes as people write them: ``8GiB``, ``500 MB``, ``4096``."""

from __future__ import annotations

import re
from fractions import Fraction

from recollect.errors import StoreError

UNITS = {"": 1, "b": 1} | {
    f"{letter}{form}": base ** (power + 1)
    for base, form in ((1000, "b"), (1024, "ib"), (1024, ""))
    for power, letter in enumerate("kmgtp")
}


def read_bytes(size: int | str) -> int:
    """Bytes in a size. Raises StoreError for what is none."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(size))
    if match is None or match[2].lower() not in UNITS:
        raise StoreError(f"cannot read the size '{size}'; write e.g. 8GiB, 500MB or 4096")
    return int(Fraction(match[1]) * UNITS[match[2].lower()])


def show_bytes(nbytes: float) -> str:
    """``8.0 GiB``."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if nbytes < 1024:
            break
        nbytes, unit = nbytes / 1024, larger
    return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
