"""Keys and values inside one generation, on transformers."""

from recollect.kv.arena import KVArena
from recollect.kv.cache import RecollectCache, kv_cache
from recollect.kv.calibrate import calibrate_gates
from recollect.kv.persist import load_cache
from recollect.kv.policy import KVPolicy, Positions, Protect, policy
from recollect.kv.use import use

__all__ = [
    "KVArena",
    "KVPolicy",
    "Positions",
    "Protect",
    "RecollectCache",
    "calibrate_gates",
    "kv_cache",
    "load_cache",
    "policy",
    "use",
]
