"""llama.cpp's RPC workers as a device serves them to heads: one for each plan, none for strangers, none for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from p2pnode import limits
from p2pnode.errors import EngineIncompatible, NotFound, RemoteProtocolError, RequestError
from p2pnode.node.core import Node
from p2pnode.node.rpc_tunnel import RPC
from p2pnode.transport import messages
from p2pnode.transport.port import Connection, Stream
from tests.kit.net import quic, running, until
from tests.kit.node_here import become_member, node_here


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Node, Connection]]:
    """A device, and a member that the test plays."""
    head = quic("head")
    async with node_here(tmp_path / "alpha") as node, running(head):
        yield node, await become_member(head, node, "head")


async def call(connection: Connection, method: str, **arguments: Any) -> dict[str, Any]:
    stream = await connection.open_stream("/p2pnode/control/1")
    await messages.send_message(stream, messages.Call(method=method, arguments=arguments))
    answer = await messages.receive_message(stream)
    if isinstance(answer, messages.Refused):
        raise messages.refusal_error(answer)
    assert isinstance(answer, messages.Answer)
    return answer.data


async def attach(connection: Connection, plan: object) -> Stream:
    stream = await connection.open_stream(RPC)
    await messages.send_message(stream, messages.Call(method="rpc", arguments={"plan": plan}))
    answer = await messages.receive_message(stream)
    if isinstance(answer, messages.Refused):
        raise messages.refusal_error(answer)
    return stream


async def test_a_worker_for_each_plan(pair: tuple[Node, Connection]) -> None:
    """Asked for twice at once it is one; as many as the limit says; the end of one leaves the others."""
    node, head = pair
    build = await node.tunnel.build()
    with pytest.raises(EngineIncompatible):
        await call(head, "rpc.start", build="another", plan="a")
    for plan in (None, "", 5, "x" * 2000):
        with pytest.raises(RemoteProtocolError):
            await call(head, "rpc.start", build=build, plan=plan)
    await asyncio.gather(*(call(head, "rpc.start", build=build, plan="a") for _ in range(3)))
    plans = [str(number) for number in range(limits.RPC_SERVERS_MAX - 1)]
    for plan in plans:
        await call(head, "rpc.start", build=build, plan=plan)
    with pytest.raises(RequestError, match="plans already"):
        await call(head, "rpc.start", build=build, plan="one too many")
    streams = [await attach(head, plan) for plan in ("a", plans[0])]
    assert await call(head, "rpc.stop", plan="a") == {"stopped": True}
    assert await call(head, "rpc.stop", plan="a") == {"stopped": False}
    assert await streams[0].read(1) == b""
    await call(head, "rpc.start", build=build, plan="one more")
    for stream in streams:
        stream.reset()


async def test_no_worker_for_others(pair: tuple[Node, Connection], tmp_path: Path) -> None:
    """Another member does not reach the worker of a head, whatever it says."""
    node, head = pair
    await call(head, "rpc.start", build=await node.tunnel.build(), plan="a")
    other = quic("other")
    async with running(other):
        connection = await become_member(other, node, "other")
        with pytest.raises(NotFound):
            await attach(connection, "a")
        assert await call(connection, "rpc.stop", plan="a") == {"stopped": False}
    with pytest.raises(NotFound):
        await attach(head, "b")
    with pytest.raises(RemoteProtocolError):
        await attach(head, 7)
    stream = await head.open_stream(RPC)
    await messages.send_message(stream, messages.Call(method="generate", arguments={"plan": "a"}))
    assert isinstance(await messages.receive_message(stream), messages.Refused)


async def test_what_no_head_uses_ends(pair: tuple[Node, Connection]) -> None:
    """Not at once, not while a stream leads there, not when one came in between."""
    node, head = pair
    tunnel, late = node.tunnel, limits.HOSTED_ALONE_S_MAX + 1
    await call(head, "rpc.start", build=await tunnel.build(), plan="a")
    await tunnel.end_orphans(0.0)
    stream = await attach(head, "a")
    await tunnel.end_orphans(late)
    (worker,) = tunnel._workers.values()
    assert worker.streams == 1
    stream.reset()
    await until(lambda: worker.streams == 0)
    await tunnel.end_orphans(2 * late)
    await tunnel.end_orphans(2 * late + 1)
    assert worker.is_up
    await tunnel.end_orphans(4 * late)
    assert not worker.is_up
    with pytest.raises(NotFound):
        await attach(head, "a")
