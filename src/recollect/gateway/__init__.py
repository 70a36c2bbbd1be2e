"""The HTTP front: a response cache before any OpenAI- or Anthropic-compatible engine.

app = create_app(GatewayConfig(upstream="http://localhost:8000"))
"""

from __future__ import annotations

from recollect.gateway.app import create_app
from recollect.gateway.config import GatewayConfig, build_config, read_settings
from recollect.gateway.gateway import Gateway

__all__ = ["Gateway", "GatewayConfig", "build_config", "create_app", "read_settings"]
