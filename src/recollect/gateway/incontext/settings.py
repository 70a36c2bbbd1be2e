"""What the gateway can be told about examples and routing; the part `examples` of its settings.

examples:
  model: auto
  models:
    small: {cost: 1}
    large: {cost: 8, strong: true}
  folder: examples/
  judge: large
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from recollect.errors import GatewayError


@dataclass(frozen=True)
class Served:
    """One model that requests may go to: what it costs, and whether others may learn from it."""

    name: str
    cost: float = 1.0
    strong: bool = False


@dataclass(frozen=True)
class ExamplesConfig:
    """Examples and routing.

    Attributes:
        models: that requests may go to, the address of each as `GatewayConfig.models` says.
        model: what a request calls its model to be routed.
        recipe, arguments: of `InContextCache`.
        encoder: of queries and answers, ``ngram`` or ``minilm``.
        folder: where examples are kept, one file for each tenant; empty forgets them at the end.
        ttl: seconds after which an example is deleted.
        judge: the model that rates answers; empty: only clients do, and nothing is replayed.
        replay_seconds: between two replays of what promises most; 0 replays only when told to.
        replays: answers made again each time, for each tenant.
    """

    models: tuple[Served, ...]
    model: str = "auto"
    recipe: str = "ic-cache"
    encoder: str = "minilm"
    folder: str = ""
    ttl: float = 604_800.0
    judge: str = ""
    replay_seconds: float = 600.0
    replays: int = 10
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [served.name for served in self.models]
        if not any(served.strong for served in self.models):
            raise GatewayError("examples: one of the models must be strong, to learn from")
        if not self.model or self.model in names:
            raise GatewayError(
                f"examples: '{self.model}' is what requests to be routed call their model, "
                "so it must be the name of none"
            )
        if not all(served.cost > 0 for served in self.models):
            raise GatewayError("examples: every model needs a cost above 0")
        if not self.ttl > 0 or self.replay_seconds < 0 or self.replays < 0:
            raise GatewayError("examples: ttl must be above 0, replays not below")

    @property
    def strong(self) -> str:
        """The cheapest strong model: it gets what must not be routed."""
        return min((one for one in self.models if one.strong), key=lambda one: one.cost).name


def build_examples(found: Any) -> ExamplesConfig:
    """The settings in plain values, as YAML has them. Raises GatewayError."""
    if not isinstance(found, Mapping):
        raise GatewayError("examples: write a mapping with models: {small: {cost: 1}, …}")
    known = {one.name for one in fields(ExamplesConfig)}
    if unknown := sorted(found.keys() - known):
        raise GatewayError(
            f"examples: unknown setting '{unknown[0]}'; there are: {', '.join(sorted(known))}"
        )
    models = found.get("models")
    if not isinstance(models, Mapping) or not models:
        raise GatewayError("examples: models are missing; write models: {small: {cost: 1}, …}")
    try:
        served = tuple(Served(str(name), **(about or {})) for name, about in models.items())
        return ExamplesConfig(**{**found, "models": served})
    except TypeError as error:
        raise GatewayError(f"examples: not readable: {error}") from error
