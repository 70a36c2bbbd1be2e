"""Which headers travel: everything but those of the single connection, and our own."""

from __future__ import annotations

from collections.abc import Iterable

# RFC 9110, 7.6.1: these speak of one connection, not of the message.
_CONNECTION = frozenset(
    (
        "connection",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
OWN = "x-recollect-"

Pairs = list[tuple[str, str]]


def upwards(headers: Pairs, upstream_key: str, ours: bool) -> Pairs:
    """Headers of a client as the upstream gets them.

    Args:
        headers: names in lower case.
        upstream_key: goes in place of the client's credentials, in the header that the client
            used; empty lets them through.
        ours: the client's credentials are a key of ours; without an `upstream_key` they are
            dropped rather than shown to the upstream.
    """
    hidden = {"authorization", "x-api-key"} if ours or upstream_key else set()
    kept = [
        (name, value)
        for name, value in headers
        if name not in _CONNECTION
        and name != "content-length"
        and name not in hidden
        and not name.startswith(OWN)
    ]
    if upstream_key and find(headers, "x-api-key"):
        kept.append(("x-api-key", upstream_key))
    elif upstream_key:
        kept.append(("authorization", f"Bearer {upstream_key}"))
    return kept


def downwards(headers: Iterable[tuple[str, str]]) -> Pairs:
    """Headers of the upstream as the client gets them."""
    return [
        (name, value)
        for name, value in headers
        if name.lower() not in _CONNECTION and not name.lower().startswith(OWN)
    ]


def of_request(pairs: Iterable[tuple[bytes, bytes]]) -> Pairs:
    """Headers of an ASGI request as text."""
    return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in pairs]


def find(headers: Iterable[tuple[str, str]], name: str) -> str:
    """The first value of a header, or an empty string."""
    return next((value for key, value in headers if key.lower() == name), "")
