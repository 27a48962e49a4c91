"""The engine process as its node sees it: real processes, tiny real models; what it loads and computes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import TokenTable, UnitSpec
from p2pnode.compute.part import Part
from p2pnode.compute.surgery import cut
from p2pnode.errors import (
    BadModelFile,
    ContextFull,
    NotFound,
    RequestError,
    SessionLost,
)
from p2pnode.facade import SamplingParams
from p2pnode.frame import Kind
from tests.kit.engine_units import GREEDY, PROMPT, SMALL, WARM, cut_spec, generate, index_at, tokens_frame

pytestmark = pytest.mark.asyncio(loop_scope="module")


# --- loading ---------------------------------------------------------------------------------------
async def test_loading_reports_what_was_found(engine: EngineClient, model: Path) -> None:
    """Progress arrives, and the facts are the file's."""
    heard: list[float] = []
    info = await engine.load(UnitSpec(model_path=str(model), fingerprint="f", **SMALL), progress=heard.append)
    assert heard
    assert (info.architecture, info.layers, info.columns, info.vocab_tokens) == ("llama", 5, 64, 300)
    assert (info.bos, info.eos, info.rollback) == (1, 2, True)
    assert info.fingerprint.startswith("f|")
    assert info.metadata["general.architecture"] == "llama"
    stats = await engine.stats()
    assert stats["rss_bytes"] < 200 * 1024 * 1024
    await engine.unload(info.unit_id)
    with pytest.raises(NotFound):
        await engine.unload(info.unit_id)


async def test_a_vocabulary_alone_speaks_but_does_not_compute(engine: EngineClient, model: Path) -> None:
    info = await engine.load(UnitSpec(model_path=str(model), vocab_only=True, output="none"))
    ids = await engine.tokenize(info.unit_id, "hé", add_special=False)
    assert (await engine.detokenize(info.unit_id, ids)).decode().strip("▁ ") == "hé"
    assert b"".join(await engine.pieces(info.unit_id, ids)).decode().strip("▁ ") == "hé"
    with pytest.raises(RequestError):
        await engine.step(info.unit_id, tokens_frame(ids))
    with pytest.raises(RequestError):
        await engine.open_session(info.unit_id, 1)
    await engine.unload(info.unit_id)


@pytest.mark.parametrize(
    "changes",
    [
        {"context_tokens": 0},
        {"batch_rows": 100_000},
        {"sessions_max": 10_000},
        {"threads": -1},
        {"gpu_layers": -7},
        {"kv_type_k": "q2_k"},
        {"load_mode": "magic"},
        {"kv_type_v": "q4_0", "flash_attention": "off"},
        {"output": "rows"},
        {"model_path": None},
        {"rank": 3},
        {"threads": "many"},
        {"nonsense": 1},
    ],
)
async def test_settings_that_would_abort_are_refused(
    engine: EngineClient, model: Path, changes: dict[str, object]
) -> None:
    """The engine says which setting is wrong and lives on."""
    values, payload = UnitSpec(model_path=str(model), **SMALL).as_message()
    with pytest.raises(RequestError):
        await engine._call({"op": "load", "spec": {**values, **changes}}, payload)


@pytest.mark.parametrize("damage", ["truncated", "noise", "empty", "missing", "shape"])
async def test_damaged_files_are_refused(
    engine: EngineClient, model: Path, tmp_path: Path, damage: str
) -> None:
    """llama.cpp's own refusal becomes a condition; the process survives."""
    _damage(model, tmp_path / "bad.gguf", damage)
    with pytest.raises(BadModelFile) as refused:
        await engine.load(UnitSpec(model_path=str(tmp_path / "bad.gguf"), **SMALL))
    assert engine.alive
    if damage == "shape":
        assert "tensor 'blk.1.attn_q.weight' not found" in refused.value.message, "in llama.cpp's words"


