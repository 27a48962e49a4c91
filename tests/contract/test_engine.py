"""The engine process as its node sees it: real processes, tiny real models."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import pytest_asyncio

from p2pnode.compute import kv_state
from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import Adapter, TokenTable, UnitSpec, frame_fields
from p2pnode.compute.part import Part
from p2pnode.compute.sampling import params_as_message
from p2pnode.compute.surgery import cut
from p2pnode.errors import (
    BadModelFile,
    Cancelled,
    ContextFull,
    EngineIncompatible,
    EngineUnavailable,
    NotFound,
    OutOfMemory,
    P2PNodeError,
    RemoteProtocolError,
    RequestError,
    SessionLost,
    ShapeMismatch,
    StaleEpoch,
)
from p2pnode.facade import SamplingParams
from p2pnode.frame import DType, Frame, Kind, pack_rows, rows_f32
from tests.kit.engine_units import SMALL, cut_spec, generate, tokens_frame
from tests.kit.toy_models import Toy, write_model

pytestmark = pytest.mark.asyncio(loop_scope="module")
GREEDY = SamplingParams(temperature=0.0)
WARM = SamplingParams(temperature=0.9, top_k=20, seed=7, repeat_penalty=1.2)
PROMPT = (1, 70, 80, 90, 100, 110, 120)


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
    with pytest.raises(BadModelFile):
        await engine.load(UnitSpec(model_path=str(tmp_path / "bad.gguf"), **SMALL))
    assert engine.alive


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
    index = _index(model)
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
    index = _index(model)
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
    info = await engine.load(cut_spec(cut(_index(model), Part(2, 4)), model))
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
    exact = await engine.load(cut_spec(cut(_index(model), Part(0, 2, embedding=True)), model))
    half = await engine.load(
        cut_spec(cut(_index(model), Part(0, 2, embedding=True)), model, rows_dtype="f16")
    )
    ours, theirs = [await engine.step(info.unit_id, tokens_frame(PROMPT)) for info in (exact, half)]
    assert theirs.dtype is DType.F16
    assert np.allclose(rows_f32(ours), rows_f32(theirs), rtol=1e-3, atol=1e-3)
    for info in (exact, half):
        await engine.unload(info.unit_id)


# --- sampling --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "sampling", [WARM, replace(WARM, grammar="root ::= [^x]+"), replace(WARM, temperature=0.0)]
)
async def test_a_row_sampled_again_draws_the_same_numbers(
    engine: EngineClient, unit: int, sampling: SamplingParams
) -> None:
    """Whoever lost the way to an answer asks again: seed, penalties and grammar stand where they stood."""
    await engine.open_session(unit, 1, sampling, PROMPT)
    once = await generate(engine, unit, PROMPT, 8, session=1)
    await engine.open_session(unit, 2, sampling, PROMPT)
    twice: list[int] = []
    for count in range(8):
        frame = tokens_frame(PROMPT, session=2)
        if count:
            frame = tokens_frame(twice[-1:], len(PROMPT) + count - 1, session=2)
        answers = [(await engine.step_sample(unit, frame)).token for _ in range(1 + count % 3)]
        assert len(set(answers)) == 1
        twice.append(answers[0])
    assert twice == once


async def test_a_seed_gives_the_same_text_again(engine: EngineClient, unit: int) -> None:
    """Two sessions with one seed agree, another seed differs."""
    texts = []
    for session, seed in ((1, 7), (2, 7), (3, 8)):
        await engine.open_session(unit, session, replace(WARM, seed=seed), PROMPT)
        texts.append(await generate(engine, unit, PROMPT, 20, session=session))
    assert texts[0] == texts[1] != texts[2]


async def test_logprobs_are_the_models_own(engine: EngineClient, unit: int) -> None:
    await engine.open_session(unit, 1, replace(GREEDY, logprobs=3))
    token = (await engine.step_sample(unit, tokens_frame(PROMPT))).tokens[0]
    assert token.logprob is not None
    assert token.top[0][:2] == (token.token, token.logprob)
    assert [item[1] for item in token.top] == sorted((item[1] for item in token.top), reverse=True)
    assert sum(np.exp(item[1]) for item in token.top) <= 1.0


async def test_logit_bias_and_grammar_bind(engine: EngineClient, unit: int) -> None:
    """A bias makes one token certain; a grammar lets only its words through and ends the text."""
    await engine.open_session(unit, 1, replace(GREEDY, logit_bias={77: 1000.0}))
    assert await generate(engine, unit, PROMPT, 3) == [77, 77, 77]
    await engine.open_session(unit, 1, replace(WARM, grammar='root ::= "yes" | "no"'))
    out = await generate(engine, unit, PROMPT, 1)
    for _ in range(3):
        pieces = b"".join(await engine.pieces(unit, out, special=False))
        if pieces in (b"yes", b"no"):
            break
        out.append((await engine.step_sample(unit, tokens_frame(out[-1:], len(PROMPT) + len(out) - 1))).token)
    assert pieces in (b"yes", b"no")
    sampled = await engine.step_sample(unit, tokens_frame(out[-1:], len(PROMPT) + len(out) - 1))
    assert sampled.is_eog


@pytest.mark.parametrize(
    "grammar", ["root ::= (", 'other ::= "a"', "root ::= root", "root ::= undefined-rule"]
)
async def test_broken_grammars_are_refused(engine: EngineClient, unit: int, grammar: str) -> None:
    with pytest.raises(RequestError):
        await engine.open_session(unit, 1, replace(GREEDY, grammar=grammar))
    assert engine.alive


async def test_a_draft_is_accepted_as_far_as_it_is_right(
    engine: EngineClient, unit: int, expected: Sequence[int]
) -> None:
    """Several wanted rows with a draft: tokens until the first that the model would not choose."""
    await engine.open_session(unit, 1, GREEDY)
    await engine.step_sample(unit, tokens_frame(PROMPT))
    draft = [expected[0], expected[1], expected[2], (expected[3] + 1) % 300]
    frame = tokens_frame(draft, len(PROMPT), wanted=0, meta={"draft": [*draft[1:]]})
    sampled = await engine.step_sample(unit, frame)
    assert [item.token for item in sampled.tokens] == list(expected[1:4])


async def test_sampling_needs_an_open_session(engine: EngineClient, unit: int) -> None:
    with pytest.raises(RequestError):
        await engine.step_sample(unit, tokens_frame(PROMPT, session=77))


# --- embeddings ------------------------------------------------------------------------------------
@pytest.mark.parametrize("pooling", ["mean", "last", "cls", "none"])
async def test_embeddings_are_pooled_and_normalised(engine: EngineClient, model: Path, pooling: str) -> None:
    """The same text gives the same unit vector, alone or beside others; another text another one."""
    info = await engine.load(UnitSpec(model_path=str(model), output="embedding", pooling=pooling, **SMALL))  # type: ignore[arg-type]  # a choice among those of the type
    texts = [PROMPT, PROMPT[:4], PROMPT, (1, 90, 95)]
    alone = [await engine.embed(info.unit_id, text) for text in texts]
    together = await asyncio.gather(*(engine.embed(info.unit_id, text) for text in texts))
    assert np.allclose(alone, together, atol=1e-5)
    assert np.allclose(np.linalg.norm(alone, axis=1), 1.0, atol=1e-5)
    assert np.allclose(alone[0], alone[2], atol=1e-5)
    if pooling != "cls":
        assert not np.allclose(alone[0], alone[1], atol=1e-3)
    with pytest.raises(ContextFull):
        await engine.embed(info.unit_id, [1] * 65)
    await engine.unload(info.unit_id)


@pytest.mark.parametrize("first", [3, 5], ids=["with-layers", "norm-alone"])
@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
async def test_rows_of_a_slice_are_pooled_by_the_next(
    engine: EngineClient, model: Path, pooling: str, first: int
) -> None:
    """The last unit of a pipeline gives the whole model's embedding, bit for bit in the same batches."""
    whole = await engine.load(UnitSpec(model_path=str(model), output="embedding", pooling=pooling, **SMALL))  # type: ignore[arg-type]  # a choice among those of the type
    index = _index(model)
    body = await engine.load(cut_spec(cut(index, Part(0, first, embedding=True)), model))
    last = cut(index, Part(first, 5, output=True))
    tail = await engine.load(cut_spec(last, model, output="embedding", pooling=pooling))
    for text in (PROMPT, PROMPT[:3]):
        rows = await engine.step(body.unit_id, tokens_frame(text, wanted=0))
        await engine.free_session(body.unit_id, 1)
        assert await engine.pool(tail.unit_id, rows) == await engine.embed(whole.unit_id, text)
    for info in (whole, body, tail):
        await engine.unload(info.unit_id)


