"""What an engine makes of rows: sampled tokens, embeddings, and both under adapters."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import Adapter, UnitSpec
from p2pnode.compute.part import Part
from p2pnode.compute.surgery import cut
from p2pnode.errors import (
    BadModelFile,
    ContextFull,
    RequestError,
    SessionLost,
    ShapeMismatch,
)
from p2pnode.facade import SamplingParams
from tests.kit.engine_units import GREEDY, PROMPT, SMALL, WARM, cut_spec, generate, index_at, tokens_frame
from tests.kit.toy_models import Toy, write_model

pytestmark = pytest.mark.asyncio(loop_scope="module")


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
    index = index_at(model)
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
    with pytest.raises(SessionLost):  # what it held was computed with the adapter
        await engine.step_sample(unit, tokens_frame([5], 3))
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
