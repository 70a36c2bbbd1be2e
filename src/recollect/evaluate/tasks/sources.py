"""Real text that every user has: the source of Python's own standard library.

The files are those the zoo models never saw in training.
"""

from __future__ import annotations

import functools
import random
import sysconfig
import zlib
from pathlib import Path

from recollect.errors import StoreError


@functools.cache
def files() -> tuple[str, ...]:
    """Texts of the held-out files, the same order everywhere."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(p for p in root.rglob("*.py") if "site-packages" not in p.parts)
    texts = tuple(
        text
        for path in paths
        if zlib.crc32(path.relative_to(root).as_posix().encode()) % 20 == 0
        and (text := path.read_text(encoding="utf-8", errors="ignore")).count("\n") >= 40
    )
    if not texts:
        raise StoreError("this Python has no readable standard library; tasks need its source")
    return texts


def lines(rng: random.Random) -> list[str]:
    """Lines (with their ends) of files in random order, from a random place on."""
    order = rng.sample(range(len(files())), len(files()))
    found: list[str] = []
    for index in order:
        found += [line for line in files()[index].splitlines(keepends=True) if line.strip()]
    start = rng.randrange(max(1, len(found) // 2))
    return found[start:]
