"""Entries of a disk tier in a tar archive, and back: for moving a store, or shipping warm prefixes.

Every member is the bytes of one entry; its pax headers carry key, namespace, tokens, cost, age and
checksum. Nothing else is taken out of an archive, whatever it holds.
"""

from __future__ import annotations

import io
import math
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import xxhash

from recollect.errors import StoreError
from recollect.store.tiers.base import KEY_BYTES, Facts
from recollect.store.tiers.disk import DiskTier, Entry

PREFIX = "RECOLLECT."


def write_archive(tier: DiskTier, entries: Iterable[Entry], archive: Path) -> int:
    """Write entries that are still there and sound: their number. Raises StoreError."""
    count = 0
    try:
        with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
            for entry in entries:
                lease = tier.get(entry.key)
                if lease is None:
                    continue
                member = tarfile.TarInfo(entry.key.hex())
                member.size, member.mtime = lease.nbytes, entry.time
                member.pax_headers = {
                    PREFIX + "namespace": entry.namespace,
                    PREFIX + "tokens": str(entry.tokens),
                    PREFIX + "cost": repr(entry.cost_seconds),
                    PREFIX + "xxh3": xxhash.xxh3_64_hexdigest(lease.data),
                }
                tar.addfile(member, _Reader(lease.data))
                count += 1
    except OSError as error:
        raise StoreError(f"cannot write {archive}: {error}") from error
    return count


def read_archive(
    tier: DiskTier, archive: Path, advance: Callable[[], None] = lambda: None
) -> dict[str, int]:
    """Put the entries of an archive: counts of `imported`, `present` and `corrupt` ones.

    Raises StoreError where the archive cannot be read to its end, or the disk is full.
    """
    counts = {"imported": 0, "present": 0, "corrupt": 0}
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                counts[_put(tier, tar, member)] += 1
                advance()
    except (tarfile.TarError, EOFError) as error:
        raise StoreError(f"{archive} is no archive of a store: {error}") from error
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"cannot read {archive}: {error}") from error
    return counts


def _put(tier: DiskTier, tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    said = {name: value for name, value in member.pax_headers.items() if name.startswith(PREFIX)}
    file = tar.extractfile(member) if member.isfile() else None
    try:
        key = bytes.fromhex(member.name)
        tokens, cost = int(said[PREFIX + "tokens"]), float(said[PREFIX + "cost"])
        facts = Facts(said[PREFIX + "namespace"], cost, tokens)
        checksum = said[PREFIX + "xxh3"]
    except (KeyError, ValueError):
        return "corrupt"
    in_range = 0 <= tokens < 1 << 32 and math.isfinite(cost)
    if file is None or len(key) != KEY_BYTES or not in_range:
        return "corrupt"
    data = file.read()
    if xxhash.xxh3_64_hexdigest(data) != checksum:
        return "corrupt"
    if tier.contains(key):
        return "present"
    if not tier.put(key, data, facts):
        raise StoreError(f"no room for entry {member.name[:16]} in {tier.folder}; free some space")
    return "imported"


class _Reader(io.RawIOBase):
    """A file over a view of bytes, without copying all of them."""

    def __init__(self, view: memoryview) -> None:
        self._view, self._at = view, 0

    def read(self, size: int = -1) -> bytes:
        end = len(self._view) if size < 0 else self._at + size
        part = bytes(self._view[self._at : end])
        self._at += len(part)
        return part
