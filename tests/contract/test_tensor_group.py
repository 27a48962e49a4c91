"""Tensor groups of real engine processes: shards that add up their partial sums give the tokens of the whole."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import msgpack
import pytest

from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import LaneToRank, RankLink, StreamToRank, UnitSpec, frame_fields
from p2pnode.compute.gguf import ModelIndex
from p2pnode.compute.part import Part, Shard
from p2pnode.compute.reduce import ANNOUNCED_BYTES
from p2pnode.compute.surgery import cut
from p2pnode.errors import ComputeError, EngineUnavailable, P2PNodeError, RequestError, StageLost
from p2pnode.facade import SamplingParams
from p2pnode.frame import DType, Frame, Kind, pack_rows, rows_f32
from p2pnode.limits import REDUCE_TIMEOUT_S
from tests.kit.engine_units import SMALL, cut_spec, generate, tokens_frame
from tests.kit.llama_runner import index_of
from tests.kit.toy_models import Toy, write_model

GREEDY = SamplingParams(temperature=0.0)
PROMPT = (1, 70, 80, 90, 100, 110, 120)
COUNT = 10
BIG = {"width": 128, "heads": 8, "kv_heads": 4, "ff": 256}


class Group:
    """One engine process per rank."""

    def __init__(
        self, engines: Sequence[EngineClient], units: Sequence[int], gone: asyncio.Future[int]
    ) -> None:
        self.engines, self.units = engines, units
        self.gone = gone
        """Exit of any rank but the first."""

    async def step(self, frame: Frame) -> Frame:
        async with asyncio.TaskGroup() as group:
            for engine, unit in list(zip(self.engines, self.units, strict=True))[1:]:
                group.create_task(engine.step(unit, frame))
            first = group.create_task(self.engines[0].step(self.units[0], frame))
        return first.result()

    async def sample(self, frame: Frame) -> int:
        async with asyncio.TaskGroup() as group:
            for engine, unit in list(zip(self.engines, self.units, strict=True))[1:]:
                group.create_task(engine.step(unit, frame))
            first = group.create_task(self.engines[0].step_sample(self.units[0], frame))
        return first.result().token

    async def generate(self, prompt: Sequence[int], count: int) -> list[int]:
        out: list[int] = []
        while len(out) < count:
            start = len(prompt) + len(out) - 1 if out else 0
            out.append(await self.sample(tokens_frame(out[-1:] or prompt, start)))
        return out


async def link_streams(engines: Sequence[EngineClient], units: Sequence[int], *, half: bool = False) -> None:
    """Every pair of ranks over a socketpair, as the node's streams would be."""
    links: list[list[RankLink]] = [[] for _ in engines]
    ends = []
    for a, b in combinations(range(len(engines)), 2):
        pair = socket.socketpair()
        ends += pair
        links[a].append(StreamToRank(b, pair[0]))
        links[b].append(StreamToRank(a, pair[1]))
    await asyncio.gather(*(e.link(u, w, half=half) for e, u, w in zip(engines, units, links, strict=True)))
    for end in ends:
        end.close()


async def link_lanes(
    engines: Sequence[EngineClient], units: Sequence[int], *, datagram_bytes: int = 1452
) -> None:
    ports = [iter(await engine.open_lanes("127.0.0.1", len(engines) - 1)) for engine in engines]
    links: list[list[RankLink]] = [[] for _ in engines]
    for a, b in combinations(range(len(engines)), 2):
        secret, ours, theirs = os.urandom(32), next(ports[a]), next(ports[b])
        links[a].append(LaneToRank(b, ours, "127.0.0.1", theirs, secret, datagram_bytes))
        links[b].append(LaneToRank(a, theirs, "127.0.0.1", ours, secret, datagram_bytes))
    await asyncio.gather(*(e.link(u, w) for e, u, w in zip(engines, units, links, strict=True)))


def index_at(path: Path) -> ModelIndex:
    return index_of(path.read_bytes())


def _first_exit(gone: asyncio.Future[int], code: int) -> None:
    if not gone.done():
        gone.set_result(code)


@asynccontextmanager
async def group_of(
    path: Path, shares: tuple[int, ...], part: Part | None = None, **changes: Any
) -> AsyncIterator[Group]:
    index = index_at(path)
    layers = part or Part(0, index.layer_count, embedding=True, output=True)
    async with AsyncExitStack() as stack:
        engines, units, gone = [], [], asyncio.get_running_loop().create_future()
        for rank in range(len(shares)):
            engine = await EngineClient.start(on_exit=partial(_first_exit, gone) if rank else None)
            stack.push_async_callback(engine.close)
            shard = Part(
                layers.layer_first,
                layers.layer_end,
                embedding=layers.embedding,
                output=layers.output,
                shard=Shard(rank, shares),
            )
            options = {"rank": rank, "ranks": len(shares), **changes}
            if rank:
                options["output"] = "none"
            spec = cut_spec(cut(index, shard), path, **options)
            engines.append(engine)
            units.append((await engine.load(spec)).unit_id)
        yield Group(engines, units, gone)


