"""The file of an in-context cache: an npz of one JSON document and one array, nothing pickled."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recollect.errors import StoreError

SCHEMA = "recollect-examples-1"


def write(path: str | Path, state: Mapping[str, Any], vectors: np.ndarray) -> None:
    """Save `state` and `vectors` (N, 2, D) float32; an older file is replaced in one step."""
    text = json.dumps({"schema": SCHEMA, **state}).encode()
    temporary = Path(f"{path}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            np.savez(
                file,
                state=np.frombuffer(text, np.uint8),
                vectors=vectors,
                checksum=_checksum(text, vectors),
            )
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"cannot write examples to {path}: {error}") from error


def read(path: str | Path, encoder_id: str, dim: int) -> tuple[dict[str, Any], np.ndarray]:
    """State and vectors (N, 2, D). Raises StoreError when damaged or of another encoder."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            text, vectors = arrays["state"].tobytes(), arrays["vectors"]
            checksum = arrays["checksum"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise StoreError(f"cannot read examples from {path}: {error}") from error
    if not np.array_equal(checksum, _checksum(text, vectors)):
        raise StoreError(f"{path} is damaged (checksum); delete it and start anew")
    state = json.loads(text)
    if (state.get("schema"), state.get("encoder_id")) != (SCHEMA, encoder_id):
        raise StoreError(
            f"{path} is of {state.get('schema')} and {state.get('encoder_id')}, "
            f"not {SCHEMA} and {encoder_id}"
        )
    if vectors.shape[1:] != (2, dim):
        raise StoreError(f"{path} has vectors of {vectors.shape[-1]} numbers, not {dim}")
    return state, vectors


def _checksum(text: bytes, vectors: np.ndarray) -> np.ndarray:
    digest = hashlib.sha256(text)
    digest.update(f"{vectors.dtype} {vectors.shape}".encode())
    digest.update(np.ascontiguousarray(vectors).data)
    return np.frombuffer(digest.digest(), np.uint8)
