"""llama.cpp's RPC workers: the same tokens as local in both split modes, and deaths that are told."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Literal

import pytest

from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import UnitSpec
from p2pnode.compute.rpc import RpcServer, build_id
from p2pnode.errors import ComputeError, EngineUnavailable, RequestError
from p2pnode.facade import SamplingParams
from tests.kit.engine_units import SMALL, generate, tokens_frame
from tests.kit.toy_models import Toy, write_model

GREEDY = SamplingParams(temperature=0.0)
PROMPT = (1, 70, 80, 90)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    wide = {"width": 128, "heads": 8, "kv_heads": 4, "ff": 256}
    return write_model(tmp_path / "toy.gguf", Toy("llama", text=True, vocabulary=300, **wide))


async def tokens_of(spec: UnitSpec) -> list[int]:
    engine = await EngineClient.start()
    try:
        unit = (await engine.load(spec)).unit_id
        await engine.open_session(unit, 1, GREEDY)
        return await generate(engine, unit, PROMPT, 6)
    finally:
        await engine.close()


@pytest.mark.parametrize("split", ["layer", "tensor"])
async def test_two_workers_give_the_local_tokens(model: Path, split: Literal["layer", "tensor"]) -> None:
    servers = [await RpcServer.start(threads=1) for _ in range(2)]
    endpoints = tuple(server.endpoint for server in servers)
    local = await tokens_of(UnitSpec(model_path=str(model), **SMALL))
    remote = UnitSpec(
        model_path=str(model), rpc_endpoints=endpoints, split_mode=split, gpu_layers=99, **SMALL
    )
    assert await tokens_of(remote) == local
    for server in servers:
        await server.close()
        assert server.exit_code == -signal.SIGKILL


async def test_a_worker_that_dies_takes_the_engine_not_the_node(model: Path) -> None:
    """llama.cpp aborts its client: our engine process is gone, its calls fail, this process goes on."""
    exits: list[int] = []
    server = await RpcServer.start(threads=1, on_exit=exits.append)
    engine = await EngineClient.start()
    spec = UnitSpec(model_path=str(model), rpc_endpoints=(server.endpoint,), gpu_layers=99, **SMALL)
    unit = (await engine.load(spec)).unit_id
    await engine.open_session(unit, 1, GREEDY)
    os.kill(server.pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        with pytest.raises((EngineUnavailable, ComputeError)):
            await engine.step_sample(unit, tokens_frame(PROMPT))
    await engine.close()
    await server.close()
    assert exits == [-signal.SIGKILL]


async def test_nobody_at_the_endpoint_is_told(model: Path) -> None:
    engine = await EngineClient.start()
    with pytest.raises((ComputeError, EngineUnavailable)):
        await engine.load(UnitSpec(model_path=str(model), rpc_endpoints=("127.0.0.1:1",), **SMALL))
    await engine.close()
    with pytest.raises(RequestError):
        await RpcServer.start(threads=0)


def test_builds_have_names() -> None:
    assert build_id() == build_id()
    assert len(build_id()) == 32
