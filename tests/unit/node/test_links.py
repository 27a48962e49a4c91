"""Links over the memory network: statuses, calls with progress, refusals and silences."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from p2pnode import limits
from p2pnode.errors import Busy, NotFound, PeerTimeout, PeerUnreachable, RemoteProtocolError
from p2pnode.node.calls import ask
from p2pnode.node.link import Link
from p2pnode.node.links import Links
from p2pnode.node.tasks import Tasks
from p2pnode.transport import quic as quic_module
from p2pnode.transport.memory import MemoryNetwork, MemoryTransport
from p2pnode.transport.messages import Status
from p2pnode.transport.port import Transport
from p2pnode.units import PeerId
from tests.kit.net import identity, quic, running, until


class Device:
    """Links of one device, with what they told it."""

    def __init__(self, transport: Transport, name: str) -> None:
        self.name = name
        self.transport = transport
        self.reports: list[BaseException] = []
        self.tasks = Tasks(lambda what, error: self.reports.append(error))
        self.heard: list[str] = []
        self.changes: list[bool] = []
        self.links = Links(
            self.transport,
            tasks=self.tasks,
            rng=Random(1),
            my_status=self.status,
            on_status=lambda link, status: self.heard.append(status.name),
            on_link=lambda link, is_up: self.changes.append(is_up),
            is_member=lambda peer: True,
        )

    @property
    def peer_id(self) -> PeerId:
        return self.transport.peer_id

    def status(self) -> Status:
        return Status(
            name=self.name, version="1", role="worker", mesh_key=b"", addresses=[], grants=[], revocations=[],
            models=[], capability={}, state="active", now_ms=1, checkpoint="", extra={},
        )  # fmt: skip

    def know(self, other: Device) -> Link:
        return self.links.know(other.peer_id, addresses=list(other.transport.listen_multiaddrs))

    async def close(self) -> None:
        self.links.close()
        await self.tasks.close()


def memory(network: MemoryNetwork, name: str) -> MemoryTransport:
    return network.transport(identity(name))


@pytest.fixture
async def two() -> Any:
    network = MemoryNetwork(seed=3)
    one, other = Device(memory(network, "one"), "one"), Device(memory(network, "other"), "other")
    async with running(one.transport, other.transport):
        link = one.know(other)
        await until(lambda: bool(one.heard and other.heard))
        yield one, other, link
        await one.close()
        await other.close()
    assert one.reports == other.reports == []


async def test_a_link_comes_up_once_on_each_side(two: Any) -> None:
    """The one that dialled does not follow its connection twice."""
    one, other, link = two
    assert (one.changes, other.changes) == ([True], [True])
    assert link.name == "other"
    followers = [t for t in asyncio.all_tasks() if t.get_name().startswith("status ")]
    assert len(followers) == 2
    one.links.status_changed()
    heard = len(other.heard)
    await until(lambda: len(other.heard) > heard)


async def test_of_two_connections_both_sides_use_the_one_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both dialled at once. A call that runs on the other one is answered before that one ends."""
    monkeypatch.setattr(quic_module, "SUPPLANTED_GRACE_S", 0.05)
    monkeypatch.setattr(limits, "STATUS_INTERVAL_S", 0.02)
    one, other = Device(quic("one"), "one"), Device(quic("other"), "other")
    over = asyncio.Event()

    async def work(peer: PeerId, arguments: dict[str, Any], progress: Any) -> dict[str, Any]:
        await over.wait()
        return {"done": True}

    async with running(one.transport, other.transport):
        other.links.serve("work", work)
        link, back = one.know(other), other.know(one)
        await until(lambda: len(one.transport.connections()) == len(other.transport.connections()) == 2)
        loser = one.transport.connections()[1]
        asked = asyncio.ensure_future(ask(loser, "work", {}, None, 10))
        await until(lambda: link.connection is one.transport.connection(other.peer_id))
        await until(lambda: back.connection is other.transport.connection(one.peer_id))
        heard = len(other.heard)
        await until(lambda: len(other.heard) > heard + 5)
        assert not loser.is_closed
        over.set()
        assert await asked == {"done": True}
        await until(lambda: len(one.transport.connections()) == len(other.transport.connections()) == 1)
        assert (one.changes, other.changes) == ([True], [True]), "nobody lost anything"
        await one.close()
        await other.close()
    assert one.reports == other.reports == []


async def test_a_lost_link_is_told_and_dialled_again(two: Any) -> None:
    one, other, link = two
    await link.connection.close()
    assert one.changes == [True, False]
    await until(lambda: link.is_up and one.changes == [True, False, True])
    assert other.changes[:2] == [True, False]


