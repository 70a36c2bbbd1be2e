"""Keys and values kept across requests: chunk keys, entries, and the tiers they lie on."""