# --- adapters --------------------------------------------------------------------------------------
def _write_adapter(path: Path, width: int = 64) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    rng = np.random.default_rng(1)
    for name, columns in (("attn_q", width), ("ffn_down", 96)):
        for side, shape in (("a", (4, columns)), ("b", (width, 4))):
            values = rng.standard_normal(shape).astype(np.float32)
            writer.add_tensor(f"blk.1.{name}.weight.lora_{side}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


async def test_adapters_and_control_vectors_come_and_go(
    engine: EngineClient, unit: int, model: Path, tmp_path: Path, expected: Sequence[int]
) -> None:
    """They change the text while they act, at once; without them the model is itself again."""
    good, bad = _write_adapter(tmp_path / "good.gguf"), _write_adapter(tmp_path / "bad.gguf", 32)
    await engine.open_session(unit, 1, GREEDY)
    await engine.set_adapters(unit, [Adapter(str(good), 1.0)])
    assert await generate(engine, unit, PROMPT, 12) != expected
    await engine.set_adapters(unit, [])
    assert await generate(engine, unit, PROMPT, 12) == expected
    for path in (bad, model, tmp_path / "missing"):
        with pytest.raises(BadModelFile):
            await engine.set_adapters(unit, [Adapter(str(path))])
    with pytest.raises(RequestError):
        await engine.set_adapters(unit, [Adapter(str(good))] * 17)

    steering = (np.random.default_rng(2).standard_normal((4, 64)) * 5).astype(np.float32)
    await engine.set_control_vector(unit, steering.tobytes(), 1, 5)
    assert await generate(engine, unit, PROMPT, 12) != expected
    await engine.set_control_vector(unit, b"", 0, 0)
    assert await generate(engine, unit, PROMPT, 12) == expected
    for data, first, end in ((b"abc", 1, 2), (bytes(256 * 5), 1, 2), (bytes(256), 0, 2), (bytes(256), 1, 6)):
        with pytest.raises(ShapeMismatch):
            await engine.set_control_vector(unit, data, first, end)

    loaded = await engine.load(UnitSpec(model_path=str(model), adapters=(Adapter(str(good)),), **SMALL))
    await engine.open_session(loaded.unit_id, 1, GREEDY)
    assert await generate(engine, loaded.unit_id, PROMPT, 12) != expected
    await engine.unload(loaded.unit_id)


@pytest.mark.parametrize(
    "changes",
    [
        {"kv_type_k": "q8_0", "kv_type_v": "q8_0"},
        {"kv_type_k": "q4_0", "kv_type_v": "q4_0"},
        {"flash_attention": "off"},
        {"load_mode": "mmap"},
        {"repack": False},
        {"rope_scaling": "yarn", "rope_freq_scale": 0.5, "yarn_orig_context": 512},
        {"rope_freq_base": 20000.0},
        {"swa_full": False},
        {"threads": 2, "threads_batch": 1},
    ],
)
async def test_settings_reach_llama(engine: EngineClient, model: Path, changes: dict[str, Any]) -> None:
    """Each loads and computes; what that does to the text is llama.cpp's affair."""
    toy = write_model(model.with_name("wide.gguf"), Toy("llama", text=True, vocabulary=300, head_width=32))
    info = await engine.load(UnitSpec(model_path=str(toy), **{**SMALL, **changes}))
    await engine.open_session(info.unit_id, 1, GREEDY)
    assert len(await generate(engine, info.unit_id, PROMPT, 3)) == 3
    await engine.unload(info.unit_id)


# --- streamed --------------------------------------------------------------------------------------
async def test_streamed_weights_give_the_same_text_in_less_memory(
    engine: EngineClient, tmp_path: Path
) -> None:
    """A quarter of the model in memory, every layer read again each step, the output exact."""
    sizes: dict[str, Any] = {"layers": 12, "width": 256, "heads": 8, "head_width": 32, "ff": 2048}
    path = write_model(tmp_path / "wide.gguf", Toy("llama", text=True, vocabulary=300, **sizes))
    texts = []
    for limit in (0, 24 * 2**20):
        spec = UnitSpec(
            model_path=str(path), repack=False, load_mode="mmap", resident_bytes_max=limit, **SMALL
        )
        before = (await engine.stats())["rss_bytes"]
        info = await engine.load(spec)
        await engine.open_session(info.unit_id, 1, GREEDY)
        texts.append(await generate(engine, info.unit_id, PROMPT, 6))
        grown = (await engine.stats())["rss_bytes"] - before
        if limit:
            assert grown < limit + info.model_bytes // 4
        await engine.unload(info.unit_id)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "changes", [{"resident_bytes_max": 1}, {"resident_bytes_max": -1}, {"tap": "l_out-1"}]
)
async def test_streaming_what_cannot_be_is_refused(
    engine: EngineClient, model: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises((RequestError, OutOfMemory)):
        await engine.load(
            UnitSpec(model_path=str(model), **{"resident_bytes_max": 10**9, **SMALL, **changes})
        )


# --- states ----------------------------------------------------------------------------------------
async def test_a_state_moves_between_units(
    engine: EngineClient, model: Path, expected: Sequence[int]
) -> None:
    """Prefill in one unit, decode in another; damaged or foreign states are refused."""
    first = await engine.load(UnitSpec(model_path=str(model), fingerprint="a", **SMALL))
    second = await engine.load(UnitSpec(model_path=str(model), fingerprint="a", **SMALL))
    other = await engine.load(UnitSpec(model_path=str(model), fingerprint="b", **SMALL))
    await engine.step(first.unit_id, tokens_frame(PROMPT[:-1]))
    state = await engine.state_get(first.unit_id, 1)
    assert await engine.state_set(second.unit_id, 9, state) == len(PROMPT) - 1
    await engine.open_session(second.unit_id, 9, GREEDY)
    frame = tokens_frame(PROMPT[-1:], len(PROMPT) - 1, session=9)
    assert (await engine.step_sample(second.unit_id, frame)).token == expected[0]
    with pytest.raises(ShapeMismatch):
        await engine.state_set(other.unit_id, 1, state)
    with pytest.raises(RemoteProtocolError):
        await engine.state_set(second.unit_id, 9, state[:-1])
    with pytest.raises(SessionLost):
        await engine.state_get(first.unit_id, 55)
    for info in (first, second, other):
        await engine.unload(info.unit_id)


async def test_a_state_can_be_cut_joined_and_shortened(
    engine: EngineClient, model: Path, expected: Sequence[int]
) -> None:
    """Prefill on the whole, decode on slices; states of slices joined for the whole; a prefix of it alone."""
    index = _index(model)
    whole = await engine.load(UnitSpec(model_path=str(model), **SMALL))
    parts = [Part(0, 2, embedding=True), Part(2, 5, output=True)]
    slices = [await engine.load(cut_spec(cut(index, part), model)) for part in parts]
    await engine.step(whole.unit_id, tokens_frame(PROMPT[:-1]))
    count, blob = kv_state.unpack(whole.fingerprint, await engine.state_get(whole.unit_id, 1))
    state = kv_state.take_apart(blob)
    assert state.build() == blob
    for info, part in zip(slices, parts, strict=True):
        mine = state.layers(part.layer_first, part.layer_end).build()
        assert await engine.state_set(info.unit_id, 1, kv_state.pack(info.fingerprint, count, mine)) == count
    await engine.open_session(slices[1].unit_id, 1, GREEDY)
    rows = await engine.step(slices[0].unit_id, tokens_frame(PROMPT[-1:], count))
    assert (await engine.step_sample(slices[1].unit_id, rows)).token == expected[0]

    halves = []
    for info in slices:
        full = kv_state.unpack(info.fingerprint, await engine.state_get(info.unit_id, 1))[1]
        halves.append(kv_state.take_apart(full).positions(4))
    joined = kv_state.pack(whole.fingerprint, 4, halves[0].joined(halves[1:]).build())
    assert await engine.state_set(whole.unit_id, 2, joined) == 4
    await engine.open_session(whole.unit_id, 2, GREEDY)
    sampled = await engine.step_sample(whole.unit_id, tokens_frame(PROMPT[4:], 4, session=2))
    assert sampled.token == expected[0]
    for info in (whole, *slices):
        await engine.unload(info.unit_id)


# --- life and death --------------------------------------------------------------------------------
async def test_many_calls_are_under_way_at_once(engine: EngineClient, unit: int) -> None:
    answers = await asyncio.gather(*(engine.pieces(unit, [60 + n % 100]) for n in range(200)))
    assert len(answers) == 200


async def test_unknown_operations_are_refused(engine: EngineClient) -> None:
    with pytest.raises(RequestError):
        await engine._call({"op": "fly"})
    with pytest.raises(RequestError):
        await engine._call({"op": "tokenize"})


JUNK: tuple[Any, ...] = (
    None,
    -1,
    0,
    1,
    2**31,
    2**63,
    -(2**40),
    "x",
    b"y",
    1.5,
    [],
    [1, 2],
    {},
    True,
    float("nan"),
)
FIELDS = (
    "unit", "session", "params", "prompt", "frame", "sample", "spec", "source", "target", "count", "add_special",
    "parse_special", "remove_special", "unparse_special", "special", "adapters", "layer_first", "layer_end", "host",
    "links", "half",
)  # fmt: skip
OPERATIONS = (
    "step", "load", "open", "free", "cancel", "copy_prefix", "tokenize", "detokenize", "pieces", "state_get",
    "state_set", "stats", "adapters", "control_vector", "lane_open", "link",
)  # fmt: skip


async def test_no_message_ends_an_engine(engine: EngineClient, unit: int) -> None:
    """Fields of any type and value: each message is answered, nearly all by a condition."""
    rng = random.Random(5)
    good = frame_fields(tokens_frame(PROMPT))
    for _ in range(1500):
        message: dict[str, Any] = {name: rng.choice(JUNK) for name in FIELDS if rng.random() < 0.9}
        message["op"] = rng.choice(OPERATIONS)
        if rng.random() < 0.8:
            message["unit"] = unit
        if rng.random() < 0.5:
            message["session"] = rng.choice((1, 2))
        if rng.random() < 0.7:
            message["frame"] = [rng.choice(JUNK) if rng.random() < 0.15 else value for value in good]
        if rng.random() < 0.5:
            message["params"] = params_as_message(GREEDY) | {
                rng.choice(("top_k", "seed", "grammar")): rng.choice(JUNK)
            }
        payload = rng.choice((b"", b"abc", bytes(28), bytes(256), tokens_frame(PROMPT).payload))
        async with asyncio.timeout(10):
            try:
                await engine._call(message, payload)
            except P2PNodeError:
                assert engine.alive, f"{message}: {engine.log[-2000:]}"
    assert engine.alive


async def test_no_setting_ends_an_engine(engine: EngineClient, model: Path) -> None:
    """One or two fields of a unit's settings replaced by anything: loaded and usable, or refused."""
    rng = random.Random(7)
    values, payload = UnitSpec(model_path=str(model), **SMALL).as_message()
    for _ in range(150):
        changes = {rng.choice(sorted(values)): rng.choice(JUNK) for _ in range(rng.randint(1, 2))}
        try:
            header, _ = await engine._call({"op": "load", "spec": values | changes}, payload)
        except P2PNodeError:
            assert engine.alive, f"{changes}: {engine.log[-2000:]}"
            continue
        unit_id = header["info"]["unit_id"]
        try:
            await engine.step(unit_id, tokens_frame(PROMPT))
        except P2PNodeError:
            assert engine.alive, f"{changes}: {engine.log[-2000:]}"
        await engine.unload(unit_id)


async def test_unloading_answers_what_waits(engine: EngineClient, model: Path) -> None:
    info = await engine.load(UnitSpec(model_path=str(model), **SMALL))
    steps = [asyncio.create_task(engine.step(info.unit_id, tokens_frame([1] * 60))) for _ in range(4)]
    await asyncio.sleep(0)
    await engine.unload(info.unit_id)
    results = await asyncio.gather(*steps, return_exceptions=True)
    assert all(isinstance(result, Frame | Cancelled) for result in results)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGTERM])
