"""Places an entry can lie: one file each, all with the contract of `base.py`."""

from __future__ import annotations

import importlib
from typing import Any

from recollect.errors import StoreError
from recollect.store.tiers.base import Tier

# URL scheme -> module and class; any other scheme is an object store's
SCHEMES = dict.fromkeys(
    ("redis", "rediss", "valkey", "valkeys", "unix"), ("recollect.store.tiers.redis", "RedisTier")
)
OBJECTS = ("recollect.store.tiers.objects", "ObjectTier")


def remote_tier(url: str, **arguments: Any) -> Tier:
    """The tier behind a URL. Raises StoreError for what is no URL, or an extra that is missing."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise StoreError(f"'{url}' is no URL; write e.g. redis://localhost or s3://bucket/folder")
    module, name = SCHEMES.get(scheme, OBJECTS)
    return getattr(importlib.import_module(module), name)(url, **arguments)
