"""Past answers of a large model behind the gateway as examples for a small one (IC-Cache)."""

from __future__ import annotations

from recollect.gateway.incontext.settings import ExamplesConfig, Served, build_examples

__all__ = ["ExamplesConfig", "Served", "build_examples"]
