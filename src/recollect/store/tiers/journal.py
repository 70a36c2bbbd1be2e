"""The journal of a folder of entries: one record for every put and delete, shared by its writers.

It is the only truth about what the folder holds, so an entry is there from the moment its record
is, and a restart reads one file however many entries there are. Processes append under a file lock
and read what others appended; a record that a crash tore fails its check and is skipped.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from recollect.core.slot_table import hash_keys
from recollect.errors import StoreError

VERSION = 1
MAGIC = b"recollect store\n"
PUT, DELETE, NAMESPACE = 1, 2, 3
KINDS = (PUT, DELETE, NAMESPACE)
RECORD = np.dtype(
    [
        ("kind", "u1"),
        ("flags", "u1"),  # none yet
        ("namespace", "<u2"),
        ("tokens", "<u4"),
        ("nbytes", "<u8"),
        ("time", "<f8"),  # seconds since 1970
        ("cost", "<f8"),  # seconds
        ("checksum", "<u8"),  # xxh3 of the entry's bytes
        ("key", "u1", 32),  # or a namespace's name, padded with zeros
        ("check", "<u8"),  # over all of the above
    ]
)
WORDS = RECORD.itemsize // 8
# odd multipliers for the check of a record
_ODD = np.array([2 * i + 1 for i in range(WORDS - 1)], np.uint64) * np.uint64(0x9E3779B97F4A7C15)


class Journal:
    """Records of a folder, appended by several processes.

    Raises StoreError when the folder cannot be used, or was written by a newer version.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal"
        self._lock = folder / "lock"
        self._depth = 0
        # Held open, so that no other journal can get the same inode while we compare it.
        self._file, self._inode, self._read_to = -1, -1, 0
        with self.locked():
            if not self.path.exists():
                self._write_whole(np.empty(0, RECORD))
            self._check_header()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """No other process appends or replaces meanwhile. May be nested; one thread at a time."""
        if self._depth:
            yield
            return
        # Opened anew each time: a lock belongs to the open file, which a forked child would share.
        with open(self._lock, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    def read(self) -> tuple[bool, np.ndarray]:
        """(whether to start over, valid records that are new since the last call).

        Starting over is due at first, and after the journal was replaced by a shorter one.
        """
        try:
            anew = os.stat(self.path).st_ino != self._inode
        except FileNotFoundError:
            raise StoreError(f"{self.path} is gone; the folder was deleted under us") from None
        if anew:
            self._open()
        size = os.fstat(self._file).st_size
        if size < self._read_to + RECORD.itemsize:
            return anew, np.empty(0, RECORD)
        raw = self._bytes(self._read_to, size)
        records = np.frombuffer(raw, RECORD, count=len(raw) // RECORD.itemsize)
        valid = records["check"] == _checks(records)
        if not valid[-1] and not self._depth:
            records, valid = records[:-1], valid[:-1]  # perhaps still being written
        self._read_to += records.nbytes
        return anew, records[valid & np.isin(records["kind"], KINDS)]

    def read_all(self) -> np.ndarray:
        """Every valid record of the journal there is now; `read` goes on from where it was."""
        raw = self.path.read_bytes()[RECORD.itemsize :]
        records = np.frombuffer(raw, RECORD, count=len(raw) // RECORD.itemsize)
        return records[(records["check"] == _checks(records)) & np.isin(records["kind"], KINDS)]

    @property
    def length(self) -> int:
        """Records up to where this process has read."""
        return self._read_to // RECORD.itemsize - 1

    def append(self, records: np.ndarray) -> None:
        """Add records; the lock must be held. Raises OSError."""
        assert self._depth, "append needs the lock"
        records["check"] = _checks(records)
        with open(self.path, "r+b", buffering=0) as file:
            # what a crash tore at the end is overwritten
            end = os.fstat(file.fileno()).st_size // RECORD.itemsize * RECORD.itemsize
            try:
                written = os.pwrite(file.fileno(), records.tobytes(), end)
                if written != records.nbytes:
                    raise OSError(f"{self.path}: no space left for a record")
            except OSError:
                os.ftruncate(file.fileno(), end)
                raise
            if end == self._read_to and os.fstat(file.fileno()).st_ino == self._inode:
                self._read_to += records.nbytes

    def replace(self, records: np.ndarray) -> None:
        """A new journal with these records only; other processes start over. Raises OSError."""
        with self.locked():
            records["check"] = _checks(records)
            self._write_whole(records)
            self.close()  # we start over too: there may be records that we had not read
            self._read_to = RECORD.itemsize

    def close(self) -> None:
        """Let go of the file. Idempotent; using the journal opens it again."""
        if self._file >= 0:
            os.close(self._file)
        self._file, self._inode = -1, -1

    def _open(self) -> None:
        """Go over to the journal that is there now, from its beginning."""
        self.close()
        self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        self._inode = os.fstat(self._file).st_ino
        self._read_to = RECORD.itemsize

    def _bytes(self, start: int, end: int) -> bytes:
        parts = []
        while start < end and (part := os.pread(self._file, end - start, start)):
            parts.append(part)
            start += len(part)
        return b"".join(parts)

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            self.close()

    def _write_whole(self, records: np.ndarray) -> None:
        partial = self.path.with_name("journal.new")
        header = bytearray(RECORD.itemsize)
        header[: len(MAGIC)] = MAGIC
        header[len(MAGIC) : len(MAGIC) + 8] = VERSION.to_bytes(8, "little")
        with open(partial, "wb") as file:
            file.write(header)
            file.write(records.tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)

    def _check_header(self) -> None:
        with open(self.path, "rb") as file:
            header = file.read(RECORD.itemsize)
        if len(header) < RECORD.itemsize or not header.startswith(MAGIC):
            raise StoreError(f"{self.path} is not a store's journal; choose another folder")
        version = int.from_bytes(header[len(MAGIC) : len(MAGIC) + 8], "little")
        if version > VERSION:
            raise StoreError(
                f"{self.path.parent} was written by a newer recollect (format {version}, this one "
                f"reads {VERSION}); upgrade recollect or choose another folder"
            )


def record(kind: int, key: bytes, **facts: float) -> np.ndarray:
    """One record (1,); `key` is padded with zeros."""
    made = np.zeros(1, RECORD)
    made["kind"] = kind
    made["key"][0, : len(key)] = np.frombuffer(key, np.uint8)
    for name, value in facts.items():
        made[name] = value
    return made


def name_of(record: np.void) -> str:
    """The name in the record of a namespace."""
    return bytes(record["key"]).rstrip(b"\0").decode(errors="replace")


def last_of_each(records: np.ndarray) -> np.ndarray:
    """The last put or delete of each key, in order."""
    changes = records[records["kind"] != NAMESPACE]
    # keys are told apart by a 64-bit hash: a collision would lose an entry, once in 10^7 stores
    hashes = hash_keys(changes["key"])
    _, last = np.unique(hashes[::-1], return_index=True)
    return changes[np.sort(len(changes) - 1 - last)]


def _checks(records: np.ndarray) -> np.ndarray:
    """What the `check` of each record must be: a multilinear hash of its words."""
    words = np.ascontiguousarray(records).view("<u8").reshape(-1, WORDS)[:, :-1]
    return (words * _ODD).sum(1, dtype=np.uint64) ^ np.uint64(0xA54FF53A5F1D36F1)
