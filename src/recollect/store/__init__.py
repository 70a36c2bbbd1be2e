"""Keys and values kept across requests: chunk keys, entries, and the tiers they lie on."""

from recollect.store.events import Event
from recollect.store.store import Store, StoreStats
from recollect.store.tiers.base import Lease, Reservation, Tier, TierStat

__all__ = ["Event", "Lease", "Reservation", "Store", "StoreStats", "Tier", "TierStat"]
