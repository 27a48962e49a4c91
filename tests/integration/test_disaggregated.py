"""Prompts computed on other devices, answers here: the same text, both credited, and nothing lost with the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pnode.compute import kv_state
from p2pnode.errors import NotFound, P2PNodeError, RemoteProtocolError, ShapeMismatch, StageLost
from p2pnode.events import receipt as receipts
from p2pnode.identity import load_or_create
from p2pnode.node.kv_transfers import KV, StateSource
from p2pnode.transport import messages
from p2pnode.transport.port import Stream
from p2pnode.transport.quic import QuicTransport
from tests.kit.mesh import MeshOfProcesses, NodeProcess, kill_now, mesh_of
from tests.kit.net import LOOPBACK, until
from tests.kit.node_here import become_member, node_here

DEMO = "p2pnode-demo"
PROMPT = "What is a mesh? " * 40


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    with mesh_of(tmp_path_factory.mktemp("split"), "alpha", "beta", "gamma") as made:
        yield made


def apply(head: NodeProcess, *devices: str) -> dict[str, Any]:
    wish = {"model": DEMO, "mode": "disaggregated", "devices": list(devices), "apply": True}
    return dict(head.api.post("/plan", wish))


def ask(head: NodeProcess, **wish: Any) -> dict[str, Any]:
    asked = {
        "messages": [{"role": "user", "content": PROMPT}],
        "model": DEMO,
        "max_tokens": 40,
        "temperature": 0,
    }
    return dict(head.api.post("/infer", {**asked, "cache_prompt": False, **wish}))


def signed(node: NodeProcess, request_id: str) -> receipts.Receipt:
    def found(view: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            e["data"]
            for e in view["entries"]
            if e["type"] == "ReceiptGiven" and e["request_id"] == request_id
        ]

    (data, *_) = found(node.until("a receipt", "/log/entries?limit=1000", found))
    return receipts.decode(bytes.fromhex(data["receipts"][0][0]))


@pytest.mark.parametrize("devices", [("beta",), ("beta", "gamma")], ids=len)
def test_the_same_text_as_here_alone(mesh: MeshOfProcesses, devices: tuple[str, ...]) -> None:
    alpha = mesh.nodes[0]
    sampling = {"temperature": 0.9, "seed": 5, "repeat_penalty": 1.1}
    local, warm = ask(alpha, mode="local"), ask(alpha, mode="local", **sampling)
    plan = apply(alpha, *devices)
    assert plan["mode"] == "disaggregated"
    try:
        answer = ask(alpha, mode="disaggregated")
        assert (answer["mode"], answer["text"]) == ("disaggregated", local["text"])
        assert answer["usage"] == local["usage"]
        assert [stage["name"] for stage in answer["stages"]] == [*devices, "alpha"]
        assert ask(alpha, mode="disaggregated", **sampling)["text"] == warm["text"]
        for name in devices:
            node = next(n for n in mesh.nodes if n.name == name)
            receipt = signed(node, answer["request_id"])
            assert (receipt.position_first, receipt.position_end) == (0, local["usage"]["prompt_tokens"])
        accepted = [
            e["data"] for e in alpha.events("RequestAccepted") if e["request_id"] == answer["request_id"]
        ]
        assert accepted[0]["mode"] == "disaggregated"
    finally:
        alpha.api.post("/command/release_plan", {"plan_id": plan["plan_id"]})


def test_the_next_turn_goes_on_here(mesh: MeshOfProcesses) -> None:
    """What was moved here is kept here: the device that computed the first prompt is not asked again."""
    alpha = mesh.nodes[0]
    plan = apply(alpha, "beta")
    try:
        first = ask(alpha, mode="disaggregated", cache_prompt=True)
        again = ask(alpha, mode="disaggregated", cache_prompt=True)
        assert again["text"] == first["text"]
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == first["usage"]["prompt_tokens"] - 1
    finally:
        alpha.api.post("/command/release_plan", {"plan_id": plan["plan_id"]})


@pytest.mark.parametrize("text_events", [0, 1, 12])
def test_the_loss_of_the_other_device_loses_nothing(mesh: MeshOfProcesses, text_events: int) -> None:
    """Killed before the prompt, while keys and values are on their way, or when they are here: the same text."""
    alpha, beta = mesh.nodes[:2]
    local = ask(alpha, mode="local")["text"]
    plan = apply(alpha, "beta")
    pid = beta.api.get("/status")["hosted_stages"][0]["engine_pid"]
    if not text_events:
        kill_now(pid)
    body = {
        "messages": [{"role": "user", "content": PROMPT}],
        "model": DEMO,
        "max_tokens": 40,
        "temperature": 0,
        "cache_prompt": False,
    }
    pieces: list[str] = []
    for event in alpha.api.stream("/infer/stream", body):
        if event["type"] == "text":
            pieces.append(event["text"])
            if len(pieces) == text_events:
                kill_now(pid)
    assert "".join(pieces) == local
    alpha.api.post("/command/release_plan", {"plan_id": plan["plan_id"]})


def test_who_computes_nothing_else_is_no_plan(mesh: MeshOfProcesses) -> None:
    with pytest.raises(P2PNodeError, match="no plan"):
        mesh.nodes[0].api.post("/plan", {"model": DEMO, "mode": "disaggregated", "devices": ["alpha"]})


# --- a device that gives something else ------------------------------------------------------------
STATE = bytes(kv_state.pack("model|f16|f16|4", 7, b"x" * 3000))


@pytest.mark.parametrize(
    ("announced", "sent", "kind"),
    [
        (len(STATE), STATE, None),
        (len(STATE), STATE[:1500], P2PNodeError),
        (10**9, STATE, RemoteProtocolError),
        (0, b"", RemoteProtocolError),
        (len(STATE), STATE[:-1] + b"y", RemoteProtocolError),
        (len(STATE), STATE.replace(b"model", b"other"), ShapeMismatch),
        (50, STATE[:50], RemoteProtocolError),
    ],
)
async def test_nothing_unchecked_is_taken(
    tmp_path: Path, announced: int, sent: bytes, kind: type[P2PNodeError] | None
) -> None:
    other = QuicTransport(load_or_create(tmp_path / "m"), LOOPBACK, agent="test")

    async def serve(stream: Stream) -> None:
        call = await messages.receive_message(stream)
        assert isinstance(call, messages.Call)
        await messages.send_message(stream, messages.Answer(data={"bytes": announced}))
        if sent:
            await stream.write(sent)
        await stream.close_write()

    other.handle(KV, serve)
    await other.start()
    try:
        async with node_here(tmp_path / "n") as node:
            await become_member(other, node)
            peer = other.peer_id
            await until(lambda: peer in node.links.links and node.links.links[peer].is_up)
            source = StateSource(peer, 0, "model|f16|f16|4")

            async def bring(positions: int) -> bytearray:
                return await node.kv_transfers.bring(
                    "plan", [source], 1, positions, fingerprint="mine", bytes_max=10_000
                )

            if kind is None:
                assert kv_state.unpack("mine", await bring(7)) == (7, b"x" * 3000)
                with pytest.raises(StageLost):
                    await bring(8)
            else:
                with pytest.raises(kind):
                    await bring(7)
    finally:
        await other.close()


async def test_only_the_head_of_a_stage_may_take_its_states(tmp_path: Path) -> None:
    other = QuicTransport(load_or_create(tmp_path / "m"), LOOPBACK, agent="test")
    await other.start()
    try:
        async with node_here(tmp_path / "n") as node:
            connection = await become_member(other, node)
            for arguments in ({"plan_id": "p", "slot": 0, "session": 1}, {"slot": "x"}, {}):
                stream = await connection.open_stream(KV)
                await messages.send_message(stream, messages.Call(method="state", arguments=arguments))
                answer = await messages.receive_message(stream)
                assert isinstance(answer, messages.Refused)
                assert answer.code in (NotFound.code, RemoteProtocolError.code)
    finally:
        await other.close()
