"""Sessions of an engine: prefixes laid aside, epochs, ends, a full context, and input that is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import UnitSpec
from p2pnode.compute.part import Part
from p2pnode.compute.surgery import cut
from p2pnode.errors import (
    Cancelled,
    ContextFull,
    P2PNodeError,
    RequestError,
    SessionLost,
    ShapeMismatch,
    StaleEpoch,
)
from p2pnode.facade import SamplingParams
from p2pnode.frame import DType, Frame, Kind, pack_rows, rows_f32
from tests.kit.engine_units import GREEDY, PROMPT, SMALL, cut_spec, generate, index_at, tokens_frame
from tests.kit.toy_models import Toy, write_model

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_prefix_can_be_copied(engine: EngineClient, unit: int, expected: Sequence[int]) -> None:
    """A new session starts from the cells of another."""
    await engine.open_session(unit, 1, GREEDY)
    await generate(engine, unit, PROMPT, 2)
    await engine.open_session(unit, 2, GREEDY)
    await engine.copy_prefix(unit, 1, 2, 5)
    sampled = await engine.step_sample(unit, tokens_frame(PROMPT[5:], 5, session=2))
    assert sampled.token == expected[0]
    with pytest.raises(SessionLost):
        await engine.copy_prefix(unit, 1, 2, 99)
    with pytest.raises(RequestError):
        await engine.copy_prefix(unit, 1, 1, 2)


async def test_a_kept_prefix_changes_no_number(engine: EngineClient, model: Path) -> None:
    """Kept beside the cells, used by two others as often as wanted, and every probability is that of a cold run."""
    spec = UnitSpec(model_path=str(model), prefix_bytes_max=10**8, **SMALL)
    unit = (await engine.load(spec)).unit_id
    exact = SamplingParams(temperature=0.0, logprobs=3)
    prompts = [[3 + 7 * k % 250 for k in range(100)], [3 + 7 * k % 250 for k in range(64)] + [9, 8, 7] * 9]

    async def answer(session: int, prompt: list[int], begun: int) -> list[Any]:
        await engine.open_session(unit, session, exact)
        if begun:
            await engine.reuse_prefix(unit, session, 1, begun)
        else:
            await engine.step(unit, tokens_frame(prompt[:64], 0, session=session, wanted=64))
        out = [await engine.step_sample(unit, tokens_frame(prompt[64:], 64, session=session))]
        for at in range(len(prompt), len(prompt) + 20):
            out.append(await engine.step_sample(unit, tokens_frame([out[-1].token], at, session=session)))
        return [step.tokens for step in out]

    cold = []
    for session, prompt in enumerate(prompts, start=1):
        cold.append(await answer(session, prompt, 0))
        if session == 1:
            await engine.keep_prefix(unit, 1, 120)
        await engine.free_session(unit, session)
    for session, prompt in enumerate(prompts, start=3):
        assert await answer(session, prompt, 64) == cold[session - 3]
        await engine.free_session(unit, session)
    await engine.open_session(unit, 9, exact)
    with pytest.raises(SessionLost):
        await engine.reuse_prefix(unit, 9, 1, 121)
    with pytest.raises(SessionLost):
        await engine.reuse_prefix(unit, 9, 2, 64)
    with pytest.raises(SessionLost):
        await engine.keep_prefix(unit, 9, 1)
    await engine.forget_prefix(unit, 1)
    with pytest.raises(SessionLost):
        await engine.reuse_prefix(unit, 9, 1, 64)
    await engine.unload(unit)


async def test_kept_prefixes_are_bounded_and_end_with_what_they_were_computed_by(
    engine: EngineClient, model: Path
) -> None:
    unit = (await engine.load(UnitSpec(model_path=str(model), prefix_bytes_max=40_000, **SMALL))).unit_id
    await engine.step(unit, tokens_frame(range(3, 33), wanted=30))
    await engine.keep_prefix(unit, 1, 30)
    await engine.step(unit, tokens_frame(range(3, 63), session=2, wanted=60))
    with pytest.raises(ContextFull):
        await engine.keep_prefix(unit, 2, 60)
    await engine.reuse_prefix(unit, 3, 1, 30)
    await engine.set_adapters(unit, [])  # what is computed may have changed
    with pytest.raises(SessionLost):
        await engine.reuse_prefix(unit, 4, 1, 30)
    await engine.unload(unit)


async def test_a_prefix_without_room_is_as_good_as_none(engine: EngineClient, model: Path) -> None:
    unit = (await engine.load(UnitSpec(model_path=str(model), prefix_bytes_max=10**8, **SMALL))).unit_id
    tokens = [3 + k % 250 for k in range(150)]
    for at in (0, 50, 100):
        await engine.step(unit, tokens_frame(tokens[at : at + 50], at, wanted=50))
    await engine.keep_prefix(unit, 1, 150)
    with pytest.raises(SessionLost):
        await engine.reuse_prefix(unit, 2, 1, 140)
    await engine.reuse_prefix(unit, 2, 1, 90)  # only what is wanted needs room
    await engine.unload(unit)


async def test_a_recurrent_prefix_is_used_as_a_whole(engine: EngineClient, tmp_path: Path) -> None:
    path = write_model(tmp_path / "hybrid.gguf", Toy("qwen3next", text=True, vocabulary=300))
    unit = (await engine.load(UnitSpec(model_path=str(path), prefix_bytes_max=10**8, **SMALL))).unit_id
    await engine.open_session(unit, 1, GREEDY)
    whole = await generate(engine, unit, PROMPT, 6)
    await engine.free_session(unit, 1)
    await engine.step(unit, tokens_frame(PROMPT[:5], session=2, wanted=5))
    with pytest.raises(SessionLost):
        await engine.keep_prefix(unit, 2, 4)
    await engine.keep_prefix(unit, 2, 5)
    await engine.open_session(unit, 3, GREEDY)
    with pytest.raises(SessionLost):
        await engine.reuse_prefix(unit, 3, 2, 4)
    await engine.reuse_prefix(unit, 3, 2, 5)
    sampled = await engine.step_sample(unit, tokens_frame(PROMPT[5:], 5, session=3))
    assert sampled.token == whole[0]
    await engine.unload(unit)


async def test_epochs_make_late_frames_harmless(engine: EngineClient, unit: int) -> None:
    await engine.open_session(unit, 1, GREEDY)
    await engine.step_sample(unit, tokens_frame(PROMPT, epoch=3))
    with pytest.raises(StaleEpoch):
        await engine.step_sample(unit, tokens_frame([5], len(PROMPT), epoch=2))


async def test_sessions_end(engine: EngineClient, unit: int) -> None:
    """Freed sequences are used again; one too many is told so."""
    for session in range(1, 5):
        await engine.open_session(unit, session, GREEDY)
    with pytest.raises(P2PNodeError, match="all 4 sessions"):
        await engine.open_session(unit, 5, GREEDY)
    await engine.free_session(unit, 2)
    await engine.free_session(unit, 99)
    await engine.open_session(unit, 5, GREEDY)
    assert (await engine.stats())["units"][unit]["sessions"] == 4


async def test_cancelled_steps_are_answered(engine: EngineClient, unit: int) -> None:
    """Steps behind a running one are answered as cancelled, the running one finishes."""
    await engine.open_session(unit, 1, GREEDY)
    first = asyncio.create_task(engine.step(unit, tokens_frame([1] * 64)))
    later = [asyncio.create_task(engine.step(unit, tokens_frame([2], 64 + n))) for n in range(3)]
    await asyncio.sleep(0)
    await engine.cancel(unit, 1)
    results = await asyncio.gather(first, *later, return_exceptions=True)
    assert all(isinstance(result, Frame | Cancelled) for result in results)
    assert any(isinstance(result, Cancelled) for result in results)


async def test_a_step_can_be_begun_without_a_task(engine: EngineClient, unit: int) -> None:
    """Answers, refusals and steps that nobody waits for any more are as with `step`; nothing is left behind."""
    await engine.open_session(unit, 1, GREEDY)
    begun = engine.begin_step(unit, tokens_frame([1, 2]))
    given_up = engine.begin_step(unit, tokens_frame([3], 2))
    given_up.cancel()
    assert (await begun).meta["t"] is not None
    with pytest.raises(P2PNodeError):
        await engine.begin_step(unit + 1000, tokens_frame([1]))
    assert (await engine.step(unit, tokens_frame([4], 3))).kind is (await begun).kind
    assert engine._calls == {}


async def test_a_full_context_is_told(engine: EngineClient, model: Path) -> None:
    """A session too long, and sessions too many for the shared cells: conditions, and the others go on."""
    info = await engine.load(UnitSpec(model_path=str(model), **{**SMALL, "context_tokens": 64}))
    unit, limit = info.unit_id, info.session_tokens
    await engine.open_session(unit, 1, GREEDY)
    with pytest.raises(ContextFull):
        await engine.step(unit, tokens_frame([1] * (limit + 1)))
    await engine.step(unit, tokens_frame([1] * (limit // 2 + 10)))
    outcome = await asyncio.gather(
        engine.step(unit, tokens_frame([1] * (limit // 2), session=2)),
        engine.step(unit, tokens_frame([1], limit // 2 + 10)),
        return_exceptions=True,
    )
    assert isinstance(outcome[0], ContextFull)
    assert isinstance(outcome[1], Frame)
    await engine.unload(unit)


@pytest.mark.parametrize(
    "frame",
    [
        tokens_frame([300]),
        tokens_frame([-1]),
        Frame(Kind.TOKENS, DType.I32, 0, 1, 1),
        Frame(Kind.ROWS, DType.F32, 1, 64, 1, bytes(256)),
        Frame(Kind.ERROR, DType.F32, 0, 0, 1),
        tokens_frame([1] * 40, wanted=0),
        tokens_frame([1], meta={"draft": 5}),
        tokens_frame([1], meta={"draft": ["a"]}),
        replace(tokens_frame([1, 2]), rows=3),
    ],
)
async def test_wrong_input_is_refused(engine: EngineClient, unit: int, frame: Frame) -> None:
    await engine.open_session(unit, 1, GREEDY)
    with pytest.raises(ShapeMismatch):
        await engine.step_sample(unit, frame)


async def test_wrong_rows_are_refused(engine: EngineClient, model: Path) -> None:
    """Rows of another width, rows with NaN, and sampling where there are no logits."""
    info = await engine.load(cut_spec(cut(index_at(model), Part(2, 4)), model))
    unit = info.unit_id
    for rows in (np.zeros((1, 32), np.float32), np.full((1, 64), np.nan, np.float32)):
        payload = pack_rows(rows, DType.F32)
        with pytest.raises(ShapeMismatch):
            await engine.step(unit, Frame(Kind.ROWS, DType.F32, 1, rows.shape[1], 1, payload))
    with pytest.raises(ShapeMismatch):
        await engine.step(unit, tokens_frame([1]))
    with pytest.raises(RequestError):
        await engine.step_sample(unit, Frame(Kind.ROWS, DType.F32, 1, 64, 1, bytes(256)))
    with pytest.raises(RequestError):
        await engine.tokenize(unit, "no vocabulary here")
    await engine.unload(unit)


async def test_rows_can_leave_as_halves(engine: EngineClient, model: Path) -> None:
    exact = await engine.load(cut_spec(cut(index_at(model), Part(0, 2, embedding=True)), model))
    half = await engine.load(
        cut_spec(cut(index_at(model), Part(0, 2, embedding=True)), model, rows_dtype="f16")
    )
    ours, theirs = [await engine.step(info.unit_id, tokens_frame(PROMPT)) for info in (exact, half)]
    assert theirs.dtype is DType.F16
    assert np.allclose(rows_f32(ours), rows_f32(theirs), rtol=1e-3, atol=1e-3)
    for info in (exact, half):
        await engine.unload(info.unit_id)
