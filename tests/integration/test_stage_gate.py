"""A real stage over real QUIC computes for the head that announced a request, and for nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from p2pnode.commands import ReportFraud
from p2pnode.errors import CreditEnded, Forbidden, NotFound, P2PNodeError, ReceiptOwed
from p2pnode.events import types as facts
from p2pnode.frame import DType, Frame, FrameReader, Kind, pack_tokens
from p2pnode.node.core import Node
from p2pnode.node.orders import PROBE_SESSION, STAGE, OutboundFrames
from p2pnode.transport import messages
from p2pnode.transport.port import Connection, Stream, Transport
from tests.kit.net import quic, running
from tests.kit.node_here import become_member, node_here

LAYERS = 4
"""Half of the demo model: two sessions from outside are one unit."""


class Head:
    """A head that the test plays: it has one stage prepared and closes the ring by hand."""

    def __init__(self, transport: Transport, connection: Connection) -> None:
        self.transport, self.connection = transport, connection
        self.back: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()
        transport.handle(STAGE, self._take_return)

    async def _take_return(self, stream: Stream) -> None:
        await messages.receive_message(stream)
        await messages.send_message(stream, messages.Answer(data={}))
        self.back.set_result(stream)
        await asyncio.Event().wait()

    async def prepare(self, node: Node) -> None:
        model = node.catalog.resolve(None)
        me = self.transport.peer_id
        await self.call(
            "stage.prepare", plan_id="p", stage=1, model=model.content_id, model_name=model.name, layer_first=0,
            layer_end=LAYERS, is_last=False, context_tokens=2048, sessions=4, head=me, previous_peer=me, next_peer=me,
            next_stage=-1, next_addresses=self.addresses,
        )  # fmt: skip

    @property
    def addresses(self) -> list[str]:
        return [str(address) for address in self.transport.listen_multiaddrs]

    async def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        return await call(self.connection, method, **arguments)

    async def open(self, session: int, **changes: Any) -> dict[str, Any]:
        asked = {"plan_id": "p", "session": session, "request_id": f"r{session}", "prompt_tokens": 3}
        return await self.call("session.open", **{**asked, **changes})

    async def ring(self) -> Ring:
        forward = await attach(self.connection)
        return Ring(forward, await self.back)


class Ring:
    def __init__(self, forward: Stream, back: Stream) -> None:
        self._send, self._read = OutboundFrames(forward).send, FrameReader(back.read_exactly).read
        self._sequence = 0

    async def feed(self, session: int, tokens: list[int], position: int = 0) -> Frame:
        """What comes back for a frame."""
        self._sequence += 1
        await self._send(
            Frame(
                kind=Kind.TOKENS, dtype=DType.I32, rows=len(tokens), columns=1, session=session,
                position_first=position, wanted_first=len(tokens), payload=pack_tokens(tokens), sequence=self._sequence,
            )
        )  # fmt: skip
        async with asyncio.timeout(30):
            return await self._read()


async def call(connection: Connection, method: str, **arguments: Any) -> dict[str, Any]:
    stream = await connection.open_stream("/p2pnode/control/1")
    await messages.send_message(stream, messages.Call(method=method, arguments=arguments))
    while isinstance(answer := await messages.receive_message(stream), messages.Progress):
        pass
    if isinstance(answer, messages.Refused):
        raise messages.refusal_error(answer)
    assert isinstance(answer, messages.Answer)
    return answer.data


async def attach(connection: Connection) -> Stream:
    stream = await connection.open_stream(STAGE)
    await messages.send_message(
        stream, messages.Call(method="attach", arguments={"plan_id": "p", "stage": 1})
    )
    answer = await messages.receive_message(stream)
    if isinstance(answer, messages.Refused):
        raise messages.refusal_error(answer)
    return stream


@asynccontextmanager
async def prepared(folder: Path) -> AsyncIterator[tuple[Node, Head]]:
    transport = quic("head")
    async with running(transport), node_here(folder) as node:
        head = Head(transport, await become_member(transport, node, "head"))
        await head.prepare(node)
        yield node, head


def code(frame: Frame) -> object:
    return frame.meta.get("code") if frame.kind is Kind.ERROR else frame.kind


async def test_a_session_nobody_announced_is_not_computed(tmp_path: Path) -> None:
    async with prepared(tmp_path) as (node, head):
        ring = await head.ring()
        assert code(await ring.feed(PROBE_SESSION, [0])) is Kind.ROWS
        assert code(await ring.feed(PROBE_SESSION, [1], 1)) == "forbidden"
        assert code(await ring.feed(7, [1, 2, 3])) == "forbidden"
        assert node.hosting.tallies.get("p", 7, (0, LAYERS)) is None
        await head.open(7)
        assert code(await ring.feed(7, [1, 2, 3])) is Kind.ROWS
        tally = node.hosting.tallies.get("p", 7, (0, LAYERS))
        assert tally is not None
        assert tally.layer_tokens == 3 * LAYERS


async def test_a_hostile_member_can_use_nobodys_stage(tmp_path: Path) -> None:
    """It can neither attach, nor announce, nor ask for a receipt of another's work."""
    other = quic("other")
    async with prepared(tmp_path) as (node, head), running(other):
        connection = await become_member(other, node, "other")
        with pytest.raises(Forbidden, match="before it in its ring"):
            await attach(connection)
        asked = {"plan_id": "p", "session": 7, "request_id": "r", "prompt_tokens": 3}
        with pytest.raises(NotFound):
            await call(connection, "session.open", **asked)
        ring = await head.ring()
        await head.open(7)
        assert code(await ring.feed(7, [1, 2, 3])) is Kind.ROWS
        where = {"plan_id": "p", "session": 7, "layers": [0, LAYERS]}
        with pytest.raises(Forbidden):
            await call(connection, "receipt.tally", **where)
        assert (await head.call("receipt.tally", **where))["layer_tokens"] == 3 * LAYERS


async def test_a_head_from_outside_is_computed_for_one_unit_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pnode.limits.GRANT_WAIT_S_MAX", 0.05)
    monkeypatch.setattr("p2pnode.limits.OUTPUT_TOKENS_PER_UNIT", 4)
    async with prepared(tmp_path) as (node, head):
        monkeypatch.setattr(node.links, "path", lambda peer: "wan")
        ring = await head.ring()
        assert await head.open(1) == await head.open(2) == {"positions": 6}
        with pytest.raises(ReceiptOwed):
            await head.open(3)
        assert code(await ring.feed(1, [1, 2, 3])) is Kind.ROWS
        for position in (3, 4, 5):
            assert code(await ring.feed(1, [4], position)) is Kind.ROWS
        assert code(await ring.feed(1, [4], 6)) == "receipt_owed"
        with pytest.raises(Forbidden):
            await head.call("rpc.start", build="b")


async def test_a_peer_convicted_of_fraud_gets_nothing(tmp_path: Path) -> None:
    async with prepared(tmp_path) as (node, head):
        ring = await head.ring()
        await head.open(1)
        assert code(await ring.feed(1, [1, 2, 3])) is Kind.ROWS
        fraud = facts.PeerEquivocated(
            peer=head.transport.peer_id, origin="its log", size_first=1, size_second=2, proof=b"proof"
        )
        await node.ledger.do(ReportFraud(fraud=fraud))
        node.grants.tick()
        assert code(await ring.feed(1, [4], 3)) == "forbidden"
        attempts: list[P2PNodeError] = []
        for attempt in (head.open(2), head.prepare(node)):
            with pytest.raises(CreditEnded) as caught:
                await attempt
            attempts.append(caught.value)
        assert len(attempts) == 2