async def test_a_refused_status_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that was let in a moment ago may not be known there yet."""
    monkeypatch.setattr(limits, "REDIAL_DELAY_S_MIN", 0.001)
    monkeypatch.setattr(limits, "STATUS_INTERVAL_S", 0.01)
    network = MemoryNetwork(seed=3)
    one, other = Device(memory(network, "one"), "one"), Device(memory(network, "other"), "other")
    members: set[PeerId] = set()
    other.transport.set_gate(lambda peer, protocol: peer in members)
    one.transport.set_gate(lambda peer, protocol: False)
    async with running(one.transport, other.transport):
        link = one.know(other)
        await until(lambda: bool(link.tried))
        assert one.heard == []
        members.add(one.peer_id)
        await until(lambda: bool(one.heard))
        assert link.tried == []
        await one.close()
        await other.close()


async def test_each_side_knows_its_own_direction_and_hears_the_other_one(two: Any) -> None:
    """The one that was dialled tries by itself whether it could have dialled."""
    one, other, link = two
    back = other.links.links[one.peer_id]
    assert back.direction.state == "untried", "no address of it is known"
    other.know(one)
    await until(lambda: link.direction.state == back.direction.state == "ok")
    assert (link.is_opener, back.is_opener) == (True, False)
    await until(lambda: bool(link.direction.good_ms and back.direction.good_ms and back.asked_ms))


async def test_a_door_that_opens_one_way_only_is_known_with_its_reason() -> None:
    """One dials; nobody could dial it. Its address opens, and that is noticed when it tells of another one."""
    network = MemoryNetwork(seed=3)
    one, other = Device(memory(network, "one"), "one"), Device(memory(network, "other"), "other")
    async with running(one.transport, other.transport):
        (address,) = one.transport.listen_multiaddrs
        network.closed.add(address)
        other.know(one)
        back = other.links.links[one.peer_id]
        await until(lambda: back.direction.state == "unreachable")
        assert back.direction.tried == [[address, "no answer"]]
        link = one.know(other)
        await until(lambda: bool(other.heard) and back.is_up and back.direction.state == "unreachable")
        assert link.direction.state == "ok"
        network.closed.discard(address)
        back.moved.set()
        await until(lambda: back.direction.state == "ok")
        await link.connection.close(0, "enough")
        assert link.direction.tried[0][1] == "the connection ended: closed by this node: enough"
        await one.close()
        await other.close()


async def test_who_is_not_listened_to_knows_it_until_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REDIAL_DELAY_S_MIN", 0.001)
    monkeypatch.setattr(limits, "STATUS_INTERVAL_S", 0.01)
    network = MemoryNetwork(seed=3)
    one, other = Device(memory(network, "one"), "one"), Device(memory(network, "other"), "other")
    members: set[PeerId] = set()
    for device in (one, other):
        device.transport.set_gate(lambda peer, protocol: peer in members)
    async with running(one.transport, other.transport):
        link = one.know(other)
        await until(lambda: link.direction.is_refused and one.peer_id in other.links.links)
        back = other.links.links[one.peer_id]
        await until(lambda: back.direction.is_refused)
        assert "does not speak" in back.direction.tried[0][1]
        back.addresses[:] = one.transport.listen_multiaddrs
        members.update((one.peer_id, other.peer_id))
        await until(lambda: link.direction.state == back.direction.state == "ok")
        await one.close()
        await other.close()


async def test_a_call_brings_its_answer_its_progress_and_its_refusal(two: Any) -> None:
    one, other, _ = two

    async def work(peer: PeerId, arguments: dict[str, Any], progress: Any) -> dict[str, Any]:
        if "refuse" in arguments:
            raise Busy("not now", hint="later")
        progress({"done": 1})
        await until(lambda: len(seen) == 1)
        return {"from": peer, **arguments}

    seen: list[dict[str, Any]] = []
    other.links.serve("work", work)
    assert await one.links.call(other.peer_id, "work", {"a": 1}, on_progress=seen.append) == {
        "from": one.peer_id,
        "a": 1,
    }
    assert seen == [{"done": 1}]
    with pytest.raises(Busy, match="not now"):
        await one.links.call(other.peer_id, "work", {"refuse": True})
    with pytest.raises(RemoteProtocolError, match="no method"):
        await one.links.call(other.peer_id, "unheard of", {})


async def test_a_call_to_oneself_needs_no_wire(two: Any) -> None:
    one, _, _ = two

    async def work(peer: PeerId, arguments: dict[str, Any], progress: Any) -> dict[str, Any]:
        raise NotFound(f"asked by {peer[-4:]}")

    one.links.serve("work", work)
    with pytest.raises(NotFound, match=one.peer_id[-4:]):
        await one.links.call(one.peer_id, "work", {})


async def test_a_silent_call_ends_on_both_sides(two: Any) -> None:
    """The asker has a limit; the work that nobody waits for is cancelled once that is noticed."""
    one, other, _ = two
    ended: list[bool] = []

    async def work(peer: PeerId, arguments: dict[str, Any], progress: Any) -> dict[str, Any]:
        try:
            while True:
                await asyncio.sleep(0.005)
                progress({"still": "here"})
        finally:
            ended.append(True)

    async def silent(peer: PeerId, arguments: dict[str, Any], progress: Any) -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    other.links.serve("work", work)
    other.links.serve("silent", silent)
    with pytest.raises(PeerTimeout, match="other did not answer silent within"):
        await one.links.call(other.peer_id, "silent", {}, timeout_s=0.02)
    asking = asyncio.ensure_future(one.links.call(other.peer_id, "work", {}))
    await until(lambda: any(t.get_name() == "serve work" for t in asyncio.all_tasks()))
    asking.cancel()
    await until(lambda: ended == [True])
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_who_is_not_there_cannot_be_called(two: Any) -> None:
    one, _, link = two
    with pytest.raises(PeerUnreachable):
        await one.links.call(PeerId("12D3KooWnobody"), "work", {})
    one.links.forget(link.peer_id)
    with pytest.raises(PeerUnreachable):
        await one.links.call(link.peer_id, "work", {})
