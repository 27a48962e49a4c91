"""Every process of a node has an owner from before its start to its end, however it is given up."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from p2pnode.compute.child_process import end_at_once, start_whole, to_the_end
from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.rpc import RpcServer
from p2pnode.errors import EngineUnavailable
from p2pnode.node.mcp_channel import ProcessChannel
from p2pnode.node.processes import Processes
from tests.kit.children import children
from tests.kit.net import until

READER = [sys.executable, "-c", "import sys; sys.stdin.read()"]
STARTS: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
    "engine": EngineClient.start,
    "rpc worker": lambda: RpcServer.start(threads=1),
    "tool server": lambda: ProcessChannel.start("reader", READER, {}),
}


@pytest.mark.parametrize("what", STARTS)
async def test_closing_ends_what_runs_and_starts_no_more(what: str) -> None:
    before, processes = children(), Processes()
    child = await processes.start(STARTS[what])
    assert processes.count == 1
    await processes.close()
    assert child.exit_code is not None
    assert (children(), processes.count) == (before, 0)
    with pytest.raises(EngineUnavailable, match="is stopping"):
        await processes.start(STARTS[what])


@pytest.mark.parametrize("what", STARTS)
async def test_closing_gives_up_what_starts(what: str) -> None:
    before, processes = children(), Processes()
    asked = asyncio.ensure_future(processes.start(STARTS[what]))
    await until(lambda: children() != before)
    await processes.close()
    assert children() == before
    outcome = (await asyncio.gather(asked, return_exceptions=True))[0]
    assert isinstance(outcome, EngineUnavailable) or outcome.exit_code is not None


async def test_a_start_that_came_about_as_it_was_given_up_is_ended() -> None:
    before, processes = children(), Processes()
    asked: list[asyncio.Future[Any]] = []

    async def start() -> EngineClient:
        client = await EngineClient.start()
        asked[0].cancel()  # before whoever asked can take it
        return client

    asked.append(asyncio.ensure_future(processes.start(start)))
    with pytest.raises(asyncio.CancelledError):
        await asked[0]
    assert (children(), processes.count) == (before, 0)


async def test_what_ended_by_itself_is_forgotten() -> None:
    processes = Processes()
    for _ in range(3):
        channel = await processes.start(lambda: ProcessChannel.start("true", ["true"], {}))
        await channel.close()
        assert processes.count == 0
    await processes.close()


async def test_a_child_that_cannot_be_ended_does_not_keep_the_others() -> None:
    before, processes = children(), Processes()

    class Stubborn:
        exit_code = None

        async def close(self) -> None:
            raise RuntimeError("it does not go")

    async def stubborn() -> Stubborn:
        return Stubborn()

    await processes.start(stubborn)
    await processes.start(EngineClient.start)
    with pytest.raises(RuntimeError, match="does not go"):
        await processes.close()
    assert children() == before


@pytest.mark.parametrize("what", STARTS)
@pytest.mark.parametrize("times", [1, 2, 5])
def test_whoever_gives_up_closing_however_often_leaves_nothing(what: str, times: int) -> None:
    """Not even for an event loop that ends right then."""

    async def run() -> Any:
        child = await STARTS[what]()
        closing = asyncio.ensure_future(child.close())
        for _ in range(times):
            await asyncio.sleep(0)
            closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        return child

    before = children()
    assert asyncio.run(run()).exit_code is not None
    assert children() == before
    gc.collect()  # what is unclosed warns here, and a warning is an error


async def test_a_tool_server_that_writes_without_end_is_closed_at_once() -> None:
    """Nobody reads what it writes any more; its process ends only when its pipes are empty."""
    flood = [sys.executable, "-c", "import sys\nwhile True: sys.stdout.write('x' * 65536)"]
    before = children()
    channel = await ProcessChannel.start("flood", flood, {})
    await until(lambda: not channel.alive)
    await channel.close()
    await channel.close()
    assert children() == before
    gc.collect()


async def test_an_end_goes_on_to_the_end_and_then_the_cancellation_does() -> None:
    gate, hurries = asyncio.Event(), []

    async def work() -> str:
        await gate.wait()
        return "done"

    waiting = asyncio.ensure_future(to_the_end(work(), hurry=lambda: hurries.append(len(hurries))))
    for _ in range(3):
        await asyncio.sleep(0)
        waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert hurries == [0, 1, 2]
    assert await to_the_end(work()) == "done"


async def test_work_that_fails_fails_for_whoever_waits() -> None:
    async def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await to_the_end(work())


async def test_an_end_at_once_given_up_twice_reaps_all_the_same() -> None:
    before = children()
    process = await start_whole(
        asyncio.create_subprocess_exec(*READER, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    )
    ending = asyncio.ensure_future(end_at_once(process))
    for _ in range(2):
        await asyncio.sleep(0)
        ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert process.returncode is not None
    assert children() == before
