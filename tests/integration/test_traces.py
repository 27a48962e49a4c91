"""One trace a request across devices: the caller's, the head's and the stages' spans in a collector of the test."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from p2pnode.errors import ConfigError
from p2pnode.node.otel import open_tracing
from tests.integration.test_survival import DEMO, MESSAGES, answer_while
from tests.kit.mesh import MeshOfProcesses, NodeProcess
from tests.kit.otlp_collector import Collector, SpanSeen, collector

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SENT = f"00-{TRACE}-{CALLER}-01"
SECRET = "tell nobody about the walrus"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Nodes that the test starts send to it, soon instead of in batches of seconds."""
    with collector() as made:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "200")
        yield made


@contextmanager
def mesh_of(root: Path, *nodes: tuple[str, ...]) -> Iterator[MeshOfProcesses]:
    mesh = MeshOfProcesses(root)
    try:
        mesh.first(*nodes[0])
        for name, *arguments in nodes[1:]:
            mesh.join(name, *arguments)
        for node in mesh.nodes:
            node.online(len(nodes))
        yield mesh
    finally:
        codes = {node.name: node.stop() for node in reversed(mesh.nodes)}
    assert not {name: code for name, code in codes.items() if code not in (0, -9)}, codes


def post(node: NodeProcess, path: str, document: Any, **headers: str) -> tuple[str, str]:
    """The body and the traceparent that came back."""
    request = urllib.request.Request(
        f"{node.api.url}{path}",
        json.dumps(document).encode(),
        {"Content-Type": "application/json", **headers},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode(), answer.headers.get("traceparent", "")


def one(spans: dict[str, list[SpanSeen]], name: str) -> SpanSeen:
    (span,) = spans[name]
    return span


def test_one_trace_from_the_caller_to_the_stages(tmp_path: Path, told: Collector) -> None:
    with mesh_of(tmp_path, ("alpha", "--traces"), ("beta", "--traces"), ("gamma",)) as mesh:
        alpha, beta, gamma = mesh.nodes
        names = ["alpha", "beta", "gamma"]
        alpha.api.post(
            "/plan", {"model": DEMO, "mode": "pipeline", "devices": names, "stages": 3, "apply": True}
        )
        asked = {
            "model": DEMO,
            "messages": [*MESSAGES, {"role": "user", "content": SECRET}],
            "max_tokens": 24,
            "temperature": 0,
            "stream": True,
        }
        text, back = post(alpha, "/v1/chat/completions", asked, traceparent=SENT)
        assert text.endswith("data: [DONE]\n\n")
        root_name, work_name = "POST /v1/chat/completions", f"text_completion {DEMO}"
        wanted = {root_name, work_name, "load", "queue", "prefill", "decode", "stage", "sampling"}
        wanted |= {"hop 0", "hop 1", "hop 2"}
        told.until(lambda: wanted <= set(told.of(TRACE)))
        spans = told.of(TRACE)

        root, work = one(spans, root_name), one(spans, work_name)
        assert (root.parent, work.parent) == (CALLER, root.span)
        assert back == f"00-{TRACE}-{root.span}-01"
        assert root.attributes["http.response.status_code"] == 200
        assert root.begun_ns <= work.begun_ns <= work.ended_ns <= root.ended_ns
        for name in wanted - {root_name, work_name}:
            assert {span.parent for span in spans[name]} == {work.span}, name
        assert work.attributes["gen_ai.request.model"] == DEMO
        assert 0 < work.attributes["gen_ai.usage.output_tokens"] <= 24
        assert (
            one(spans, "decode").attributes["p2pnode.tokens"] == work.attributes["gen_ai.usage.output_tokens"]
        )

        # Gamma does not trace, and the head knows all the same what its hop took.
        stage = one(spans, "stage")
        assert (stage.resource["service.instance.id"], stage.resource["p2pnode.device"]) == (
            beta.peer_id,
            "beta",
        )
        assert stage.attributes["p2pnode.head"] == alpha.peer_id
        hops = [one(spans, f"hop {n}") for n in range(3)]
        assert [hop.attributes["p2pnode.device"] for hop in hops] == names
        assert all(hop.attributes["p2pnode.compute_s"] > 0 < hop.attributes["p2pnode.steps"] for hop in hops)
        assert stage.attributes["p2pnode.layers"] == [hops[1].attributes["p2pnode.layers"]]

        assert sum(map(len, spans.values())) == len(wanted)  # however many tokens there were
        assert "walrus" not in repr(told.spans)

        measures = {
            f"gen_ai.server.{m}" for m in ("time_to_first_token", "time_per_output_token", "request.duration")
        }
        told.until(lambda: measures <= set(told.metrics))
        for name in measures:
            row = told.metrics[name]
            assert (row["unit"], row["gen_ai.provider.name"], row["gen_ai.request.model"]) == (
                "s",
                "p2pnode",
                DEMO,
            )

        undisturbed, _ = answer_while(alpha, 0, lambda: None)
        after, _ = answer_while(alpha, 20, gamma.kill)
        assert after == undisturbed
        told.until(lambda: any(span.name == "refill" for span in told.spans))
        refill = next(span for span in told.spans if span.name == "refill")
        assert refill.trace != TRACE
        assert 0 <= refill.attributes["p2pnode.detected_ms"] <= refill.attributes["p2pnode.resumed_ms"]
        told.until(lambda: any(refill.parent == span.span for span in told.spans))


def test_a_request_that_another_device_answers_is_in_the_same_trace(tmp_path: Path, told: Collector) -> None:
    """Beta has no room for the model, and alpha answers whole; a refused request is in its trace, too."""
    with mesh_of(tmp_path, ("alpha", "--traces"), ("beta", "--traces", "--memory-max", "56M")) as mesh:
        alpha, beta = mesh.nodes
        holders = lambda v: any(alpha.peer_id in m["holders"] for m in v["models"] if m["name"] == DEMO)  # noqa: E731
        beta.until("the holder", "/models", holders)
        asked = {"model": DEMO, "prompt": "Once upon a time", "max_tokens": 8}
        post(beta, "/v1/completions", asked, traceparent=SENT)
        told.until(
            lambda: {"forward", f"text_completion {DEMO}", "POST /v1/completions"} <= set(told.of(TRACE))
        )
        spans = told.of(TRACE)
        forward = one(spans, "forward")
        work = next(s for names in spans.values() for s in names if s.name.startswith("text_completion"))
        assert (forward.parent, work.parent) == (one(spans, "POST /v1/completions").span, forward.span)
        assert (forward.resource["p2pnode.device"], work.resource["p2pnode.device"]) == ("beta", "alpha")

        other = "1" * 32
        with pytest.raises(urllib.error.HTTPError):
            post(
                alpha, "/v1/completions", {**asked, "max_tokens": -1}, traceparent=SENT.replace(TRACE, other)
            )
        told.until(lambda: "POST /v1/completions" in told.of(other))
        assert one(told.of(other), "POST /v1/completions").attributes["http.response.status_code"] == 400


def test_without_traces_a_callers_trace_is_handed_on(tmp_path: Path, told: Collector) -> None:
    """The head does not trace, its stage does: it finds the caller's trace all the same."""
    with mesh_of(tmp_path, ("alpha",), ("beta", "--traces")) as mesh:
        alpha = mesh.nodes[0]
        alpha.api.post(
            "/plan",
            {"model": DEMO, "mode": "pipeline", "devices": ["alpha", "beta"], "stages": 2, "apply": True},
        )
        asked = {"model": DEMO, "prompt": "Once", "max_tokens": 4}
        _, back = post(alpha, "/v1/completions", asked, traceparent=SENT)
        assert back == SENT
        told.until(lambda: "stage" in told.of(TRACE))
        assert one(told.of(TRACE), "stage").parent == CALLER
        _, back = post(alpha, "/v1/completions", asked)
        assert back == ""
        _, back = post(alpha, "/v1/completions", asked, traceparent="nonsense")
        assert back == ""
    assert {span.resource["p2pnode.device"] for span in told.spans} == {"beta"}


def test_a_collector_that_is_not_there_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens on it
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        node = NodeProcess(tmp_path, "alone", "--traces")
        assert node.infer(DEMO, "Hello")["usage"]["completion_tokens"] > 0
        assert node.stop() == 0


def test_what_cannot_be_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="over HTTP only"):
        open_tracing(peer="p", name="n", environ={"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match="not installed") as refused:
        open_tracing(peer="p", name="n", environ={})
    assert "p2pnode[otel]" in refused.value.hint


def test_nothing_of_it_is_imported_unless_it_is_wanted() -> None:
    code = (
        "import sys, p2pnode.bootstrap, p2pnode.api.app, p2pnode.node.core\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
