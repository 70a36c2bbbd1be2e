"""The state of an in-context cache and what is done to it between requests: replay, purge, files.

`InContextCache` documents the arguments.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from recollect.answers.clock import Clock, SystemClock
from recollect.answers.encoders.base import Encoder, make_encoder
from recollect.answers.examples import saved
from recollect.answers.examples.example import Example
from recollect.answers.examples.manager import ExampleManager
from recollect.answers.examples.prompt import has_control_tokens
from recollect.answers.examples.results import Maintained
from recollect.answers.examples.router import Model, Router
from recollect.answers.examples.selector import Selector
from recollect.answers.identity import (
    Partition,
    RequestIdentity,
    identify,
    scope_digest,
    writer_digest,
)
from recollect.answers.index.growing import GrowingIndex
from recollect.errors import RecipeError


class Upkeep:
    """Selector, router and manager of examples, and what keeps them in order."""

    def __init__(
        self,
        models: Sequence[Model],
        *,
        recipe: str = "ic-cache",
        encoder: Encoder | str = "minilm",
        clock: Clock | None = None,
        scope: str = "user",
        secret: bytes | None = None,
        seed: int = 0,
        **arguments: Any,
    ) -> None:
        stages = _stages(recipe, arguments)
        self._encoder = make_encoder(encoder) if isinstance(encoder, str) else encoder
        self._clock = clock or SystemClock()
        self._scope, self._given_secret = scope, secret is not None
        self._secret = os.urandom(32) if secret is None else secret
        self._rng = np.random.default_rng(seed)
        self._lock = threading.RLock()
        self.selector = Selector(stages["selector"])
        self.router = Router(models, stages["router"])
        self.manager = ExampleManager(
            stages["manager"],
            self._clock,
            lambda: GrowingIndex(self._encoder.dim, self._encoder.encoder_id),
        )

    def __len__(self) -> int:
        return len(self.manager)

    def maintain(
        self,
        generate: Callable[[str], str],
        score: Callable[[str, str], float],
        *,
        limit: int = 10,
    ) -> Maintained:
        """In idle time: make answers again where that promises most, keep the better; evict.

        Does not replay while the load is above the router's threshold.

        Args:
            generate: the strong model's answer to a query.
            score: quality of an answer to a query; the new answer must have a higher one.
            limit: answers to make, at most.
        """
        with self._lock:
            idle = self.router.load <= self.router.policy.load_threshold
            due = self.manager.due()[:limit] if idle else []
        replayed = improved = 0
        for example in due:
            answer = generate(example.query)
            better = None
            if self._is_fit(example.query, answer) and (
                score(example.query, answer) > score(example.query, example.response)
            ):
                better = replace(example, response=answer, created_at=self._clock.now())
            vector = self._encoder.encode([answer])[0] if better else None
            with self._lock:
                if self.manager.replayed(example.id, better, vector):
                    replayed += 1
                    improved += better is not None
                    if better is not None:
                        self.selector.forget([example.id])
        with self._lock:
            gone = self.manager.evict()
            self.selector.forget(gone)
        return Maintained(replayed, improved, len(gone))

    def forget(self, request: Mapping[str, Any], *, protocol: str = "chat", scope_id: str) -> int:
        """Delete every example that could be shown for this request; returns how many."""
        partition = partition_of(self._identify(request, protocol, scope_id))
        with self._lock:
            return self.withdraw(*self.manager.ids(partition))

    def withdraw(self, *example_ids: int) -> int:
        """Delete examples by id; returns how many there were."""
        with self._lock:
            before = len(self.manager)
            self.manager.remove(example_ids)
            self.selector.forget(example_ids)
            return before - len(self.manager)

    def purge(
        self,
        *,
        key: str | None = None,
        scope: str | None = None,
        writer: str | None = None,
        before: float | None = None,
        everything: bool = False,
        dry_run: bool = True,
    ) -> tuple[int, ...]:
        """Delete all examples that match every criterion given, which are those of `Answers.purge`.

        Returns the ids that went, or would go. Raises RecipeError without a criterion.
        """
        if everything == any(given is not None for given in (key, scope, writer, before)):
            raise RecipeError("say what to purge: key, scope, writer, before, or everything=True")
        scope_key = None if scope is None else scope_digest(self._secret, self._scope, scope)
        writer_key = None if writer is None else writer_digest(self._secret, writer)
        with self._lock:
            ids = tuple(
                example.id
                for example in self.manager
                if (key is None or example.key == key)
                and (scope_key is None or example.scope_key == scope_key)
                and (writer_key is None or example.writer == writer_key)
                and (before is None or example.created_at < before)
            )
            if not dry_run:
                self.withdraw(*ids)
        return ids

    def save(self, path: str | Path) -> None:
        """Write examples, in plain text, and all that was learned. Raises StoreError."""
        with self._lock:
            state = {
                "encoder_id": self._encoder.encoder_id,
                "secret": "" if self._given_secret else self._secret.hex(),
                "selector": self.selector.state(),
                "router": self.router.state(),
                "manager": self.manager.state(),
                "rng": self._rng.bit_generator.state,
            }
            saved.write(path, state, self.manager.vectors(self._encoder.dim))

    def load(self, path: str | Path) -> None:
        """Go on from a file, in a cache that has no examples yet.

        Raises StoreError when it is missing, damaged, or of another encoder; the cache is then
        as it was. Raises RecipeError when there are examples already.
        """
        with self._lock:
            if len(self.manager):
                raise RecipeError("load examples into a new InContextCache")
            state, vectors = saved.read(path, self._encoder.encoder_id, self._encoder.dim)
            if not self._given_secret:
                self._secret = bytes.fromhex(state.get("secret", ""))
            self.selector.restore(state["selector"])
            self.router.restore(state["router"])
            self.manager.restore(state["manager"], vectors)
            self._rng.bit_generator.state = state["rng"]

    def _identify(
        self,
        request: Mapping[str, Any],
        protocol: str,
        scope_id: str,
        headers: Mapping[str, str] | None = None,
    ) -> RequestIdentity:
        return identify(
            request,
            protocol=protocol,
            scope=self._scope,
            scope_id=scope_id,
            secret=self._secret,
            headers=headers,
        )

    def _is_fit(self, query: str, response: str) -> bool:
        example = Example(0, (), query, response, "", 0.0)
        return (
            bool(query.strip() and response.strip())
            and example.tokens <= self.selector.policy.token_budget
            and not has_control_tokens(query + "\n" + response)
        )


def _stages(recipe: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    from recollect.answers import catalogue  # noqa: F401  (fills its part of the registry)
    from recollect.recipe import compose

    stages = compose(recipe).with_arguments(arguments).stages
    missing = {"selector", "router", "manager"} - set(stages)
    if missing:
        raise RecipeError(f"'{recipe}' has no stage '{min(missing)}'; use or add 'ic-cache'")
    return stages


def partition_of(identity: RequestIdentity) -> tuple[str, ...]:
    """Whose request it is: examples are shared by models and protocols, never by scopes."""
    partition = Partition(*identity.partition)
    return tuple(partition._replace(protocol="", wire="", model="", resolved_model=""))
