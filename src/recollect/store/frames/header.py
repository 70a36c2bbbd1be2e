"""What a frame says about itself, and the checks every such claim passes before it is believed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from recollect.errors import StoreError
from recollect.store.exactness import Exactness

JSON: TypeAlias = bool | int | float | str | list["JSON"] | dict[str, "JSON"] | None
Form = Literal["post-rope", "pre-rope"]

FORMS = ("post-rope", "pre-rope")
MOST = 2**40  # tokens, positions, layers, channels: more than any model has, and no overflow


@dataclass(frozen=True)
class FrameHeader:
    """The claims of a frame.

    Attributes:
        model: fingerprint of the model that computed it; another model's frames are refused.
        tokens: how many tokens it covers.
        first_position: position of the first of them in its sequence.
        exactness: how far the content is from a full prefill.
        form: whether keys were stored after or before their rotation.
        codec: ``dense``, ``int8`` …, ``cachegen-0`` …, ``state``: who reads the sections.
        layers: number of layers in it.
        facts: what the codec, or whoever wrote the frame, notes besides; plain JSON.
    """

    model: str
    tokens: int
    first_position: int = 0
    exactness: Exactness = Exactness.EXACT
    form: Form = "post-rope"
    codec: str = "dense"
    layers: int = 0
    facts: Mapping[str, JSON] = field(default_factory=dict)

    @property
    def is_exact(self) -> bool:
        """Whether decoding gives what a full prefill would: exact content, lossless codec."""
        return self.exactness is Exactness.EXACT and self.codec in ("dense", "state")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, read back by `from_dict`."""
        return {
            "model": self.model,
            "tokens": self.tokens,
            "first_position": self.first_position,
            "exactness": str(self.exactness),
            "form": self.form,
            "codec": self.codec,
            "layers": self.layers,
            "facts": dict(self.facts),
        }

    @classmethod
    def from_dict(cls, claims: Mapping[str, Any]) -> FrameHeader:
        """Read and check. Raises StoreError naming the first claim that cannot be."""
        form = claim(claims, "form", str)
        if form not in FORMS:
            raise StoreError(f"the frame's keys are '{form}'; known forms: {', '.join(FORMS)}")
        return cls(
            model=claim(claims, "model", str),
            tokens=count(claims, "tokens"),
            first_position=count(claims, "first_position"),
            exactness=Exactness.read(claims.get("exactness")),
            form=form,
            codec=claim(claims, "codec", str),
            layers=count(claims, "layers"),
            facts=claim(claims, "facts", dict),
        )


def claim(claims: Mapping[str, Any], name: str, kind: type) -> Any:
    """``claims[name]`` if it is exactly of that type (True is no int). Raises StoreError."""
    value = claims.get(name)
    if type(value) is not kind:
        raise StoreError(f"the frame's header has no valid '{name}': not a {kind.__name__}")
    return value


def count(claims: Mapping[str, Any], name: str) -> int:
    """``claims[name]`` as a number from 0 to 2**40. Raises StoreError."""
    value: int = claim(claims, name, int)
    if not 0 <= value <= MOST:
        raise StoreError(f"the frame's header claims {name} = {value}, which cannot be")
    return value


def dump(value: Mapping[str, Any]) -> bytes:
    """JSON bytes. Raises StoreError for what JSON cannot say."""
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"a frame's facts must be plain JSON: {error}") from error


def load(data: bytes) -> dict[str, Any]:
    """The JSON object in those bytes. Raises StoreError for anything else."""
    refuse: Callable[[str], Any] = _refuse
    try:
        value = json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise StoreError("the frame's header is not readable as JSON") from error
    if type(value) is not dict:
        raise StoreError("the frame's header is not a JSON object")
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
