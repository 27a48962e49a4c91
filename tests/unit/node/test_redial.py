"""Members that did not answer: pauses grow with jitter, and news of a member ends them. On a clock set by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random

import pytest

from p2pnode import limits
from p2pnode.node.link import Link
from p2pnode.node.links import Links
from p2pnode.node.redial import Redial
from p2pnode.node.tasks import Tasks
from p2pnode.transport.memory import MemoryNetwork, MemoryTransport
from p2pnode.transport.messages import Status
from p2pnode.units import PeerId
from tests.kit.net import identity, running, until

NOWHERE = "/ip4/192.0.2.1/udp/4001/quic-v1"
OBSERVER = identity("observer").peer_id


class HandClock:
    """Time passes when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ends_at: list[float] = []
        self._moved = asyncio.Event()

    async def wait(self, event: asyncio.Event, timeout_s: float) -> None:
        end = self.now + timeout_s
        self.ends_at.append(end)
        try:
            while self.now < end and not event.is_set():
                moved = asyncio.ensure_future(self._moved.wait())
                told = asyncio.ensure_future(event.wait())
                try:
                    await asyncio.wait((moved, told), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    moved.cancel()
                    told.cancel()
        finally:
            self.ends_at.remove(end)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self._moved.set()
        self._moved = asyncio.Event()


class Caller:
    """The links of one device on the memory network, dialling on a hand-set clock."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.transport: MemoryTransport = network.transport(identity("caller"))
        self.clock = HandClock()
        self.tasks = Tasks(lambda what, error: None)
        self.links = Links(
            self.transport,
            tasks=self.tasks,
            rng=Random(5),
            my_status=self.status,
            on_status=lambda link, status: None,
            on_link=lambda link, is_up: None,
            is_member=lambda peer: True,
            wait=self.clock.wait,
        )

    def status(self) -> Status:
        return Status(
            name="caller", version="1", role="worker", mesh_key=b"", addresses=[], grants=[], revocations=[],
            models=[], capability={}, state="active", now_ms=1, checkpoint="", extra={},
        )  # fmt: skip

    async def gives_up_for_a_while(self, link: Link) -> None:
        """Dials fail until the pause that runs has half a minute and more to go."""
        while True:
            for _ in range(20):  # everything that a step sets off, on a network without delays
                await asyncio.sleep(0)
            if self.clock.ends_at and self.clock.ends_at[0] - self.clock.now > 30:
                break
            self.clock.advance(limits.REDIAL_DELAY_S_MIN)
        assert not link.is_up


@pytest.fixture
async def network() -> MemoryNetwork:
    return MemoryNetwork(seed=3)


@pytest.fixture
async def caller(network: MemoryNetwork) -> AsyncIterator[Caller]:
    made = Caller(network)
    async with running(made.transport):
        yield made
        made.links.close()
        await made.tasks.close()


@pytest.fixture
async def other(network: MemoryNetwork) -> AsyncIterator[MemoryTransport]:
    """A member that nobody reaches yet: the network between is cut."""
    made = network.transport(identity("other"))
    network.partition(identity("caller").peer_id, made.peer_id)
    async with running(made):
        yield made


async def test_a_new_address_ends_the_pause(
    caller: Caller, other: MemoryTransport, network: MemoryNetwork
) -> None:
    link = caller.links.know(other.peer_id, addresses=[NOWHERE])
    await caller.gives_up_for_a_while(link)
    network.heal(caller.transport.peer_id, other.peer_id)
    caller.links.know(other.peer_id, addresses=[other.address])
    await until(lambda: link.is_up)
    assert link.redial.failures == 0


async def test_a_known_address_heard_on_the_network_ends_the_pause(
    caller: Caller, other: MemoryTransport, network: MemoryNetwork
) -> None:
    """mDNS heard it: nothing new, but it is there."""
    link = caller.links.know(other.peer_id, addresses=[other.address])
    await caller.gives_up_for_a_while(link)
    network.heal(caller.transport.peer_id, other.peer_id)
    caller.links.know(other.peer_id, addresses=[other.address])
    await asyncio.sleep(0)
    assert link.redial.failures > 0  # the same words without a sign of life change nothing
    caller.links.know(other.peer_id, addresses=[other.address], is_there=True)
    await until(lambda: link.is_up)


async def test_a_member_that_reaches_it_ends_the_pause_once(
    caller: Caller, other: MemoryTransport, network: MemoryNetwork
) -> None:
    """Repeated every five seconds it is no news; after it was away there, it is again."""
    link = caller.links.know(other.peer_id, addresses=[other.address])

    def told(*, is_up_there: bool) -> None:
        caller.links.heard_of(OBSERVER, other.peer_id, [other.address], is_up_there=is_up_there)

    await caller.gives_up_for_a_while(link)
    told(is_up_there=False)
    assert link.redial.failures > 0
    told(is_up_there=True)
    assert link.redial.failures == 0
    await caller.gives_up_for_a_while(link)
    told(is_up_there=True)
    assert link.redial.failures > 0
    network.heal(caller.transport.peer_id, other.peer_id)
    told(is_up_there=False)
    told(is_up_there=True)
    await until(lambda: link.is_up)


async def test_addresses_of_somebody_who_is_not_connected_are_no_news(
    caller: Caller, other: MemoryTransport
) -> None:
    link = caller.links.know(other.peer_id, addresses=[NOWHERE])
    await caller.gives_up_for_a_while(link)
    caller.links.heard_of(OBSERVER, other.peer_id, [other.address], is_up_there=False)
    assert other.address in link.addresses
    assert link.redial.failures > 0


async def test_its_own_call_ends_the_dialling(
    caller: Caller, other: MemoryTransport, network: MemoryNetwork
) -> None:
    """It dialled us: the link is up at once; when it is lost again, no old pause is sat out."""
    link = caller.links.know(other.peer_id, addresses=[other.address])
    await caller.gives_up_for_a_while(link)
    network.heal(caller.transport.peer_id, other.peer_id)
    connection = await other.dial([caller.transport.address], caller.transport.peer_id)
    assert link.is_up
    await connection.close()
    await until(lambda: link.is_up and link.connection is not None and link.connection.is_outbound)


async def test_a_connection_that_ended_before_it_was_looked_at_is_dialled_again(
    caller: Caller, other: MemoryTransport, network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the link would keep a dead connection and nobody would dial any more."""
    network.heal(caller.transport.peer_id, other.peer_id)
    dial, dials = caller.transport.dial, 0

    async def dial_and_lose(addresses: list[str], peer: PeerId):
        nonlocal dials
        dials += 1
        connection = await dial(addresses, peer)
        if dials == 1:
            await connection.close()
        return connection

    monkeypatch.setattr(caller.transport, "dial", dial_and_lose)
    link = caller.links.know(other.peer_id, addresses=[other.address])
    await until(lambda: bool(caller.clock.ends_at))
    caller.clock.advance(limits.REDIAL_DELAY_S_MAX)
    await until(lambda: link.is_up)
    assert dials == 2


async def test_pauses_grow_to_a_minute_and_are_never_alike() -> None:
    waits: list[float] = []

    async def wait(event: asyncio.Event, timeout_s: float) -> None:
        waits.append(timeout_s)

    redial = Redial(Random(1), wait)
    pauses = []
    for _ in range(300):
        waits.clear()
        await redial.pause()
        pauses.append(sum(waits))
        assert waits[0] <= limits.REDIAL_DELAY_S_MIN
    assert pauses[0] <= 2 * limits.REDIAL_DELAY_S_MIN
    assert max(pauses) <= limits.REDIAL_DELAY_S_MAX
    assert max(pauses) > 0.9 * limits.REDIAL_DELAY_S_MAX
    assert len(set(pauses)) == len(pauses)


async def test_news_cannot_make_a_node_dial_in_a_loop() -> None:
    """Whatever is said, and however often: between two dials there is a moment."""
    clock = HandClock()
    redial = Redial(Random(1), clock.wait)
    for _ in range(5):
        pausing = asyncio.ensure_future(redial.pause())
        for _ in range(20):
            redial.news()
            await asyncio.sleep(0)
        assert not pausing.done()
        clock.advance(limits.REDIAL_DELAY_S_MIN)
        await pausing


async def test_on_another_network_members_are_tried_again_and_links_are_looked_at(
    caller: Caller, other: MemoryTransport, network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = caller.links.know(other.peer_id, addresses=[other.address])
    await caller.gives_up_for_a_while(link)
    network.heal(caller.transport.peer_id, other.peer_id)
    caller.links.network_changed()
    await until(lambda: link.is_up)
    first = link.connection
    monkeypatch.setattr(limits, "PING_TIMEOUT_S", 0.05)
    caller.links.network_changed()
    await asyncio.sleep(0.1)
    assert link.connection is first  # it answers, so it stays
    network.partition(caller.transport.peer_id, other.peer_id)
    caller.links.network_changed()
    await until(lambda: first is not None and first.is_closed)
