"""The second turn of a talk computes only what is new, on every device alike, and says what it would have said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from p2pnode.events import receipt as receipts
from tests.kit.mesh import MeshOfProcesses, NodeProcess, children_of, kill_now, mesh_of

DEMO = "p2pnode-demo"
FIRST = "Tell me about a mesh of small computers in a house."
LONG = "one two three four five six seven eight nine ten " * 40


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    with mesh_of(tmp_path_factory.mktemp("prefix"), "alpha", "beta", "gamma", "delta") as made:
        yield made


def plan(head: NodeProcess, mode: str, devices: list[str], **wish: Any) -> str:
    body = {"model": DEMO, "mode": mode, "devices": devices, "apply": True, **wish}
    return str(head.api.post("/plan", body)["plan_id"])


def talk(head: NodeProcess, *turns: tuple[str, str], **wish: Any) -> dict[str, Any]:
    messages = [{"role": role, "content": text} for role, text in turns]
    asked = {"model": DEMO, "messages": messages, "temperature": 0, "max_tokens": 24, **wish}
    return dict(head.api.post("/infer", asked))


def cached(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def computed_by(head: NodeProcess, request_id: str, devices: int) -> list[tuple[int, int]]:
    """First and end position that each other device signed for: what it computed."""
    entries = head.until(
        "receipts",
        "/log/entries?limit=1000",
        lambda view: len(_received(view["entries"], request_id)) == devices,
    )["entries"]
    made = [receipts.decode(bytes.fromhex(raw)) for raw in _received(entries, request_id)]
    return [(one.position_first, one.position_end) for one in made]


def _received(entries: list[dict[str, Any]], request_id: str) -> list[str]:
    return [
        raw
        for entry in entries
        if entry["type"] == "ReceiptReceived" and entry["request_id"] == request_id
        for raw, _, _ in entry["data"]["receipts"]
    ]


@pytest.mark.parametrize(
    ("mode", "devices", "wish"),
    [
        ("local", ["alpha"], {}),
        ("pipeline", ["alpha", "beta", "gamma"], {"stages": 3}),
        ("tensor", ["alpha", "beta"], {}),
        ("hybrid", ["alpha", "beta", "gamma", "delta"], {"stages": 2}),
    ],
)
def test_a_second_turn_computes_only_what_is_new(
    mesh: MeshOfProcesses, mode: str, devices: list[str], wish: dict[str, Any]
) -> None:
    alpha = mesh.nodes[0]
    plan_id = plan(alpha, mode, devices, **wish) if mode != "local" else None
    asked = {"mode": mode, "cache_prompt": True}
    try:
        first = talk(alpha, ("user", FIRST), **asked)
        assert (first["mode"], cached(first)) == (mode, 0)
        turns = (("user", FIRST), ("assistant", first["text"]), ("user", "And then?"))
        second = talk(alpha, *turns, **asked)
        usage = second["usage"]
        assert cached(second) >= first["usage"]["prompt_tokens"]
        end = usage["prompt_tokens"] + usage["completion_tokens"] - 1
        if mode == "pipeline":
            assert computed_by(alpha, second["request_id"], 2) == [(cached(second), end)] * 2
        cold = talk(alpha, *turns, mode=mode, cache_prompt=False)
        assert (cold["text"], cached(cold)) == (second["text"], 0)
        (finished,) = [e for e in alpha.events("RequestFinished") if e["request_id"] == second["request_id"]]
        assert finished["data"]["cached_tokens"] == cached(second)
    finally:
        if plan_id is not None:
            alpha.api.post("/command/release_plan", {"plan_id": plan_id})


def test_an_answer_that_can_be_repeated_takes_whole_chunks_only(mesh: MeshOfProcesses) -> None:
    """Greedy and not told otherwise: 256 tokens at a time, which every number survives."""
    alpha = mesh.nodes[0]
    first = talk(alpha, ("user", FIRST), mode="local")
    turns = (("user", FIRST), ("assistant", first["text"]), ("user", "Go on."))
    assert cached(talk(alpha, *turns, mode="local")) == 0, "shorter than a chunk"
    cold = talk(alpha, ("user", LONG), mode="local")
    assert cold["usage"]["prompt_tokens"] > 300
    again = talk(alpha, ("user", LONG), mode="local")
    assert (cached(again) % 256, again["text"]) == (0, cold["text"])
    assert cached(again) >= 256
    warm = talk(alpha, ("user", LONG), mode="local", temperature=0.8)
    assert cached(warm) == cold["usage"]["prompt_tokens"] - 1, "chance may begin anywhere"


def test_the_operator_may_end_it(mesh: MeshOfProcesses) -> None:
    alpha = mesh.nodes[0]
    alpha.api.post("/command/set", {"key": "cache.prefix", "value": "off"})
    assert cached(talk(alpha, ("user", LONG), mode="local", cache_prompt=True)) == 0
    alpha.api.post("/command/set", {"key": "cache.prefix", "value": "64M"})
    assert cached(talk(alpha, ("user", LONG), mode="local", cache_prompt=True)) > 0
    with pytest.raises(Exception, match="is not a size"):
        alpha.api.post("/command/set", {"key": "cache.prefix", "value": "plenty"})


def test_what_an_engine_kept_is_gone_with_it(mesh: MeshOfProcesses) -> None:
    """The stage's engine is killed between two turns: the next one is computed whole, and says the same."""
    alpha, beta = mesh.nodes[:2]
    plan(alpha, "pipeline", ["alpha", "beta"], stages=2)
    first = talk(alpha, ("user", LONG), mode="pipeline", cache_prompt=True)
    assert first["mode"] == "pipeline"
    warm = talk(alpha, ("user", LONG), mode="pipeline", cache_prompt=True)
    assert cached(warm) > 256
    pid = next(
        stage["engine_pid"]
        for stage in beta.api.get("/status")["hosted_stages"]
        if stage["model"] == DEMO and stage["up"]
    )
    assert pid in children_of(beta.process.pid)
    kill_now(pid)
    beta.until(
        "the death", "/log/entries?limit=1000", lambda v: any(e["type"] == "EngineDied" for e in v["entries"])
    )
    after = talk(alpha, ("user", LONG), cache_prompt=True)
    assert after["text"] == warm["text"] == first["text"]
    assert cached(after) == 0
