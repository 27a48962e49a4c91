"""Weights that stay in the file, states that move, and how engines end."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from p2pnode.compute import kv_state
from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import UnitSpec, frame_fields
from p2pnode.compute.part import Part
from p2pnode.compute.sampling import params_as_message
from p2pnode.compute.surgery import cut
from p2pnode.errors import (
    Cancelled,
    EngineIncompatible,
    EngineUnavailable,
    OutOfMemory,
    P2PNodeError,
    RemoteProtocolError,
    RequestError,
    SessionLost,
    ShapeMismatch,
)
from p2pnode.frame import Frame
from tests.kit.engine_units import GREEDY, PROMPT, SMALL, WARM, cut_spec, generate, index_at, tokens_frame
from tests.kit.toy_models import Toy, write_model

pytestmark = pytest.mark.asyncio(loop_scope="module")


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
    index = index_at(model)
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
