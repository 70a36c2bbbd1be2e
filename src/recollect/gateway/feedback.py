"""How good an answer was, told by who got it: what routing and examples learn from.

POST /recollect/feedback {"answer": "<x-recollect-answer>", "quality": 0.9}
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from recollect.errors import GatewayError
from recollect.gateway import documents
from recollect.gateway import headers as hd
from recollect.gateway.asked import read_body
from recollect.gateway.gateway import Gateway
from recollect.gateway.protocols import Chat
from recollect.gateway.refusals import Refusal
from recollect.gateway.replies import refuse

_BODY_LIMIT = 1 << 12


class Feedback:
    """Takes ratings of routed answers from those who share the answer's scope."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, request: Request) -> Response:
        """Learn from one rating."""
        try:
            return JSONResponse(await self._take(request))
        except Refusal as refusal:
            return refuse(Chat(), refusal)

    async def _take(self, request: Request) -> dict[str, bool]:
        gateway = self._gateway
        caller = gateway.callers.identify(dict(hd.of_request(request.headers.raw)))
        body = await read_body(request, _BODY_LIMIT)
        try:
            asked = documents.load_object(body)
        except GatewayError as error:
            raise Refusal(400, f"the request is {error}", "invalid_json") from None
        answer: Any = asked.get("answer")
        quality: Any = asked.get("quality")
        if not isinstance(answer, str):
            raise Refusal(400, "'answer' must be an x-recollect-answer", "invalid_request")
        number = isinstance(quality, int | float) and not isinstance(quality, bool)
        if not number or not 0 <= quality <= 1:
            raise Refusal(400, "'quality' must be a number from 0 to 1", "invalid_request")
        route = gateway.routes.ratable(answer, caller) if gateway.routes is not None else None
        if route is None or gateway.refiner is None:
            raise Refusal(404, "no answer of yours that can be rated has this id", "not_found")
        await gateway.refiner.rate(route, float(quality))
        return {"learned": True}
