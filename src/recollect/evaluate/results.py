"""A run's folder: `run.json` says what is measured, `results.jsonl` grows line by line.

A run can be stopped at any moment and started again: a line torn by a crash or a full disk is
dropped and measured anew, everything before it stays.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recollect.errors import StoreError

SCHEMA = 1
_AGAIN = "what is measured so far is kept; run the same command again to go on"


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The description and the records of a run.

    Raises StoreError when the folder holds no run.
    """
    try:
        about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(
            f"'{folder}' holds no run (no run.json); give the --out of an eval"
        ) from None
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {folder / 'run.json'}: {_reason(error)}") from error
    if about.get("schema") != SCHEMA:
        raise StoreError(f"{folder} was written by another version of recollect; use a new --out")
    return about, _whole_lines(folder / "results.jsonl")[0]


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing. Raises StoreError."""
    partial = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True) if partial.parent.is_dir() else None
        raise StoreError(f"cannot write {path}: {_reason(error)}") from error


class RunFolder:
    """An open run: knows what is done and takes new records.

    Attributes:
        path: the folder.
        records: everything measured, earlier sessions included.
    """

    def __init__(self, path: Path, records: list[dict[str, Any]], descriptor: int) -> None:
        self.path = path
        self.records = records
        self._descriptor = descriptor

    def append(self, record: dict[str, Any]) -> None:
        """Add one line for good, or leave the file as it was. Raises StoreError."""
        line = (json.dumps(record) + "\n").encode()
        end = os.lseek(self._descriptor, 0, os.SEEK_END)
        try:
            _write_all(self._descriptor, line)
            os.fdatasync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, end)
            raise StoreError(
                f"cannot write {self.path / 'results.jsonl'}: {_reason(error)}; {_AGAIN}"
            ) from error
        self.records.append(record)


@contextmanager
def open_run(path: Path, about: dict[str, Any]) -> Iterator[RunFolder]:
    """Start a run, or go on with it.

    Args:
        path: the folder, made if missing.
        about: `settings` and `model` must equal those of a run that is there already; the rest
            (versions, command) is written down when the run starts.

    Raises:
        StoreError: not writable, or another configuration is in the folder.
    """
    known = path / "run.json"
    if known.exists():
        _check_same(path, read(path)[0], about)
    elif (path / "results.jsonl").exists():
        raise StoreError(f"'{path}' has results but no run.json; use a new --out")
    else:
        write_text(known, json.dumps({"schema": SCHEMA, **about}, indent=2) + "\n")
    try:
        descriptor = os.open(path / "results.jsonl", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(f"cannot write {path / 'results.jsonl'}: {_reason(error)}") from error
    try:
        records, end = _whole_lines(path / "results.jsonl")
        os.ftruncate(descriptor, end)
        yield RunFolder(path, records, descriptor)
    finally:
        os.close(descriptor)


def _check_same(path: Path, there: dict[str, Any], about: dict[str, Any]) -> None:
    for part in ("settings", "model"):
        old, new = there.get(part, {}), json.loads(json.dumps(about[part]))
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                raise StoreError(
                    f"'{path}' holds a run with {part} {name}={old.get(name)}, "
                    f"not {new.get(name)}; "
                    "use a new --out, or the same settings to go on"
                )


def _whole_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Records of all whole lines, and where the last of them ends."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise StoreError(f"cannot read {path}: {_reason(error)}") from error
    records: list[dict[str, Any]] = []
    end = 0
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break  # torn by a crash: measured again
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise StoreError(f"{path} line {number} is not JSON; move the file away") from error
        end += len(line)
    return records, end


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _reason(error: Exception) -> str:
    strerror = getattr(error, "strerror", None)
    return strerror or str(error)
