"""OpenTelemetry spans, where the package is installed and the configuration asks for them.

A request's span goes on the client's trace (`traceparent`) and is the parent of the upstream's.
Texts of requests and answers are never put into a span.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from recollect.errors import GatewayError
from recollect.gateway.headers import Pairs


class Span(Protocol):
    """What is told about a piece of work."""

    def set_attribute(self, key: str, value: Any) -> None: ...


class Tracing:
    """Makes no spans."""

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str]) -> Iterator[Span | None]:
        """The span of a whole request."""
        yield None

    @contextmanager
    def step(self, name: str, within: Span | None) -> Iterator[None]:
        """A span within another."""
        yield

    def carried(self, headers: Pairs, span: Span | None) -> Pairs:
        """Headers for the upstream, which continue the trace at `span`."""
        return headers


class OpenTelemetry(Tracing):
    """Makes spans.

    Args:
        provider: a TracerProvider; the global one when None, which the SDK sets up from its
            environment variables.
    """

    def __init__(self, provider: Any = None) -> None:
        try:
            from opentelemetry import propagate, trace
        except ImportError as error:
            raise GatewayError(
                "tracing needs OpenTelemetry: pip install recollect[trace]"
            ) from error
        self._trace, self._propagate = trace, propagate
        self._tracer = trace.get_tracer("recollect.gateway", tracer_provider=provider)

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str]) -> Iterator[Span | None]:
        parent = self._propagate.extract(dict(headers))
        kind = self._trace.SpanKind.SERVER
        with self._tracer.start_as_current_span(name, context=parent, kind=kind) as span:
            yield span

    @contextmanager
    def step(self, name: str, within: Span | None) -> Iterator[None]:
        parent: Any = within
        context = self._trace.set_span_in_context(parent) if parent is not None else None
        with self._tracer.start_as_current_span(name, context=context):
            yield

    def carried(self, headers: Pairs, span: Span | None) -> Pairs:
        if span is None:
            return headers
        parent: Any = span
        carrier: dict[str, str] = {}
        self._propagate.inject(carrier, context=self._trace.set_span_in_context(parent))
        kept = [(name, value) for name, value in headers if name not in carrier]
        return [*kept, *carrier.items()]


def make_tracing(wanted: bool) -> Tracing:
    """Spans to where OTEL_EXPORTER_OTLP_ENDPOINT points, or none at all.

    Raises GatewayError when the packages are missing.
    """
    if not wanted:
        return Tracing()
    tracing = OpenTelemetry()
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise GatewayError("tracing needs OpenTelemetry: pip install recollect[trace]") from error
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        provider = TracerProvider(resource=Resource.create({"service.name": "recollect-gateway"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(provider)
    return tracing
