"""What a user may set: `kv_connector_extra_config` of `--kv-transfer-config`, read and checked."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from recollect.errors import HostError

LOADS = ("auto", "sync", "async")
ADMISSIONS = ("measured", "always")


@dataclass(frozen=True)
class Settings:
    """Where KV goes, and when it is moved.

    Attributes:
        path: folder of the disk tier; engines that name the same one share it.
        host: bytes of the worker's memory tier, e.g. ``"4GiB"``.
        disk: bytes of the disk tier; None: no limit.
        remote: URL of a remote tier, e.g. ``redis://…``.
        namespace: entries of other namespaces are never read.
        salt: the same, but secret: it enters every key.
        replacement: policy of the tiers, by name.
        encryption_key_env: environment variable that holds the key for encryption at rest.
        store_factory: ``package.module:function`` that makes the store in place of `Store`, with
            the same arguments; for tiers of one's own.
        chunk: tokens per entry; a multiple of the engine's block size, 0 chooses one near 256.
        load: ``sync`` loads before the forward, ``async`` while other requests run; ``auto``
            takes sync for what the worker holds in memory.
        admission: ``measured`` loads what is quicker to load than to compute, and saves what is
            likely to pay for it, by costs learned from the engine's own steps; ``always`` loads
            and saves all. What a request hands to another engine is always saved.
        min_load_tokens: hits shorter than this are computed, all others loaded, whatever was
            measured; None leaves that to `admission`.
        save_generated: keep the KV of generated tokens too, for the next turn.
        lookup_seconds: how long a request waits for the answer of the shared tiers.
        handoff_seconds: how long a consumer waits for what its producer announced.
        staging: bytes that may wait for being written; beyond it saves are put off.
    """

    path: str | None = None
    host: str | int | None = "1GiB"
    disk: str | int | None = None
    remote: str | None = None
    namespace: str = "default"
    salt: str = ""
    replacement: str = "s3fifo"
    encryption_key_env: str | None = None
    store_factory: str | None = None
    chunk: int = 0
    load: str = "auto"
    admission: str = "measured"
    min_load_tokens: int | None = None
    save_generated: bool = True
    lookup_seconds: float = 0.05
    handoff_seconds: float = 2.0
    staging: int = 256 * 2**20

    @classmethod
    def read(cls, extra: Mapping[str, Any]) -> Settings:
        """Check names and types. Raises HostError naming the first that is wrong."""
        defaults = {field.name: field.default for field in fields(cls)}
        for name, value in extra.items():
            if name not in defaults:
                near = difflib.get_close_matches(name, defaults, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise HostError(f"kv_connector_extra_config has no '{name}'{hint}")
            if not _fits(value, COUNT if name == "min_load_tokens" else defaults[name]):
                raise HostError(f"kv_connector_extra_config: {name} cannot be {value!r}")
        settings = cls(**extra)
        if settings.load not in LOADS:
            raise HostError(f"load is one of {', '.join(LOADS)}, not '{settings.load}'")
        if settings.admission not in ADMISSIONS:
            raise HostError(
                f"admission is one of {', '.join(ADMISSIONS)}, not '{settings.admission}'"
            )
        return settings

    @property
    def is_shared(self) -> bool:
        """Whether any tier is visible to other processes."""
        return self.path is not None or self.remote is not None

    @property
    def nearest(self) -> str:
        """Name of the tier that takes a worker's saves."""
        if self.host not in (None, 0, "0"):
            return "host"
        if self.path is not None:
            return "disk"
        return "redis" if str(self.remote).startswith(("redis", "valkey")) else "objects"

    def chunk_tokens(self, block: int) -> int:
        """Tokens per entry for an engine with blocks of `block` tokens. Raises HostError."""
        if self.chunk == 0:
            return max(1, 256 // block) * block
        if self.chunk < 0 or self.chunk % block:
            raise HostError(
                f"chunk {self.chunk} is no multiple of the engine's block size {block}; "
                f"set chunk to {max(1, round(self.chunk / block)) * block} or change --block-size"
            )
        return self.chunk

    def open_store(self, *, private: bool) -> Any:
        """The store: with all tiers, or (`private` False) only those that other processes see.

        Raises:
            HostError: the factory or the encryption key is not there.
            StoreError: a tier cannot be opened.
        """
        arguments: dict[str, Any] = {
            "host": self.host if private else None,
            "disk": self.disk,
            "remote": self.remote,
            "namespace": self.namespace,
            "salt": self.salt,
            "replacement": self.replacement,
            "verify": _by_the_reader,
        }
        if self.encryption_key_env is not None:
            key = os.environ.get(self.encryption_key_env)
            if not key:
                raise HostError(f"encryption_key_env: ${self.encryption_key_env} is not set")
            arguments["encryption_key"] = key
        return self._factory()(self.path, **arguments)

    def _factory(self) -> Callable[..., Any]:
        if self.store_factory is None:
            from recollect.store import Store

            return Store
        module, _, name = self.store_factory.partition(":")
        try:
            made: Callable[..., Any] = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise HostError(f"store_factory '{self.store_factory}': {error}") from error
        return made


def _by_the_reader(data: memoryview) -> bool:
    """Entries are frames, verified before a block is touched; once is enough."""
    return True


COUNT = object()  # None or a number of things


def _fits(value: Any, default: Any) -> bool:
    if default is COUNT:
        return value is None or (type(value) is int and value >= 0)
    if default is None:
        return value is None or isinstance(value, str | int)
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int | float):
        return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    return isinstance(value, str) or (default == "1GiB" and isinstance(value, int | None))
