"""What the people who run the gateway may do: see figures, read the audit log, purge."""

from __future__ import annotations

import re
from itertools import islice
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from recollect.errors import GatewayError, RecipeError, StoreError
from recollect.gateway import documents
from recollect.gateway.asked import read_body
from recollect.gateway.gateway import Gateway
from recollect.gateway.protocols import Chat
from recollect.gateway.refusals import Refusal
from recollect.gateway.replies import refuse

CRITERIA: dict[str, tuple[type, ...]] = {
    "key": (str,),
    "scope": (str,),
    "writer": (str,),
    "before": (int, float),
    "everything": (bool,),
}
_BODY_LIMIT = 1 << 16


class Admin:
    """The endpoints below `/recollect`, for holders of the admin key."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def figures(self, request: Request) -> Response:
        """Figures for the dashboard."""
        return await self._guarded(request, self._figures)

    async def audit(self, request: Request) -> Response:
        """The latest lines of the audit log, and whether its chain holds."""
        return await self._guarded(request, self._audit)

    async def purge(self, request: Request) -> Response:
        """Remove stored answers, or say which would go."""
        return await self._guarded(request, self._purge)

    async def replay(self, request: Request) -> Response:
        """Make the answers of examples again that promise most, and keep the better ones."""
        return await self._guarded(request, self._replay)

    async def metrics(self, request: Request) -> Response:
        """Prometheus's page."""
        gateway = self._gateway
        if gateway.config.metrics == "admin" and not gateway.callers.is_admin(request.headers):
            return refuse(Chat(), _not_admin())
        return Response(gateway.metrics.page(), media_type="text/plain; version=0.0.4")

    async def _guarded(self, request: Request, act: Any) -> Response:
        try:
            if not self._gateway.callers.is_admin(request.headers):
                raise _not_admin()
            return JSONResponse(await act(request))
        except Refusal as refusal:
            return refuse(Chat(), refusal)
        except RecipeError as error:
            return refuse(Chat(), Refusal(400, str(error), "invalid_request"))
        except StoreError as error:
            return refuse(Chat(), Refusal(503, str(error), "store_unavailable"))

    async def _figures(self, request: Request) -> dict[str, Any]:
        gateway = self._gateway
        stats = await gateway.cache.run(gateway.cache.answers.stats)
        spent = {name: vars(account) for name, account in gateway.budgets.spent().items()}
        return {
            **gateway.board.as_dict(),
            "now": gateway.clock.now(),
            "answers": stats,
            "accounts": spent,
            "examples": gateway.routes.figures() if gateway.routes is not None else None,
            "flights": len(gateway.flights),
            "load": gateway.load_of_busiest(),
            "upstream": gateway.config.upstream,
            "scope": gateway.config.scope,
            "recipe": str(gateway.config.recipe),
        }

    async def _audit(self, request: Request) -> dict[str, Any]:
        text = request.query_params.get("limit", "100")
        if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= 10_000):
            raise Refusal(400, "limit is a number from 1 to 10000", "invalid_request")
        ledger = self._gateway.cache.answers.ledger

        def read() -> dict[str, Any]:
            events = list(ledger)
            verified = ledger.verify()
            return {
                "events": list(islice(reversed(events), int(text))),
                "lines": verified.lines,
                "head": verified.head,
                "intact": verified.broken_at is None,
            }

        return await self._gateway.cache.run(read)

    async def _purge(self, request: Request) -> dict[str, Any]:
        body = await read_body(request, _BODY_LIMIT)
        try:
            asked = documents.load_object(body)
        except Exception as error:
            raise Refusal(400, f"the request is {error}", "invalid_json") from None
        dry_run = asked.pop("dry_run", True)
        for name, value in asked.items():
            if name not in CRITERIA:
                known = ", ".join((*CRITERIA, "dry_run"))
                raise Refusal(400, f"unknown field '{name}'; there are: {known}", "invalid_request")
            fits = isinstance(value, CRITERIA[name])
            if not fits or (isinstance(value, bool) and name != "everything"):
                raise Refusal(400, f"'{name}' has the wrong type", "invalid_request")
        if not asked.get("everything", True):
            raise Refusal(400, "'everything' must be true", "invalid_request")
        if "key" in asked and not re.fullmatch("[0-9a-f]{64}", asked["key"]):
            raise Refusal(400, "'key' is no key: 64 hexadecimal digits", "invalid_request")
        if not isinstance(dry_run, bool):
            raise Refusal(400, "'dry_run' must be true or false", "invalid_request")
        answers = self._gateway.cache.answers
        purged = await self._gateway.cache.run(lambda: answers.purge(**asked, dry_run=dry_run))
        routes, examples = self._gateway.routes, 0
        if routes is not None:
            examples = await routes.run(lambda: routes.purge(dry_run, **asked))
        return {
            "count": len(purged),
            "examples": examples,
            "ids": list(purged.ids),
            "categories": dict(purged.categories),
            "dry_run": purged.dry_run,
        }

    async def _replay(self, request: Request) -> dict[str, Any]:
        refiner = self._gateway.refiner
        if refiner is None:
            raise Refusal(404, "this gateway keeps no examples", "not_found")
        try:
            return (await refiner.replay())._asdict()
        except Refusal:
            raise
        except GatewayError as error:
            raise Refusal(409, str(error), "nobody_judges") from None


def _not_admin() -> Refusal:
    return Refusal(401, "this needs the admin key, as 'Authorization: Bearer …'", "not_admin")
