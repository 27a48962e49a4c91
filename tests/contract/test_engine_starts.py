"""Engine processes that nobody wants any more while they start: none is left, nor a pipe or socket of it."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest

from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import UnitSpec
from p2pnode.compute.rpc import RpcServer
from p2pnode.errors import EngineUnavailable
from p2pnode.node.engines import EngineHost
from p2pnode.node.measuring import machine_rates
from p2pnode.node.tasks import Tasks
from tests.kit.net import until


def children() -> list[int]:
    return [child.pid for child in psutil.Process().children()]


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def measure() -> object:
    return await machine_rates(Path("/nowhere"), 1, lambda: 0)


STARTS: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
    "engine": lambda: EngineClient.start(),
    "rpc worker": lambda: RpcServer.start(threads=1),
    "measuring": measure,
}


@pytest.mark.parametrize("what", STARTS)
async def test_a_start_given_up_at_any_time_leaves_nothing(what: str) -> None:
    await asyncio.to_thread(
        os.getpid
    )  # the loop's own threads and pipes are there before anything is counted
    before = children(), descriptors()
    for turns in range(12):
        start = asyncio.ensure_future(STARTS[what]())
        for _ in range(turns):
            await asyncio.sleep(0)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert children() == before[0], f"cancelled after {turns} turns"
    gc.collect()  # an unclosed pipe, socket or process warns here, and a warning is an error
    await asyncio.sleep(0)
    assert descriptors() == before[1]


async def test_a_host_that_is_closed_while_its_engine_starts_ends_it(tmp_path: Path) -> None:
    before = children()
    tasks = Tasks(lambda what, error: pytest.fail(f"{what}: {error}"))

    async def notice(what: str, purpose: str, details: dict[str, int | str]) -> None:
        pytest.fail(f"{purpose} {what}: {details}")

    host = EngineHost("toy", tasks=tasks, notice=notice)
    loading = asyncio.ensure_future(host.ensure("unit", UnitSpec(model_path=str(tmp_path / "none.gguf"))))
    await until(lambda: children() != before)
    await host.close()
    assert children() == before
    with pytest.raises(EngineUnavailable, match="was ended"):
        await loading


def test_who_gives_up_closing_an_engine_leaves_no_process() -> None:
    async def run() -> int | None:
        engine = await EngineClient.start()
        closing = asyncio.ensure_future(engine.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        return engine.exit_code

    assert asyncio.run(run()) is not None
