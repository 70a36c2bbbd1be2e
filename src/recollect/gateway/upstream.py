"""The way up: one HTTP connection pool, bytes and headers as they come, errors in our words.

aiohttp, because it adds the least to a request of the clients measured (benchmarks/
gateway_latency.py); bodies are never decompressed or read on the way.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from yarl import URL

from recollect.gateway import headers as hd
from recollect.gateway.config import GatewayConfig
from recollect.gateway.refusals import Refusal

# Most servers drop idle connections after five seconds or more; ours go first.
_IDLE_SECONDS = 4.0
_NOT_ADDED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


@dataclass(frozen=True)
class Head:
    """Status and headers of an upstream's response, fit to be passed on."""

    status: int
    headers: hd.Pairs

    @property
    def encoding(self) -> str:
        return hd.find(self.headers, "content-encoding").strip().lower()

    @property
    def streams(self) -> bool:
        return hd.find(self.headers, "content-type").startswith("text/event-stream")


class Response:
    """A response whose body has not been read. `chunks` raises Refusal when it breaks off."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.head = Head(response.status, hd.downwards(response.headers.items()))

    async def read(self) -> bytes:
        """The whole body."""
        with _told():
            return await self._response.read()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives."""
        with _told():
            async for chunk in self._response.content.iter_any():
                yield chunk


class Upstream:
    """Connections to every upstream; open it within the event loop that uses it."""

    def __init__(self, config: GatewayConfig) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=config.connect_seconds, sock_read=config.read_seconds
            ),
            skip_auto_headers=_NOT_ADDED,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    @asynccontextmanager
    async def open(
        self,
        method: str,
        url: str,
        headers: hd.Pairs,
        body: bytes | AsyncIterator[bytes] | None = None,
    ) -> AsyncIterator[Response]:
        """Send a request and wait for the head of the response.

        Raises Refusal (502 or 504) when there is none.
        """
        with _told():
            response = await self._session.request(
                method, URL(url, encoded=True), headers=headers, data=body, allow_redirects=False
            )
        try:
            yield Response(response)
        finally:
            # Closes the connection unless the body was read to its end: an abandoned
            # generation stops costing the upstream anything.
            response.close()

    async def close(self) -> None:
        """Drop all connections."""
        await self._session.close()


class _told:
    """Errors of the HTTP client as Refusals."""

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, aiohttp.ServerTimeoutError | asyncio.TimeoutError):
            raise Refusal(504, "the upstream did not answer in time", "upstream_timeout") from error
        if isinstance(error, aiohttp.ClientConnectorError):
            raise Refusal(502, "the upstream cannot be reached", "upstream_unreachable") from error
        if isinstance(error, aiohttp.ClientError | OSError):
            raise Refusal(502, "the upstream broke the connection", "upstream_broke") from error


def decoder(encoding: str) -> Callable[[bytes], bytes] | None:
    """Undoes a content encoding piece by piece; None for one that is not known."""
    if encoding in ("", "identity"):
        return lambda data: data
    if encoding in ("gzip", "x-gzip", "deflate"):
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress  # reads either header
    return None
