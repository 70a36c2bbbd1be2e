"""From the arguments of a Store to its tiers, nearest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recollect.errors import StoreError
from recollect.store.sizes import read_bytes
from recollect.store.tiers import remote_tier
from recollect.store.tiers.base import KEY_BYTES, Tier
from recollect.store.tiers.disk import DiskTier
from recollect.store.tiers.guarded import NOBODY, GuardedTier
from recollect.store.tiers.host import HostTier
from recollect.store.tiers.redundant import in_shared_memory

DEFAULT_CHUNK = 256  # tokens
DEFAULT_DISK = "10GiB"


def build_tiers(
    path: str | Path | None,
    *,
    host: int | str | None,
    disk: int | str | None,
    remote: str | Tier | Sequence[str | Tier] | None,
    namespace: str,
    replacement: str,
    quota: int | str | Mapping[str, int | str] | None,
    encryption_key: bytes | str | None,
    ttl: float | None,
    check: bool = True,
    holders: int | None = None,
) -> tuple[Tier, ...]:
    """Host, disk, and the remote ones in the order given. Raises StoreError.

    With `holders`, the host tier lies in shared memory, in so many parts that survive one's loss.
    """
    shared: dict[str, Any] = {
        "replacement": replacement,
        "quotas": _quotas(quota, namespace),
        "ttl": ttl,
    }
    tiers: list[Tier] = []
    if host and read_bytes(host) and holders:
        tiers.append(in_shared_memory(namespace, read_bytes(host), holders, check=False, **shared))
    elif host and read_bytes(host):
        tiers.append(HostTier(read_bytes(host), **shared))
    if disk and path is None:
        raise StoreError(f"a disk tier of {disk} needs a folder: Store('~/.cache/recollect', ...)")
    if len(namespace.encode()) > KEY_BYTES:
        raise StoreError(f"the namespace '{namespace}' is longer than {KEY_BYTES} bytes")
    if path is not None:
        on_disk = DiskTier(path, read_bytes(disk or DEFAULT_DISK), check=check, **shared)
        tiers.append(_encrypted(on_disk, encryption_key))
        tiers[-1].contains(NOBODY)  # refuses an encryption key that is not this folder's
    further = [remote] if isinstance(remote, str | Tier) else list(remote or ())
    for place in further:
        tier = remote_tier(place, namespace=namespace) if isinstance(place, str) else place
        tiers.append(GuardedTier(_encrypted(tier, encryption_key)))
    if not tiers:
        raise StoreError("a store without tiers keeps nothing; give host, path or remote")
    return tuple(tiers)


def _encrypted(tier: Tier, key: bytes | str | None) -> Tier:
    """The tier behind encryption, where there is a key; one written with another key is refused."""
    if key is None:
        return tier
    from recollect.store.tiers.encrypted import EncryptedTier

    return EncryptedTier(tier, key)


def _quotas(quota: int | str | Mapping[str, int | str] | None, namespace: str) -> dict[str, int]:
    if quota is None:
        return {}
    shares = quota if isinstance(quota, Mapping) else {namespace: quota}
    return {name: read_bytes(size) for name, size in shares.items()}
