"""GET /metrics: what the API measures itself, and what the projections count, in Prometheus' text format.

Each application has its own registry, so that several nodes run in one process.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import suppress
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily

from p2pnode import __version__
from p2pnode.api.sse import close
from p2pnode.errors import StateRebuilding
from p2pnode.facade import Finished, GenerateEvent, GenerateRequest, NodeFacade, TextDelta
from p2pnode.limits import PLAN_DEVICES_MAX

disable_created_metrics()  # type: ignore[no-untyped-call] # the library has no types here
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FIRST_TOKEN_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60)
_PER_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)


class _Projections:
    """The node's own counts as a collector, asked at each scrape."""

    def __init__(self, node: NodeFacade) -> None:
        self._node = node

    def collect(self) -> Iterable[Metric]:
        with suppress(StateRebuilding):  # nothing can be counted yet but what the API measures itself
            yield from [
                *map(_family, self._node.metrics().get("metrics", [])),
                *_links(self._node),
                _hops(self._node),
            ]


def _links(node: NodeFacade) -> Iterable[Metric]:
    """Round trips and bytes of each live link; a peer is named by the end of its id, and there are few."""
    rtt = GaugeMetricFamily("p2pnode_link_rtt_seconds", "Round trip to a peer.", labels=["peer"])
    moved = CounterMetricFamily("p2pnode_link_bytes", "Bytes over a link.", labels=["peer", "direction"])
    view = node.peers()
    for peer in [row for row in view.get("peers", []) if not row.get("self")][:PLAN_DEVICES_MAX]:
        name = str(peer["peer"])[-8:]
        if isinstance(peer.get("rtt_ms"), int | float):
            rtt.add_metric([name], peer["rtt_ms"] / 1000)
        for direction in ("sent", "received"):
            if isinstance(peer.get(f"bytes_{direction}"), int):
                moved.add_metric([name, direction], peer[f"bytes_{direction}"])
    works = GaugeMetricFamily(
        "p2pnode_link_reachable",
        "Whether one side reaches the other by itself.",
        labels=["peer", "direction"],
    )
    ways = [way for link in view.get("links", []) for way in link["directions"]]
    for way in [way for way in ways if node.peer_id in (way["from"], way["to"])][: 2 * PLAN_DEVICES_MAX]:
        is_out = way["from"] == node.peer_id
        if way["state"] in ("ok", "unreachable"):
            labels = [str(way["to" if is_out else "from"])[-8:], "out" if is_out else "in"]
            works.add_metric(labels, float(way["state"] == "ok"))
    yield rtt
    yield moved
    yield works


def _hops(node: NodeFacade) -> Metric:
    """Computing time of each hop of the plans this node leads; a stage is named by its number."""
    hop = SummaryMetricFamily(
        "p2pnode_hop_seconds",
        "Computing time of one step of a stage, of plans this node leads.",
        labels=["stage"],
    )
    for stage, (steps, compute_ns) in node.hops()["totals"].items():
        hop.add_metric([stage], steps, compute_ns / 1e9)
    return hop


def _family(family: Mapping[str, Any]) -> Metric:
    if family["type"] == "summary":
        summary = SummaryMetricFamily(family["name"], family["help"], labels=[])
        for sample in family["samples"]:
            summary.add_metric([], sample["count"], sample["value"])
        return summary
    labels = sorted({label for sample in family["samples"] for label in sample["labels"]})
    kind = CounterMetricFamily if family["type"] == "counter" else GaugeMetricFamily
    metric = kind(family["name"], family["help"], labels=labels)
    for sample in family["samples"]:
        metric.add_metric([str(sample["labels"].get(label, "")) for label in labels], sample["value"])
    return metric


class ApiMetrics:
    def __init__(self, node: NodeFacade) -> None:
        self._node = node
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "p2pnode_http_requests",
            "Answers by route and status.",
            ["route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "p2pnode_http_request_seconds", "Time until the answer began.", ["route"], registry=self.registry
        )
        self.tokens = Counter(
            "p2pnode_tokens_generated", "Tokens written.", ["model", "mode"], registry=self.registry
        )
        self.first_token = Histogram(
            "p2pnode_time_to_first_token_seconds",
            "From the request to its first text.",
            ["model"],
            buckets=_FIRST_TOKEN_S,
            registry=self.registry,
        )
        self.per_token = Histogram(
            "p2pnode_time_per_output_token_seconds",
            "Decoding time per token, one observation an answer.",
            ["model"],
            buckets=_PER_TOKEN_S,
            registry=self.registry,
        )
        self.running = Gauge("p2pnode_answers_running", "Answers being written.", registry=self.registry)
        build = Gauge(
            "p2pnode_build_info", "1, with the version as label.", ["version"], registry=self.registry
        )
        build.labels(__version__).set(1)
        self.registry.register(_Projections(node))

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """The node's generation, watched."""
        begun = time.perf_counter()
        model = request.model or "default"
        seen = False
        source = self._node.generate(request)
        self.running.inc()
        try:
            async for event in source:
                if isinstance(event, TextDelta) and not seen:
                    seen = True
                    self.first_token.labels(model).observe(time.perf_counter() - begun)
                elif isinstance(event, Finished):
                    self._finished(model, event)
                yield event
        finally:
            self.running.dec()
            await close(source)

    def _finished(self, model: str, end: Finished) -> None:
        self.tokens.labels(model, end.mode).inc(end.completion_tokens)
        if end.completion_tokens > 1:
            self.per_token.labels(model).observe(end.decode_s / end.completion_tokens)

    def text(self) -> bytes:
        return generate_latest(self.registry)
