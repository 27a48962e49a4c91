"""A device that died without a word: asked about a request, it costs two pings and not the patience of a call."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from p2pnode import limits
from p2pnode.errors import PeerTimeout, StageLost
from p2pnode.node.rings import Rings
from p2pnode.units import PeerId

PEER = PeerId("peer")


class Device:
    """Its connection stands; what it answers is the test's choice."""

    def __init__(self) -> None:
        self.answers_pings = True
        self.pings = self.calls = 0
        self.closed = False
        self.answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.pinged = asyncio.Event()

    async def call(self, peer: str, method: str, arguments: object) -> dict[str, Any]:
        self.calls += 1
        return await self.answer

    async def ping(self, timeout_s: float) -> None:
        self.pings += 1
        self.pinged.set()
        if not self.answers_pings:
            raise PeerTimeout("no answer to a ping")

    async def close(self, code: int, reason: str) -> None:
        self.closed = True


def rings(device: Device, monkeypatch: pytest.MonkeyPatch) -> Rings:
    monkeypatch.setattr(limits, "STAGE_ASK_AFTER_S", 0.001)
    links = SimpleNamespace(
        me=PeerId("me"), connection_to=lambda _: device, call=device.call, name_of=lambda _: "beta"
    )
    made = Rings(
        me=PeerId("me"), my_addresses=list, links=cast(Any, links), streams=cast(Any, SimpleNamespace()),
        tasks=cast(Any, None), bringing=cast(Any, None), engines=cast(Any, None), make_up=cast(Any, None),
    )  # fmt: skip
    return made


async def test_silence_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    device.answers_pings = False
    with pytest.raises(StageLost, match="beta does not answer") as lost:
        await rings(device, monkeypatch)._announce_to(PEER, {})
    assert lost.value.details["peer"] == PEER
    assert device.closed, "hung up on, so that whoever plans next knows"
    assert device.answer.cancelled(), "nothing is left waiting"


async def test_a_slow_device_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    asking = asyncio.ensure_future(rings(device, monkeypatch)._announce_to(PEER, {}))
    await device.pinged.wait()
    device.answer.set_result({"positions": 7})
    assert await asking == 7
    assert not device.closed
    assert device.calls == 1
