"""What an engine keeps in memory: cells of a context that nobody used are not resident, and still compute; weights
lie in huge pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import UnitSpec
from p2pnode.facade import SamplingParams
from tests.kit.engine_units import generate
from tests.kit.toy_models import Toy, write_model

GREEDY = SamplingParams(temperature=0.0)
PROMPT = tuple(range(20, 120))
CELLS = 65_536
CELL_BYTES = 2 * 2 * 4 * 2 * 16
"""Keys and values of F16, in the toy's 4 layers of 2 heads of 16 columns."""


async def test_cells_take_memory_when_they_are_used(tmp_path: Path) -> None:
    """Tokens are those of a small context, before and after the first use of a cell."""
    toy = Toy("llama", text=True, vocabulary=300, layers=4, kv_heads=2, head_width=16)
    path = str(write_model(tmp_path / "toy.gguf", toy))
    engine = await EngineClient.start()
    try:
        texts, grown = [], []
        for cells in (512, CELLS):
            before = (await engine.stats())["anonymous_bytes"]
            info = await engine.load(
                UnitSpec(model_path=path, context_tokens=cells, sessions_max=4, threads=1)
            )
            grown.append((await engine.stats())["anonymous_bytes"] - before)
            for session in (1, 2, 3):
                await engine.open_session(info.unit_id, session, GREEDY)
                texts.append(await generate(engine, info.unit_id, PROMPT, 8, session=session))
            await engine.unload(info.unit_id)
    finally:
        await engine.close()
    assert len(texts[0]) == 8
    assert all(text == texts[0] for text in texts)
    assert grown[1] - grown[0] < CELLS * CELL_BYTES // 4


async def test_a_state_fits_into_untouched_cells(tmp_path: Path) -> None:
    toy = Toy("llama", text=True, vocabulary=300)
    path = str(write_model(tmp_path / "toy.gguf", toy))
    engine = await EngineClient.start()
    try:
        small = await engine.load(UnitSpec(model_path=path, context_tokens=512, sessions_max=4, threads=1))
        other = await engine.load(UnitSpec(model_path=path, context_tokens=CELLS, sessions_max=4, threads=1))
        await engine.open_session(small.unit_id, 1, GREEDY)
        await generate(engine, small.unit_id, PROMPT, 4, session=1)
        state = await engine.state_get(small.unit_id, 1)
        await engine.open_session(other.unit_id, 1, GREEDY)
        positions = await engine.state_set(other.unit_id, 1, state)
        assert positions == len(PROMPT) + 3
        assert bytes(await engine.state_get(other.unit_id, 1)) == bytes(state)
    finally:
        await engine.close()


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE_PAGE_BYTES = 2 * 1024 * 1024
"""An arena of the interpreter (1 MiB, mapped by chance beside the weights while they are looked for) cannot be one."""


def asked_bytes(pid: int) -> int:
    """Size of all areas that a process wants in huge pages."""
    total = size = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if line.startswith("Size:"):
            size = int(line.split()[1]) * 1024
        elif line.startswith("VmFlags:") and "hg" in line.split():
            total += size
    return total


@pytest.mark.skipif(not HUGE_PAGES.is_file(), reason="this system has no transparent huge pages")
async def test_weights_and_nothing_else_are_wanted_in_huge_pages(tmp_path: Path) -> None:
    toy = Toy("llama", vocabulary=65_536, kv_heads=4, head_width=16)
    path = write_model(tmp_path / "toy.gguf", toy)
    engine = await EngineClient.start()
    try:
        info = await engine.load(
            UnitSpec(model_path=str(path), context_tokens=CELLS, threads=1, load_mode="copy")
        )
        weights_bytes = info.model_bytes
        assert weights_bytes > 30_000_000
        assert weights_bytes <= asked_bytes(engine.pid) < weights_bytes * 1.25
        await engine.unload(info.unit_id)
        assert asked_bytes(engine.pid) < HUGE_PAGE_BYTES
    finally:
        await engine.close()