async def whole_tokens(path: Path, count: int = COUNT) -> list[int]:
    engine = await EngineClient.start()
    info = await engine.load(UnitSpec(model_path=str(path), **SMALL))
    await engine.open_session(info.unit_id, 1, GREEDY)
    out = await generate(engine, info.unit_id, PROMPT, count)
    await engine.close()
    return out


def toy(tmp_path: Path, architecture: str, **changes: Any) -> Path:
    name = f"{architecture}.gguf"
    return write_model(
        tmp_path / name, Toy(architecture, text=True, vocabulary=300, **{**BIG, "layers": 3, **changes})
    )


@pytest.mark.parametrize(
    ("architecture", "shares", "lanes"),
    [
        ("llama", (1, 1), False),
        ("llama", (1, 1), True),
        ("qwen2", (3, 1), True),
        ("qwen3", (2, 1, 1), True),
        ("llama", (1, 1, 1, 1), False),
    ],
)
async def test_shards_give_the_tokens_of_the_whole(
    tmp_path: Path, architecture: str, shares: tuple[int, ...], lanes: bool
) -> None:
    """Two to four ranks, uneven shares, streams and lanes: the same greedy tokens."""
    path = toy(tmp_path, architecture)
    expected = await whole_tokens(path)
    async with group_of(path, shares) as group:
        await (link_lanes if lanes else link_streams)(group.engines, group.units)
        await group.engines[0].open_session(group.units[0], 1, GREEDY)
        assert await group.generate(PROMPT, COUNT) == expected


async def test_a_prompt_in_chunks_needs_no_result_but_the_last(tmp_path: Path) -> None:
    """A chunk of which no row is wanted leaves the last layer empty on all ranks alike; a rewind follows."""
    path = toy(tmp_path, "llama")
    expected = await whole_tokens(path, 2)
    async with group_of(path, (1, 1)) as group:
        await link_streams(group.engines, group.units)
        await group.engines[0].open_session(group.units[0], 1, GREEDY)
        for _ in range(2):
            await group.step(tokens_frame(PROMPT[:4], wanted=4))
            first = await group.sample(tokens_frame(PROMPT[4:], 4))
            assert [first, await group.sample(tokens_frame([first], len(PROMPT)))] == expected


async def test_a_mixture_of_experts_adds_up(tmp_path: Path) -> None:
    path = toy(tmp_path, "llama", features=frozenset({"experts"}))
    expected = await whole_tokens(path)
    async with group_of(path, (1, 2)) as group:
        await link_lanes(group.engines, group.units, datagram_bytes=8192)
        await group.engines[0].open_session(group.units[0], 1, GREEDY)
        assert await group.generate(PROMPT, COUNT) == expected


async def test_shards_of_a_slice_give_rows(tmp_path: Path) -> None:
    """Hybrid: a tensor group as one stage; long prompts go by owners and in parts; a rewind works on all ranks."""
    path = toy(tmp_path, "llama")
    index = index_at(path)
    engine = await EngineClient.start()
    slice_ = Part(1, 3)
    alone = (await engine.load(cut_spec(cut(index, slice_), path))).unit_id
    import numpy as np

    rows = np.random.default_rng(1).standard_normal((64, 128)).astype(np.float32)
    frame = Frame(1, DType.F32, 64, 128, 1, pack_rows(rows, DType.F32))  # type: ignore[arg-type]
    expected = rows_f32(await engine.step(alone, frame))
    async with group_of(path, (2, 1, 1), slice_) as group:
        await link_streams(group.engines, group.units)
        for _ in range(2):
            got = rows_f32(await group.step(frame))
            assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
    await engine.close()


async def test_halves_cross_the_wire_when_asked(tmp_path: Path) -> None:
    path = toy(tmp_path, "llama")
    async with group_of(path, (1, 1)) as group:
        await link_streams(group.engines, group.units, half=True)
        await group.engines[0].open_session(group.units[0], 1, GREEDY)
        assert len(await group.generate(PROMPT, 3)) == 3


async def test_a_shard_without_its_group_says_so(tmp_path: Path) -> None:
    path = toy(tmp_path, "llama")
    async with group_of(path, (1, 1)) as group:
        with pytest.raises(RequestError, match="no way"):
            await group.engines[0].step(group.units[0], tokens_frame(PROMPT))
        with pytest.raises(RequestError):
            await group.engines[0].link(group.units[0], [])
        with pytest.raises(ComputeError):
            await group.engines[0].open_lanes("203.0.113.7", 1)


