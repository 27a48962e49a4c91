"""An OpenTelemetry collector for tests: takes OTLP over HTTP on loopback and keeps what came."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

WAIT_S_MAX = 30.0


@dataclass(frozen=True)
class SpanSeen:
    name: str
    trace: str
    span: str
    parent: str
    begun_ns: int
    ended_ns: int
    is_error: bool
    attributes: dict[str, Any]
    resource: dict[str, Any]


class Collector:
    def __init__(self) -> None:
        self.spans: list[SpanSeen] = []
        self.metrics: dict[str, dict[str, Any]] = {}
        """By name: the newest point's attributes, count and unit."""
        self.url = ""
        self._came = threading.Condition()

    def take_traces(self, raw: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(raw)
        with self._came:
            for batch in request.resource_spans:
                resource = _plain(batch.resource.attributes)
                for scope in batch.scope_spans:
                    self.spans += [_seen(span, resource) for span in scope.spans]
            self._came.notify_all()

    def take_metrics(self, raw: bytes) -> None:
        request = ExportMetricsServiceRequest.FromString(raw)
        with self._came:
            for batch in request.resource_metrics:
                for scope in batch.scope_metrics:
                    for metric in scope.metrics:
                        for point in metric.histogram.data_points:
                            row = {"count": point.count, "unit": metric.unit, **_plain(point.attributes)}
                            self.metrics[metric.name] = row
            self._came.notify_all()

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until what came satisfies; fails with all names that came."""
        with self._came:
            if not self._came.wait_for(holds, WAIT_S_MAX):
                names = [(span.name, span.resource.get("p2pnode.device")) for span in self.spans]
                raise AssertionError(f"it did not come: {names} {self.metrics}")

    def of(self, trace: str) -> dict[str, list[SpanSeen]]:
        """The spans of one trace by name."""
        found: dict[str, list[SpanSeen]] = {}
        for span in self.spans:
            if span.trace == trace:
                found.setdefault(span.name, []).append(span)
        return found


def _seen(span: Any, resource: dict[str, Any]) -> SpanSeen:
    return SpanSeen(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code == 2,
        _plain(span.attributes),
        resource,
    )


def _plain(attributes: Any) -> dict[str, Any]:
    found = {}
    for pair in attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        found[pair.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found


@contextmanager
def collector() -> Iterator[Collector]:
    made = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                raw = gzip.decompress(raw)
            {"/v1/traces": made.take_traces, "/v1/metrics": made.take_metrics}[self.path](raw)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
