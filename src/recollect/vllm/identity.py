"""Names for "this very model" and its chunks, equal in every process that serves it.

Scheduler and worker see no weights through the interface, so the name comes from the configuration
and a sample of the checkpoint's files.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recollect.errors import HostError
from recollect.store.keys import root

# Settings that do not change what the model computes.
_IRRELEVANT = ("_name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
_PIECES, _PIECE = 64, 4096


def fingerprint(model_config: Any, *, cache_dtype: str, ranks: int) -> str:
    """Hex digest over the configuration, the checkpoint's bytes (a sample) and number formats.

    Args:
        model_config: vLLM's ModelConfig.
        cache_dtype: ``cache_config.cache_dtype``.
        ranks: how many workers share a layer's heads or the layers.
    """
    config = model_config.hf_config
    claims = {k: v for k, v in config.to_dict().items() if k not in _IRRELEVANT}
    facts = {
        "config": claims,
        "dtype": str(model_config.dtype),
        "cache_dtype": cache_dtype,
        "quantization": str(model_config.quantization),
        "ranks": ranks,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    weights = checkpoint_digest(Path(model_config.model))
    if weights is None:  # a name on the hub: its commit stands for the weights
        commit = getattr(config, "_commit_hash", None) or model_config.revision
        weights = f"{model_config.model}@{commit}"
    digest.update(weights.encode())
    return digest.hexdigest()[:32]


def checkpoint_digest(folder: Path) -> str | None:
    """Hex digest over a sample of a local checkpoint's weights; None where there is none."""
    if not folder.exists():
        return None
    digest = hashlib.sha256()
    for file in [folder] if folder.is_file() else sorted(folder.iterdir()):
        if file.suffix in _WEIGHTS:
            digest.update(f"{file.name} {file.stat().st_size} ".encode() + _sample(file))
    return digest.hexdigest()


def hashing(algorithm: str) -> str:
    """What the engine's block hashes depend on besides the tokens.

    Raises:
        HostError: hashes that differ between processes, or that an attacker could make collide.
    """
    if algorithm == "sha256_cbor":
        return algorithm
    if algorithm == "sha256":  # over pickles, whose bytes may differ between Python versions
        return f"sha256-python{sys.version_info.major}.{sys.version_info.minor}"
    raise HostError(
        f"block hashes of '{algorithm}' cannot name shared KV; "
        "start vLLM with --prefix-caching-hash-algo sha256_cbor"
    )


class ChunkKeys:
    """Keys of chunks from the engine's own chained block hashes.

    The engine's hash of a block covers all tokens before it and, in this order, LoRA, multi-modal
    inputs and the request's cache_salt; the root adds model, namespace, salt and chunk size.
    """

    def __init__(self, model: str, *, namespace: str, salt: str, chunk: int, hashed: int) -> None:
        """`hashed` is how many tokens one block hash covers; it divides `chunk`."""
        self._root = root(model, namespace=namespace, salt=salt, chunk=chunk)
        self._stride = chunk // hashed

    def extend(self, keys: list[bytes], block_hashes: Sequence[bytes]) -> None:
        """Append to `keys` those of the full chunks that are not in it yet."""
        for end in range((len(keys) + 1) * self._stride, len(block_hashes) + 1, self._stride):
            found = hashlib.blake2b(block_hashes[end - 1], key=self._root, digest_size=32)
            keys.append(found.digest())

    def renew(self, nonce: bytes) -> None:
        """Other keys from now on: nothing that was stored before can be found."""
        self._root = hashlib.blake2b(nonce, key=self._root, digest_size=32).digest()


def of_rank(key: bytes, rank: int) -> bytes:
    """The key under which a worker of a model that is split over several keeps its share."""
    if rank == 0:
        return key
    return hashlib.blake2b(key + rank.to_bytes(4, "big"), digest_size=32).digest()


def _sample(file: Path) -> bytes:
    """Digest of evenly spaced pieces: tells fine-tuned siblings apart in milliseconds."""
    digest, size = hashlib.sha256(), file.stat().st_size
    with file.open("rb") as stream:
        for piece in range(_PIECES):
            stream.seek(max(0, size - _PIECE) * piece // (_PIECES - 1))
            digest.update(stream.read(_PIECE))
    return digest.digest()