async def test_a_killed_engine_fails_every_call_at_once(model: Path, number: signal.Signals) -> None:
    """Nothing hangs, the exit is told once, later calls fail too, closing is safe."""
    codes: list[int] = []
    engine = await EngineClient.start(on_exit=codes.append)
    info = await engine.load(UnitSpec(model_path=str(model), **SMALL))
    steps = [
        asyncio.create_task(engine.step(info.unit_id, tokens_frame([1] * 60, session=session)))
        for session in range(1, 5)
    ]
    await asyncio.sleep(0)
    os.kill(engine.pid, number)
    async with asyncio.timeout(20):
        results = await asyncio.gather(*steps, return_exceptions=True)
        assert all(isinstance(result, Frame | EngineUnavailable) for result in results)
        await engine.close()
        with pytest.raises(EngineUnavailable):
            await engine.stats()
        await engine.close()
    assert codes == [-number]
    assert not engine.alive


async def test_engines_killed_at_any_time_hang_nobody(model: Path) -> None:
    """While starting, loading, computing, sampling, between messages: every call ends, most with the condition."""
    rng = random.Random(11)
    for _ in range(10):
        engine = await EngineClient.start()
        killer = asyncio.get_running_loop().call_later(
            rng.uniform(0.0, 0.05), os.kill, engine.pid, signal.SIGKILL
        )

        async def work(engine: EngineClient = engine) -> None:
            info = await engine.load(UnitSpec(model_path=str(model), **SMALL))
            for _ in range(1000):
                await engine.open_session(info.unit_id, 1, WARM)
                await asyncio.gather(
                    generate(engine, info.unit_id, PROMPT, 8), engine.tokenize(info.unit_id, "x" * 500)
                )

        async with asyncio.timeout(20):
            with pytest.raises(EngineUnavailable):
                await work()
            await engine.close()
        assert engine.exit_code == -signal.SIGKILL
        assert killer.when() > 0


async def test_closing_ends_the_process() -> None:
    engine = await EngineClient.start()
    assert engine.hello["pid"] == engine.pid
    await engine.close()
    assert engine.exit_code == 0
    with pytest.raises(EngineUnavailable):
        await engine.stats()


async def test_an_engine_that_cannot_work_says_why(tmp_path: Path) -> None:
    """A missing library is its own condition; other deaths bring the process's last words."""
    with pytest.raises(EngineIncompatible, match="cannot be loaded"):
        await EngineClient.start(environment={"LLAMA_CPP_LIB_PATH": "/nonexistent"})
    (tmp_path / "msgpack.py").write_text("raise SystemError('no msgpack today')")
    with pytest.raises(EngineUnavailable) as caught:
        await EngineClient.start(environment={"PYTHONPATH": str(tmp_path)})
    assert "no msgpack today" in caught.value.details["last_words"]


def _index(path: Path):  # type: ignore[no-untyped-def]  # a test helper
    from tests.kit.llama_runner import index_of

    return index_of(path.read_bytes())
