"""The ASGI application: which path is whose, and the document that describes them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from recollect import __version__
from recollect.gateway import openapi
from recollect.gateway.admin import Admin
from recollect.gateway.config import GatewayConfig
from recollect.gateway.dashboard import page
from recollect.gateway.embedding import EmbeddingFront
from recollect.gateway.feedback import Feedback
from recollect.gateway.front import Front
from recollect.gateway.gateway import Gateway
from recollect.gateway.passing import Listing, Passing
from recollect.gateway.protocols import GENERATING

_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]


def create_app(config: GatewayConfig | None = None, gateway: Gateway | None = None) -> FastAPI:
    """The application of a configuration, or of a gateway made by hand."""
    if gateway is None:
        assert config is not None
        gateway = Gateway(config)
    parts = gateway

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await parts.start()
        yield
        await parts.stop()

    app = FastAPI(
        title="recollect gateway",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.state.gateway = gateway
    admin = Admin(gateway)
    for protocol in GENERATING:
        _add(app, "POST", protocol.path, Front(gateway, protocol))
    _add(app, "POST", "/v1/embeddings", EmbeddingFront(gateway))
    _add(app, "GET", "/v1/models", Listing(gateway))
    _add(app, "POST", "/recollect/feedback", Feedback(gateway))
    _add(app, "POST", "/recollect/purge", admin.purge)
    _add(app, "POST", "/recollect/replay", admin.replay)
    _add(app, "GET", "/recollect/figures", admin.figures)
    _add(app, "GET", "/recollect/audit", admin.audit)
    _add(app, "GET", "/metrics", admin.metrics)
    _add(app, "GET", "/healthz", _healthy)
    _add(app, "GET", "/recollect", _dashboard)
    app.add_route("/", _home, ["GET"])
    app.add_route("/v1/{path:path}", _plain(Passing(gateway)), _METHODS)
    return app


def _add(app: FastAPI, method: str, path: str, handle: Callable[..., Any]) -> None:
    """A route that reads and writes bytes itself and is described by `openapi`."""
    about = openapi.describe(method, path)
    app.add_api_route(
        path,
        _plain(handle),
        methods=[method],
        openapi_extra=about.pop("extra"),
        response_model=None,
        operation_id=f"{method.lower()}_{path.strip('/').replace('/', '_')}",
        **about,
    )


def _plain(handle: Callable[..., Any]) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        return await handle(request)

    return endpoint


async def _healthy(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _dashboard(request: Request) -> Response:
    return HTMLResponse(page(), headers={"content-security-policy": page_policy()})


async def _home(request: Request) -> Response:
    return RedirectResponse("/recollect")


def page_policy() -> str:
    """The dashboard loads nothing from elsewhere and is framed by nobody."""
    return (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; "
        "form-action 'none'"
    )
