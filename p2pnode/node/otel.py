"""Spans and GenAI metrics through OpenTelemetry's SDK, sent by OTLP over HTTP to what the OTEL_* variables name.

Imported only where the owner asked for traces: the SDK is the extra `p2pnode[otel]`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from p2pnode import __version__, limits
from p2pnode.errors import ConfigError
from p2pnode.tracing import Attributes, Kind, Measure, Span, Tracing

if TYPE_CHECKING:
    from opentelemetry.trace import Span as SdkSpan

PROVIDER = "p2pnode"
_HTTP = "http/protobuf"
_MEASURES: Mapping[Measure, tuple[str, str, tuple[float, ...]]] = {
    "time_to_first_token": (
        "gen_ai.server.time_to_first_token",
        "From the request to its first text.",
        (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
    ),
    "time_per_output_token": (
        "gen_ai.server.time_per_output_token",
        "Decoding time of a token after the first.",
        (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5),
    ),
    "request_duration": (
        "gen_ai.server.request.duration",
        "From the request to its last text.",
        (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
    ),
}
"""Name, words and bounds in seconds, as the semantic conventions for generative AI have them."""


class OtelSpan:
    def __init__(self, span: SdkSpan, traceparent: str) -> None:
        self._span = span
        self._traceparent = traceparent

    @property
    def traceparent(self) -> str:
        return self._traceparent

    def note(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def end(self, error: str = "") -> None:
        if error:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end()


class OtelTracing:
    """Providers of this node's own, none of them the process's global one, so that several nodes share a process."""

    is_on = True

    def __init__(self, *, peer: str, name: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        found: dict[str, Any] = {"service.instance.id": peer, "service.version": __version__}
        if not _names_a_service(os.environ):
            found["service.name"] = PROVIDER
        resource = Resource.create({**found, "p2pnode.device": name})
        self._traces = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._traces.get_tracer(PROVIDER, __version__)
        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        self._metrics = MeterProvider(metric_readers=[reader], resource=resource, shutdown_on_exit=False)
        meter = self._metrics.get_meter(PROVIDER, __version__)
        self._histograms = {
            measure: meter.create_histogram(
                name, unit="s", description=words, explicit_bucket_boundaries_advisory=bounds
            )
            for measure, (name, words, bounds) in _MEASURES.items()
        }
        self._propagator = TraceContextTextMapPropagator()

    def now_ns(self) -> int:
        return time.time_ns()

    def begin(
        self, name: str, parent: str = "", attributes: Attributes | None = None, *, kind: Kind = "internal"
    ) -> Span:
        from opentelemetry.trace import SpanKind, set_span_in_context

        span = self._tracer.start_span(
            name, self._context(parent), kind=SpanKind[kind.upper()], attributes=attributes
        )
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        return OtelSpan(span, carrier.get("traceparent", ""))

    def past(self, name: str, parent: str, begun_ns: int, ended_ns: int, attributes: Attributes) -> None:
        span = self._tracer.start_span(
            name, self._context(parent), attributes=attributes, start_time=begun_ns
        )
        span.end(max(begun_ns, ended_ns))

    def _context(self, parent: str) -> Any:
        from opentelemetry.context import Context

        return self._propagator.extract({"traceparent": parent}, Context()) if parent else Context()

    def observe(self, measure: Measure, seconds: float, attributes: Attributes) -> None:
        self._histograms[measure].record(seconds, attributes)

    def close(self) -> None:
        """Send what waits; a collector that does not answer holds nobody up for long."""
        threads = [
            threading.Thread(target=provider.shutdown, name="otel shutdown", daemon=True)
            for provider in (self._traces, self._metrics)
        ]
        for thread in threads:
            thread.start()
        end_s = time.monotonic() + limits.TRACES_CLOSE_S_MAX
        for thread in threads:
            thread.join(max(0.0, end_s - time.monotonic()))


def _names_a_service(environ: Mapping[str, str]) -> bool:
    resource = environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return bool(environ.get("OTEL_SERVICE_NAME")) or "service.name=" in resource


def open_tracing(*, peer: str, name: str, environ: Mapping[str, str] = os.environ) -> OtelTracing:
    """Raises: ConfigError where the SDK is not installed, or a variable asks for what it does not speak."""
    for variable in ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"):
        if environ.get(variable, _HTTP) != _HTTP:
            raise ConfigError(
                f"{variable} is {environ[variable]!r}: traces are sent by OTLP over HTTP only",
                hint=f"set it to {_HTTP}, and the endpoint to the collector's port for HTTP, mostly 4318",
            )
    try:
        return OtelTracing(peer=peer, name=name)
    except ImportError:
        raise ConfigError(
            "traces need OpenTelemetry's SDK, which is not installed",
            hint="pip install 'p2pnode[otel]', or start without --traces",
        ) from None


__all__ = ["OtelTracing", "Tracing", "open_tracing"]
