"""A streamed model never has more in memory than it may, not even for a moment while it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_process import streaming_environment
from p2pnode.compute.engine_protocol import UnitSpec
from p2pnode.facade import SamplingParams
from tests.kit.engine_units import generate
from tests.kit.toy_models import Toy, write_model

SIZES: dict[str, Any] = {"layers": 12, "width": 256, "heads": 8, "head_width": 32, "ff": 2048}
LIMIT_BYTES = 24 * 2**20
PROMPT = [1, 70, 80, 90]
SMALL: dict[str, Any] = {"context_tokens": 256, "sessions_max": 1, "threads": 1, "batch_rows": 32}


def most_resident(pid: int) -> int:
    """Bytes this process had in memory at once, ever."""
    (line,) = [x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(
        tmp_path_factory.mktemp("models") / "wide.gguf", Toy("llama", text=True, vocabulary=300, **SIZES)
    )


async def peak_bytes(model: Path, **changes: Any) -> tuple[int, list[int]]:
    """Of the whole life of an engine; and what it said."""
    engine = await EngineClient.start(environment=streaming_environment())
    try:
        spec = UnitSpec(model_path=str(model), repack=False, load_mode="mmap", **SMALL, **changes)
        unit = (await engine.load(spec)).unit_id
        await engine.open_session(unit, 1, SamplingParams(temperature=0.0))
        said = await generate(engine, unit, PROMPT, 6)
        return most_resident(engine.pid), said
    finally:
        await engine.close()


@pytest.fixture(scope="module")
def size(model: Path) -> int:
    return model.stat().st_size


async def test_the_peak_stays_near_the_limit_from_the_first_moment(model: Path, size: int) -> None:
    assert size > 3 * LIMIT_BYTES
    whole, expected = await peak_bytes(model)
    assert whole > size, "what is not streamed ends up in memory: the measure sees it"
    streamed, said = await peak_bytes(model, resident_bytes_max=LIMIT_BYTES)
    assert streamed < whole - size + LIMIT_BYTES + size // 8, (
        "the same engine, with the limit in place of the weights"
    )
    assert said == expected
