"""Real text that every Python installation brings along: the source of its standard library.

Files are split once and for all by a hash of their path, so that a model trained on one machine is
measured on files it has not seen on any other.
"""

from __future__ import annotations

import hashlib
import sysconfig
from functools import cache
from pathlib import Path
from typing import Literal

Part = Literal["train", "held-out"]

HELD_OUT_PERCENT = 5
_SKIPPED = frozenset({"test", "tests", "site-packages", "idlelib", "lib2to3", "__pycache__"})


def files(part: Part) -> list[Path]:
    """The standard library's source files of one part, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return [root / name for name in _names(root) if is_held_out(name) == (part == "held-out")]


def is_held_out(name: str) -> bool:
    """Whether the file of that name (relative to the library's root, with `/`) is held out."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


@cache
def documents(part: Part) -> tuple[str, ...]:
    """The text of every file of one part; files that are not UTF-8 are left out."""
    texts = []
    for path in files(part):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip():
            texts.append(text if text.endswith("\n") else text + "\n")
    return tuple(texts)


@cache
def lines(part: Part) -> tuple[str, ...]:
    """Every line of one part, newline included, file after file."""
    return tuple(line for text in documents(part) for line in text.splitlines(keepends=True))


def _names(root: Path) -> list[str]:
    found = []
    for path in root.rglob("*.py"):
        name = path.relative_to(root)
        if not _SKIPPED.intersection(name.parts):
            found.append(name.as_posix())
    return sorted(found)
