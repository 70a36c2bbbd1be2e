"""Keys and values kept across requests: chunk keys, entries, and the tiers they lie on."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recollect.store.events import Event
    from recollect.store.store import Store, StoreStats
    from recollect.store.tiers.base import Lease, Reservation, Tier, TierStat

__all__ = ["Event", "Lease", "Reservation", "Store", "StoreStats", "Tier", "TierStat"]

# Loaded on first use: recipes of this room are listed where the packages of its extra are missing.
_HOMES = {
    "Event": "recollect.store.events",
    "Lease": "recollect.store.tiers.base",
    "Reservation": "recollect.store.tiers.base",
    "Store": "recollect.store.store",
    "StoreStats": "recollect.store.store",
    "Tier": "recollect.store.tiers.base",
    "TierStat": "recollect.store.tiers.base",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'recollect.store' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
