"""An HTTP answer that is an error of ours, in words that say what to change."""

from __future__ import annotations

from collections.abc import Mapping

from recollect.errors import GatewayError


class Refusal(GatewayError):
    """Becomes an error document of the protocol the client speaks.

    Args:
        status: HTTP status.
        message: one line for the client.
        code: machine-readable, as in OpenAI's `error.code`.
        headers: to send along.
    """

    def __init__(
        self, status: int, message: str, code: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})