@pytest.mark.parametrize("lanes", [False, True])
async def test_a_lost_rank_does_not_hang_the_others(tmp_path: Path, lanes: bool) -> None:
    """Killed in the middle: a stream ends by itself, a lane when the node gives up; the survivor can join anew."""
    path = toy(tmp_path, "llama")
    async with group_of(path, (1, 1)) as group:
        await (link_lanes if lanes else link_streams)(group.engines, group.units)
        first, second = group.engines
        await first.open_session(group.units[0], 1, GREEDY)
        waiting = asyncio.create_task(first.step_sample(group.units[0], tokens_frame(PROMPT)))
        os.kill(second.pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            await group.gone
        if lanes:
            first.give_up_exchange()
        async with asyncio.timeout(10):
            with pytest.raises(StageLost):
                await waiting
            with pytest.raises(StageLost):
                await first.step_sample(group.units[0], tokens_frame(PROMPT))


def _word(*parts: object, orders: Sequence[object] = ()) -> bytes:
    return msgpack.packb([list(orders), list(parts)])


def _inline(frame: Frame, count: int = 1) -> list[object]:
    where = [frame.session, frame.epoch, frame.position_first, frame.rows, count]
    return [*where, frame_fields(frame), bytes(frame.payload)]


ONE = tokens_frame((5,))


async def led_by_us(follower: EngineClient, unit: int) -> socket.socket:
    """Our end of the stream to a rank whose leader the test plays."""
    ours, theirs = socket.socketpair()
    await follower.link(unit, [StreamToRank(0, theirs)])
    theirs.close()
    return ours


@pytest.mark.parametrize(
    "word",
    [
        b"\xff" * 40,
        _word(orders=[["free"]]),
        _word([1, 0, 0, 1, 7]),
        _word(_inline(ONE), _inline(ONE)),
        _word(_inline(tokens_frame((5,) * 300), 300)),
        _word(_inline(tokens_frame((99_999,)))),
        _word(_inline(tokens_frame((5,), 2**40))),
        _word(_inline(replace(ONE, payload=b""))),
        _word(_inline(replace(ONE, kind=Kind.ROWS, dtype=DType.F32, columns=7, payload=bytes(28)))),
        _word(_inline(replace(ONE, meta={"draft": "x"}))),
    ],
    ids=range(10),
)
async def test_a_leader_that_makes_no_sense_is_left(tmp_path: Path, word: bytes) -> None:
    """Its followers' engines live, say so to whoever waits, and can have another leader."""
    path = toy(tmp_path, "llama")
    async with group_of(path, (1, 1)) as group:
        follower, unit = group.engines[1], group.units[1]
        ours = await led_by_us(follower, unit)
        waiting = asyncio.create_task(follower.step(unit, tokens_frame(PROMPT)))
        first = (struct.pack("<I", len(word)) + word)[:ANNOUNCED_BYTES].ljust(ANNOUNCED_BYTES, b"\0")
        ours.sendall(struct.pack("<II", 1, ANNOUNCED_BYTES) + first)
        rest = word[ANNOUNCED_BYTES - 4 :]
        if rest:
            ours.sendall(struct.pack("<II", 2, len(rest)) + rest)
        async with asyncio.timeout(10):
            with pytest.raises(P2PNodeError) as refused:
                await waiting
        assert not isinstance(refused.value, EngineUnavailable), refused.value
        assert follower.alive
        ours.close()
        await link_streams(group.engines, group.units)
        await group.engines[0].open_session(group.units[0], 2, GREEDY)
        again = replace(tokens_frame(PROMPT), session=2)
        assert await group.sample(again) >= 0


def _said(word: bytes) -> bytes:
    """The leader's first word, as a stream carries it."""
    first = (struct.pack("<I", len(word)) + word).ljust(ANNOUNCED_BYTES, b"\0")
    return struct.pack("<II", 1, ANNOUNCED_BYTES) + first


@pytest.mark.parametrize("where", [7, -1], ids=["positions that are not there", "no position"])
async def test_a_follower_that_cannot_compute_what_came_by_a_lane_says_so(tmp_path: Path, where: int) -> None:
    """Nobody asked for the step, so nobody is answered: the node hears of it unasked, and soon."""
    path = toy(tmp_path, "llama")
    async with group_of(path, (1, 1)) as group:
        follower, unit = group.engines[1], group.units[1]
        ours = await led_by_us(follower, unit)
        heard: asyncio.Future[tuple[Frame, Frame]] = asyncio.get_running_loop().create_future()
        follower.observe(unit, lambda received, sent: heard.set_result((received, sent)))
        ours.sendall(_said(_word(_inline(tokens_frame((5,), where)))))
        async with asyncio.timeout(REDUCE_TIMEOUT_S / 2):
            received, sent = await heard
        assert (received.session, received.position_first) == (1, where)
        assert (sent.kind, sent.session, sent.rows) == (Kind.ERROR, 1, 0)
        assert sent.meta["code"]
        assert sent.meta["message"]
        ours.close()


async def test_a_lane_that_nobody_answers_is_refused(tmp_path: Path) -> None:
    """The node hears it within seconds and takes streams instead."""
    path = toy(tmp_path, "llama")
    async with group_of(path, (1, 1)) as group:
        [port] = await group.engines[0].open_lanes("127.0.0.1", 1)
        with pytest.raises(StageLost, match="do not get through"):
            await group.engines[0].link(group.units[0], [LaneToRank(1, port, "127.0.0.1", 9, os.urandom(32))])
        await link_streams(group.engines, group.units)
        await group.engines[0].open_session(group.units[0], 1, GREEDY)
        assert len(await group.generate(PROMPT, 2)) == 2
