"""One upstream for all tests, and gateways in front of it as each test wants them."""

from __future__ import annotations

import contextlib

import pytest
from servers import Upstream, gateway_before, serving


@pytest.fixture(scope="session")
def upstream_server():
    upstream = Upstream()
    with serving(upstream.app) as address:
        yield upstream, address


@pytest.fixture
def upstream(upstream_server):
    found, _ = upstream_server
    found.reset()
    return found


@pytest.fixture
def start(upstream, upstream_server):
    """Start a gateway with these settings; (address, gateway)."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(gateway_before(upstream_server[1], **settings))


@pytest.fixture
def address(start):
    """Address of a gateway with default settings."""
    return start()[0]
