"""Prefixes of transformers models in a store: stock `generate` computes only what no one has."""

from recollect.store.prefix.cache import PrefixCache, prefix_cache
from recollect.store.prefix.report import PrefixReport

__all__ = ["PrefixCache", "PrefixReport", "prefix_cache"]
