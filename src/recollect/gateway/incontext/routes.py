"""Where requests to be routed go and what they are shown; what is learned from their answers.

One in-context cache for each tenant, so that nobody's feedback shifts another's choices; without
tenants, or where all share, there is one. Examples never leave their scope in either case.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from recollect.answers.clock import Clock
from recollect.answers.encoders.base import make_encoder
from recollect.answers.examples import InContextCache, Model, Observed, Used
from recollect.errors import GatewayError, StoreError
from recollect.gateway import documents
from recollect.gateway.asked import Asked
from recollect.gateway.board import Board
from recollect.gateway.callers import Caller
from recollect.gateway.config import GatewayConfig
from recollect.gateway.protocols import Protocol

log = logging.getLogger("recollect.gateway")

T = TypeVar("T")

_RATABLE = 4_000  # answers that can still be rated, the latest


@dataclass
class Route:
    """How one request goes up.

    Attributes:
        model: that it goes to.
        examples, tokens: shown to the model, and what they add by estimate.
        id: under which a client may rate the answer.
        wants_feedback: whether that would teach something.
        tenant: whose cache it is of.
        scope_id: who may rate it.
        used: what the cache needs to learn from the answer.
        dropped: nothing is to be learned from it.
        entry_id, example_id: under which the answer is stored, and serves as an example.
    """

    model: str
    examples: int
    tokens: int
    wants_feedback: bool
    tenant: str
    scope_id: str
    used: Used = field(repr=False)
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    dropped: bool = False
    entry_id: int | None = None
    example_id: int | None = None


class Routes:
    """The in-context caches of one gateway, from its event loop.

    Raises GatewayError when files of examples cannot be read, or their folder not made.
    """

    def __init__(self, config: GatewayConfig, clock: Clock, board: Board) -> None:
        assert config.examples is not None
        self.settings = config.examples
        self._config, self._clock, self._board = config, clock, board
        self._encoder = make_encoder(self.settings.encoder)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recollect-examples")
        self._caches: dict[str, InContextCache] = {}
        self._ratable: OrderedDict[str, Route] = OrderedDict()
        self._folder = Path(self.settings.folder) if self.settings.folder else None
        self._make("all")  # wrong arguments are told now
        if self._folder is not None:
            self._load(self._folder)

    def __len__(self) -> int:
        return sum(map(len, self.caches))

    @property
    def caches(self) -> list[InContextCache]:
        """Those of all tenants."""
        return list(self._caches.values())

    def serves(self, model: str) -> bool:
        """Whether requests to this model are routed."""
        return model == self.settings.model

    def watches(self, model: str) -> bool:
        """Whether answers of this model, asked for by its name, become examples."""
        return any(one.strong and one.name == model for one in self.settings.models)

    async def warm(self) -> None:
        """Load the encoder now rather than at the first request."""
        await self.run(lambda: self._encoder.encode(["warm-up"]))

    async def plan(
        self, asked: Asked, protocol: Protocol, load: float, bound: bool
    ) -> tuple[Route, list[bytes]]:
        """Choose the model and the examples of a request.

        The bodies that may go up: the second one, without examples, where those of the first were
        too much for the model.

        Args:
            load: of the strong model's upstream.
            bound: the request leaves or uses something at the provider, which must not be
                another one each time.
        """
        tenant = self._tenant(asked.caller)
        prepared = await self.run(
            lambda: self._of(tenant).prepare(
                asked.document,
                **_about(asked, protocol),
                load=load,
                show=not asked.directives.fresh,
                model=self.settings.strong if bound else None,
            )
        )
        used = prepared.used
        route = Route(
            model=used.model.name,
            examples=len(used.examples),
            tokens=used.tokens,
            wants_feedback=used.wants_feedback,
            tenant=tenant,
            scope_id=asked.caller.scope_id,
            used=used,
        )
        self._ratable[route.id] = route
        if len(self._ratable) > _RATABLE:
            self._ratable.popitem(last=False)
        self._board.route(route.model, route.examples, route.tokens)
        bodies = [_rewritten(asked, prepared.request)]
        if route.examples:
            bodies.append(_rewritten(asked, {**asked.document, "model": route.model}))
        return route, bodies

    async def learn(self, route: Route, text: str | None) -> Observed:
        """An answer is there; `text` where it may be shown to others of its scope."""
        cache = self._caches[route.tenant]
        observed = await self.run(lambda: cache.observe(route.used, response=text))
        route.example_id = observed.example_id
        route.used = replace(route.used, query="")  # it may be long, and rating needs no text
        return observed

    async def watch(self, asked: Asked, protocol: Protocol, text: str) -> Observed:
        """A strong model, asked for by its name, answered with a text that may be shown."""

        def learn() -> Observed:
            cache = self._of(self._tenant(asked.caller))
            about = _about(asked, protocol)
            used = cache.prepare(asked.document, **about, show=False, model=asked.model).used
            return cache.observe(used, response=text)

        return await self.run(learn)

    def drop(self, route: Route) -> None:
        """There was no answer, or not to what was planned: there is nothing to rate."""
        route.dropped = True
        self._ratable.pop(route.id, None)

    def ratable(self, answer_id: str, caller: Caller) -> Route | None:
        """The route of an answer that this caller may rate."""
        route = self._ratable.get(answer_id)
        return route if route is not None and route.scope_id == caller.scope_id else None

    async def rate(self, route: Route, quality: float) -> bool:
        """Somebody says how good an answer was: once. Whether it was good enough to be kept."""
        if self._ratable.pop(route.id, None) is None:
            return True
        cache = self._caches[route.tenant]
        await self.run(lambda: cache.observe(route.used, quality=quality))
        self._board.rate(route.model, quality)
        good = quality >= cache.manager.policy.success
        route.dropped = not good
        if not good and route.example_id is not None:
            example_id = route.example_id
            await self.run(lambda: cache.withdraw(example_id))
        return good

    def purge(self, dry_run: bool, **criteria: Any) -> int:
        """Delete examples as `Answers.purge` does answers; how many. Files are written anew."""
        found = sum(len(cache.purge(**criteria, dry_run=dry_run)) for cache in self.caches)
        if not dry_run:
            self.save()
        return found

    def expire(self) -> None:
        """Delete what is too old."""
        for cache in self.caches:
            cache.purge(before=self._clock.now() - self.settings.ttl, dry_run=False)

    def save(self) -> None:
        """Write every tenant's examples. Raises StoreError."""
        if self._folder is not None:
            for tenant, cache in list(self._caches.items()):
                cache.save(self._folder / f"{tenant}.npz")

    def figures(self) -> dict[str, Any]:
        """For the dashboard."""
        return {
            "model": self.settings.model,
            "examples": len(self),
            "bytes": sum(cache.manager.size for cache in self.caches),
            "tenants": len(self._caches),
        }

    async def run(self, work: Callable[[], T]) -> T:
        """Anything else, in the thread of the examples."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def close(self) -> None:
        """Finish what is under way and save."""
        try:
            await self.run(self.save)
        except StoreError as error:
            log.error("%s; what was learned since the last time is lost", error)
        await asyncio.to_thread(self._thread.shutdown)

    def _tenant(self, caller: Caller) -> str:
        """What stands for the tenant whose cache it is; also the name of its file."""
        shared = self._config.scope == "global" or not self._config.keys
        return "all" if shared else hashlib.sha256(caller.tenant.encode()).hexdigest()[:32]

    def _of(self, tenant: str) -> InContextCache:
        if tenant not in self._caches:
            self._caches[tenant] = self._make(tenant)
        return self._caches[tenant]

    def _make(self, tenant: str) -> InContextCache:
        settings = self.settings
        return InContextCache(
            [Model(one.name, one.cost, one.strong) for one in settings.models],
            recipe=settings.recipe,
            encoder=self._encoder,
            clock=self._clock,
            scope=self._config.scope,
            secret=self._config.secret or None,
            seed=int.from_bytes(hashlib.sha256(tenant.encode()).digest()[:8], "big"),
            **settings.arguments,
        )

    def _load(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GatewayError(f"examples: cannot make {folder}: {error.strerror}") from error
        for path in sorted(folder.glob("*.npz")):
            cache = self._make(path.stem)
            try:
                cache.load(path)
            except StoreError as error:
                raise GatewayError(f"examples: {error}") from error
            self._caches[path.stem] = cache


def _about(asked: Asked, protocol: Protocol) -> dict[str, Any]:
    """Who asks what, for `InContextCache.prepare`."""
    return {
        "protocol": protocol.name,
        "scope_id": asked.caller.scope_id,
        "user": asked.caller.id,
        "headers": asked.headers,
    }


def _rewritten(asked: Asked, request: Any) -> bytes:
    """The body with what the cache changed; every other member as it was written."""
    changed = {
        name: documents.dump(value).decode()
        for name, value in request.items()
        if value is not asked.document.get(name)
    }
    if not changed:
        return asked.body
    members = {**documents.members(asked.body.decode()), **changed}
    pairs = (f"{documents.dump(name).decode()}:{text}" for name, text in members.items())
    return f"{{{','.join(pairs)}}}".encode()
