"""An engine process and tiny models for it, one for each module of tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import UnitSpec
from tests.kit.engine_units import GREEDY, PROMPT, SMALL, generate
from tests.kit.toy_models import Toy, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("m") / "toy.gguf", Toy("llama", text=True, vocabulary=300))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[EngineClient]:
    client = await EngineClient.start()
    yield client
    await client.close()


@pytest_asyncio.fixture(loop_scope="module")
async def unit(engine: EngineClient, model: Path) -> AsyncIterator[int]:
    info = await engine.load(UnitSpec(model_path=str(model), **SMALL))
    yield info.unit_id
    await engine.unload(info.unit_id)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def expected(engine: EngineClient, model: Path) -> list[int]:
    """Greedy tokens of the whole model."""
    info = await engine.load(UnitSpec(model_path=str(model), **SMALL))
    await engine.open_session(info.unit_id, 1, GREEDY)
    out = await generate(engine, info.unit_id, PROMPT, 12)
    await engine.unload(info.unit_id)
    return out