def _damage(model: Path, path: Path, damage: str) -> None:
    data = model.read_bytes()
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "noise":
        path.write_bytes(os.urandom(4096))
    elif damage == "empty":
        path.touch()
    elif damage == "shape":
        path.write_bytes(data.replace(b"blk.1.attn_q.weight", b"blk.1.attn_z.weight"))


# --- computing -------------------------------------------------------------------------------------
@pytest.mark.parametrize("table", [False, True], ids=["embedding-in-slice", "embedding-from-file"])
async def test_slices_give_the_tokens_of_the_whole(
    engine: EngineClient, model: Path, expected: Sequence[int], table: bool
) -> None:
    """Three slices from byte ranges of one file, rows between them, sampling at the end."""
    index = index_at(model)
    parts = [Part(0, 2, embedding=not table), Part(2, 4), Part(4, 5, output=True)]
    specs = [cut_spec(cut(index, part), model) for part in parts]
    if table:
        tensor = index.tensors["token_embd.weight"]
        found = TokenTable(str(model), tensor.offset, tensor.type.number, 300, 64)
        specs[0] = replace(specs[0], token_table=found)
    units = [(await engine.load(spec)).unit_id for spec in specs]
    await engine.open_session(units[-1], 1, GREEDY)
    out: list[int] = []
    while len(out) < len(expected):
        frame = tokens_frame(out[-1:] or PROMPT, len(PROMPT) + len(out) - 1 if out else 0)
        for unit_id in units[:-1]:
            frame = await engine.step(unit_id, frame)
            assert frame.kind is Kind.ROWS
        out.append((await engine.step_sample(units[-1], frame)).token)
    assert out == expected
    for unit_id in units:
        await engine.unload(unit_id)


async def test_a_stateless_output_needs_only_the_wanted_rows(
    engine: EngineClient, model: Path, expected: Sequence[int]
) -> None:
    """All layers in one unit that returns wanted rows, norm and matrix in another without layers."""
    index = index_at(model)
    body = await engine.load(
        cut_spec(cut(index, Part(0, 5, embedding=True)), model, rows_out="wanted", rows_dtype="f32")
    )
    output = await engine.load(cut_spec(cut(index, Part(5, 5, output=True)), model))
    await engine.open_session(output.unit_id, 1, GREEDY)
    out: list[int] = []
    while len(out) < len(expected):
        start = len(PROMPT) + len(out) - 1 if out else 0
        rows = await engine.step(body.unit_id, tokens_frame(out[-1:] or PROMPT, start))
        assert (rows.rows, rows.wanted_first) == (1, 0)
        out.append((await engine.step_sample(output.unit_id, rows)).token)
    assert out == expected
    for info in (body, output):
        await engine.unload(info.unit_id)


async def test_sessions_share_batches_and_keep_apart(
    engine: EngineClient, unit: int, expected: Sequence[int]
) -> None:
    """Four sessions at once, each as if it were alone."""
    prompts = {1: PROMPT, 2: (1, 60, 61), 3: (1, 200), 4: PROMPT}
    for session in prompts:
        await engine.open_session(unit, session, GREEDY)
    together = await asyncio.gather(
        *(generate(engine, unit, prompt, 12, session=session) for session, prompt in prompts.items())
    )
    assert together[0] == together[3] == list(expected)
    for session, prompt in prompts.items():
        assert await generate(engine, unit, prompt, 12, session=session) == together[session - 1]


async def test_a_long_prompt_is_computed_in_chunks(engine: EngineClient, unit: int) -> None:
    """More rows than a batch holds: one answer, the same as in single steps."""
    prompt = [1, *(60 + n % 200 for n in range(149))]
    await engine.open_session(unit, 1, GREEDY)
    whole = (await engine.step_sample(unit, tokens_frame(prompt))).token
    for at in range(0, 150, 50):
        chunk = tokens_frame(prompt[at : at + 50], at, wanted=49 if at == 100 else 50)
        sampled = await engine.step_sample(unit, chunk)
    assert sampled.token == whole


