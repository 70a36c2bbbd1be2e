"""Replacement policies by name: which entry of a full cache goes next."""

from __future__ import annotations

import ast
import difflib
import re
from typing import Any

from recollect.core.replacement.base import Replacement
from recollect.core.replacement.gdsf import GDSF
from recollect.core.replacement.lfu import LFU
from recollect.core.replacement.lru import LRU
from recollect.core.replacement.s3fifo import S3FIFO
from recollect.core.replacement.sieve import SIEVE
from recollect.core.replacement.ttl import TTL
from recollect.errors import RecipeError

POLICIES: dict[str, type[Replacement]] = {
    "lru": LRU,
    "lfu": LFU,
    "s3fifo": S3FIFO,
    "sieve": SIEVE,
    "gdsf": GDSF,
    "ttl": TTL,
}

__all__ = ["GDSF", "LFU", "LRU", "POLICIES", "S3FIFO", "SIEVE", "TTL", "Replacement", "policy"]


def policy(spec: str, capacity: int) -> Replacement:
    """A policy by name, e.g. ``lru``, ``s3-fifo`` or ``ttl(seconds=600)``.

    Raises RecipeError for a name or an argument that does not exist.
    """
    match = re.fullmatch(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", spec)
    name = re.sub("[-_]", "", match[1].lower()) if match else spec
    if match is None or name not in POLICIES:
        near = difflib.get_close_matches(name, list(POLICIES), n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(POLICIES)}"
        raise RecipeError(f"unknown replacement policy '{spec}'{hint}")
    try:
        call = ast.parse(f"f({match[2] or ''})", mode="eval").body
        assert isinstance(call, ast.Call)
        arguments: dict[str, Any] = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        if call.args:
            raise ValueError("arguments need names")
        return POLICIES[name](capacity, **arguments)
    except (SyntaxError, TypeError, ValueError) as error:
        raise RecipeError(
            f"cannot read the arguments of replacement policy '{spec}'; write e.g. ttl(seconds=600)"
        ) from error
