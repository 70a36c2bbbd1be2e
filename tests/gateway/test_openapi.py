"""The OpenAPI document is true: what is drawn from it gets the answers that it promises."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from servers import Upstream, gateway_before, serving
from test_front import HTTP

from recollect.gateway.app import create_app
from recollect.gateway.config import GatewayConfig
from recollect.gateway.gateway import Gateway

schema = schemathesis.openapi.from_dict(
    create_app(gateway=Gateway(GatewayConfig(upstream="http://up"))).openapi()
)


@pytest.fixture(scope="module")
def address():
    upstream = Upstream()
    with (
        serving(upstream.app) as behind,
        gateway_before(behind, admin_key="root") as (found, _),
    ):
        yield found


@schema.parametrize()
@settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_answers_are_as_described(case, address):
    case.call_and_validate(
        base_url=address, headers={"authorization": "Bearer root", "accept-encoding": "identity"}
    )


def test_the_document_is_served_and_names_every_protocol(address):
    paths = HTTP.get(f"{address}/openapi.json").json()["paths"]
    for path in (
        "chat/completions",
        "completions",
        "responses",
        "embeddings",
        "messages",
        "models",
    ):
        assert f"/v1/{path}" in paths
    assert {"/recollect/purge", "/recollect/audit", "/metrics", "/healthz"} <= set(paths)