async def test_frames_rewind_by_their_position(
    engine: EngineClient, unit: int, expected: Sequence[int]
) -> None:
    """A frame sent again, or from an earlier position, drops what was there."""
    await engine.open_session(unit, 1, GREEDY)
    assert await generate(engine, unit, PROMPT, 12) == expected
    again = [*expected[:4]]
    sampled = await engine.step_sample(unit, tokens_frame(again, len(PROMPT)))
    assert sampled.token == expected[4]
    sampled = await engine.step_sample(unit, tokens_frame([again[3]], len(PROMPT) + 3))
    assert sampled.token == expected[4]
    with pytest.raises(SessionLost):
        await engine.step_sample(unit, tokens_frame([5], 200))


# --- going ahead -----------------------------------------------------------------------------------
@pytest.mark.parametrize("params", [GREEDY, WARM], ids=["greedy", "warm"])
async def test_going_ahead_changes_no_token(engine: EngineClient, unit: int, params: SamplingParams) -> None:
    """Passes begun before they were asked for give what the same passes give later; penalties and seed included."""
    await engine.open_session(unit, 1, params, PROMPT)
    await engine.open_session(unit, 2, params, PROMPT)
    in_turn = await generate(engine, unit, PROMPT, 12)
    assert await generate(engine, unit, PROMPT, 12, session=2, ahead=True) == in_turn


async def test_side_by_side_sessions_go_ahead(
    engine: EngineClient, unit: int, expected: Sequence[int]
) -> None:
    """What one session computed ahead is lost with another's batch, and computed again when it is asked for."""
    for session in range(1, 5):
        await engine.open_session(unit, session, GREEDY)
    answers = await asyncio.gather(
        *(generate(engine, unit, PROMPT, 12, session=n, ahead=n > 1) for n in range(1, 5))
    )
    assert answers == [list(expected)] * 4


async def test_a_pass_nobody_asks_for_is_taken_back(
    engine: EngineClient, unit: int, expected: Sequence[int]
) -> None:
    """Another token, another position, a copy, a state: each finds what was asked for and no more."""
    await engine.open_session(unit, 1, GREEDY)
    await engine.open_session(unit, 2, GREEDY)
    assert await generate(engine, unit, PROMPT, 4, ahead=True) == list(expected[:4])
    held = len(PROMPT) + 3
    with pytest.raises(SessionLost):
        await engine.copy_prefix(unit, 1, 2, held + 1)
    await engine.copy_prefix(unit, 1, 2, held)
    for session in (1, 2):
        sampled = await engine.step_sample(
            unit, tokens_frame(expected[3:4], held, session=session), ahead=True
        )
        assert sampled.token == expected[4]
    state = await engine.state_get(unit, 1)
    assert await engine.state_set(unit, 2, state) == held + 1
    sampled = await engine.step_sample(unit, tokens_frame(expected[1:5], len(PROMPT) + 1), ahead=True)
    assert sampled.token == expected[5]
    await engine.cancel(unit, 1)
    await engine.free_session(unit, 1)
    stats = await engine.stats()
    assert stats["units"][unit]["positions"] == held + 1


async def test_the_last_position_is_the_last(engine: EngineClient, model: Path) -> None:
    """No pass begins where no position is left, and nobody hears of it."""
    info = await engine.load(
        UnitSpec(model_path=str(model), **{**SMALL, "context_tokens": 32, "sessions_max": 1})
    )
    await engine.open_session(info.unit_id, 1, GREEDY)
    count = info.session_tokens - len(PROMPT) + 1
    in_turn = await generate(engine, info.unit_id, PROMPT, count)
    assert await generate(engine, info.unit_id, PROMPT, count, ahead=True) == in_turn
    with pytest.raises(ContextFull):
        await engine.step_sample(info.unit_id, tokens_frame(in_turn[-1:], info.session_tokens))
    await engine.unload(info.unit_id)
