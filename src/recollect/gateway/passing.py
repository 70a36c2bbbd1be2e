"""Everything that is not cached: models, files, audio … pass through with both bodies streaming."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response

from recollect.gateway import headers as hd
from recollect.gateway.gateway import Gateway
from recollect.gateway.protocols import Chat, Messages, Protocol
from recollect.gateway.refusals import Refusal
from recollect.gateway.replies import refuse, reply
from recollect.gateway.upstream import Response as Upwards


class Passing:
    """Hands requests up and answers down, untouched."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, request: Request) -> Response:
        """The upstream's answer."""
        pairs = hd.of_request(request.headers.raw)
        headers = dict(pairs)
        protocol: Protocol = Messages() if "anthropic-version" in headers else Chat()
        try:
            return await self._pass(request, pairs, headers, protocol)
        except Refusal as refusal:
            return refuse(protocol, refusal)

    async def _pass(
        self, request: Request, pairs: hd.Pairs, headers: dict[str, str], protocol: Protocol
    ) -> Response:
        gateway, config = self._gateway, self._gateway.config
        caller = gateway.callers.identify(headers)
        gateway.budgets.admit(caller.spends)
        path = request.scope.get("raw_path", request.url.path.encode()).decode("latin-1")
        query = request.scope.get("query_string", b"").decode("latin-1")
        url = config.address("", protocol.name) + path + (f"?{query}" if query else "")
        has_body = "content-length" in headers or "transfer-encoding" in headers
        up = hd.upwards(pairs, config.upstream_key, caller.known)
        if "content-length" in headers:
            up.append(("content-length", headers["content-length"]))
        opened = gateway.upstream.open(
            request.method, url, up, _body(request) if has_body else None
        )
        response = await opened.__aenter__()

        async def down(response: Upwards = response) -> AsyncIterator[bytes]:
            try:
                async for chunk in response.chunks():
                    yield chunk
            finally:
                await opened.__aexit__(None, None, None)

        return reply(response.head.status, response.head.headers, down())


async def _body(request: Request) -> AsyncIterator[bytes]:
    async for part in request.stream():
        if part:
            yield part
