"""The errors recollect raises: each message is one line that says what to change."""

from __future__ import annotations


class RecollectError(Exception):
    """Base of every error this package raises on purpose."""


class RecipeError(RecollectError, ValueError):
    """A recipe name, stage or argument is unknown or out of range."""


class HostError(RecollectError, RuntimeError):
    """The model or engine cannot do what was asked; the message says why."""


class StoreError(RecollectError, OSError):
    """A file or tier is unreachable, full, or holds something that fails its checks."""


class GatewayError(RecollectError, RuntimeError):
    """The HTTP front cannot serve a request."""
