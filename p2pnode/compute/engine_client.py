"""What an engine process can be asked, one method each; the frames pass as the bytes they are.

No llama.cpp and no arrays here. Every call either gets its answer or raises; see `EngineProcess`.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from p2pnode.compute.engine_process import EngineProcess, Progress, Relayed
from p2pnode.compute.engine_protocol import (
    Adapter,
    Buffer,
    LaneToRank,
    Message,
    RankLink,
    Sampled,
    SampledToken,
    StreamToRank,
    Timings,
    UnitInfo,
    UnitSpec,
    frame_fields,
    frame_of,
)
from p2pnode.compute.sampling import params_as_message
from p2pnode.errors import P2PNodeError
from p2pnode.facade import SamplingParams
from p2pnode.frame import DType, Frame, Kind, pack_tokens

_POOLED_SESSIONS = 2**63
"""Sessions of embeddings are ours alone, out of the way of those a head chooses."""


def _stepped(header: Message, payload: memoryview) -> Frame:
    values = header["frame"]
    values[-1] = {**values[-1], "t": header["t"]}
    return frame_of(values, payload)


class EngineClient(EngineProcess):
    _pooled = 0

    # units
    async def load(self, spec: UnitSpec, *, progress: Progress | None = None) -> UnitInfo:
        """Load a unit; `progress` hears 0..1 on the way."""
        values, payload = spec.as_message()
        header, _ = await self._call({"op": "load", "spec": values}, payload, progress=progress)
        return UnitInfo(**header["info"])

    async def unload(self, unit_id: int) -> None:
        """Free a unit; its waiting steps are answered as cancelled."""
        self._relayed.pop(unit_id, None)
        await self._call({"op": "unload", "unit": unit_id})

    async def set_adapters(self, unit_id: int, adapters: Sequence[Adapter]) -> None:
        """Exactly these LoRA adapters act from the next step on."""
        values = [[adapter.path, adapter.scale] for adapter in adapters]
        await self._call({"op": "adapters", "unit": unit_id, "adapters": values})

    async def set_control_vector(self, unit_id: int, data: Buffer, layer_first: int, layer_end: int) -> None:
        """float32 rows for layers 1, 2, ...; empty data ends it."""
        message = {
            "op": "control_vector",
            "unit": unit_id,
            "layer_first": layer_first,
            "layer_end": layer_end,
        }
        await self._call(message, data)

    # sessions
    async def open_session(
        self,
        unit_id: int,
        session: int,
        params: SamplingParams | None = None,
        prompt_tokens: Sequence[int] = (),
    ) -> None:
        """Take a sequence for a session and set how it samples."""
        values = None if params is None else params_as_message(params)
        keep = list(prompt_tokens)
        if params is not None and params.repeat_last_tokens >= 0:
            keep = keep[-params.repeat_last_tokens :] if params.repeat_last_tokens else []
        await self._call(
            {"op": "open", "unit": unit_id, "session": session, "params": values, "prompt": keep}
        )

    async def free_session(self, unit_id: int, session: int) -> None:
        await self._call({"op": "free", "unit": unit_id, "session": session})

    async def cancel(self, unit_id: int, session: int) -> None:
        """Answer the session's waiting steps as Cancelled; what it holds stays."""
        await self._call({"op": "cancel", "unit": unit_id, "session": session})

    async def copy_prefix(self, unit_id: int, source: int, target: int, count: int) -> None:
        """Let `target` start from the first `count` positions of `source`."""
        await self._call(
            {"op": "copy_prefix", "unit": unit_id, "source": source, "target": target, "count": count}
        )

    async def keep_prefix(self, unit_id: int, session: int, count: int) -> None:
        """Lay the first `count` positions of a session aside, under its number, beside the cells."""
        await self._call({"op": "keep_prefix", "unit": unit_id, "session": session, "count": count})

    async def reuse_prefix(self, unit_id: int, session: int, prefix: int, count: int) -> None:
        """Let a session begin with the first `count` positions of a kept prefix; SessionLost when that cannot be."""
        await self._call(
            {"op": "reuse_prefix", "unit": unit_id, "session": session, "prefix": prefix, "count": count}
        )

    async def forget_prefix(self, unit_id: int, prefix: int) -> None:
        await self._call({"op": "forget_prefix", "unit": unit_id, "prefix": prefix})

    async def state_get(self, unit_id: int, session: int) -> memoryview:
        """The session's key-value state behind our header."""
        _, payload = await self._call({"op": "state_get", "unit": unit_id, "session": session})
        return payload

    async def state_set(self, unit_id: int, session: int, state: Buffer) -> int:
        """Give a session a state made elsewhere; the positions it now holds."""
        header, _ = await self._call({"op": "state_set", "unit": unit_id, "session": session}, state)
        return int(header["positions"])

    # steps
    async def step(self, unit_id: int, frame: Frame) -> Frame:
        """Compute a frame; rows come out. Its timings are in `meta["t"]`: see `Timings`."""
        return await self.begin_step(unit_id, frame)

    def begin_step(self, unit_id: int, frame: Frame) -> asyncio.Future[Frame]:
        """The same, asked when this returns and without a task: a stage saves three turns of its loop a token."""
        message = {"op": "step", "unit": unit_id, "frame": frame_fields(frame)}
        try:
            call, future = self._begin(message, frame.payload, _stepped)
        except P2PNodeError as error:
            future = asyncio.get_running_loop().create_future()
            future.set_exception(error)
            return future
        future.add_done_callback(lambda _: self._forget(call))
        return future

    async def step_sample(self, unit_id: int, frame: Frame, *, ahead: bool = False) -> Sampled:
        """Compute a frame and sample its wanted rows.

        `ahead`: the next call will most likely be for the token sampled last, so its pass may begin already.
        """
        message = {
            "op": "step",
            "unit": unit_id,
            "frame": frame_fields(frame),
            "sample": True,
            "ahead": ahead,
        }
        header, _ = await self._call(message, frame.payload)
        return _sampled(header)

    async def embed(self, unit_id: int, tokens: Sequence[int]) -> list[float]:
        """The pooled, normalised embedding of a text by a unit whose output is `embedding`; scores of a ranking one."""
        return await self.pool(
            unit_id, Frame(Kind.TOKENS, DType.I32, len(tokens), 1, 0, pack_tokens(list(tokens)))
        )

    async def pool(self, unit_id: int, frame: Frame) -> list[float]:
        """The same of a frame that holds a whole text: its tokens, or the rows that layers elsewhere made of them."""
        self._pooled += 1
        session = _POOLED_SESSIONS + self._pooled
        try:
            values = (await self.step(unit_id, replace(frame, session=session))).payload
            return list(memoryview(values).cast("B").cast("f"))
        finally:
            if self.alive:
                await self.free_session(unit_id, session)

    # tensor groups
    async def open_lanes(self, host: str, count: int, unit_id: int = 0) -> list[int]:
        """Bind datagram sockets for lanes on an address of this machine; their ports.

        Those that were opened for the same unit and not linked are closed.
        """
        header, _ = await self._call({"op": "lane_open", "host": host, "count": count, "unit": unit_id})
        return list(header["ports"])

    async def link(self, unit_id: int, links: Sequence[RankLink], *, half: bool = False) -> None:
        """Give a shard its ways to all other ranks; both ends of a lane must call this at about the same time.

        Raises StageLost when datagrams do not get through: link again with streams then.
        """
        streams = [link.stream for link in links if isinstance(link, StreamToRank)]
        if streams:
            self._send_side(streams)
        secrets = b"".join(link.secret for link in links if isinstance(link, LaneToRank))
        await self._call(
            {"op": "link", "unit": unit_id, "half": half, "links": [link.as_message() for link in links]},
            secrets,
        )

    # rings
    async def open_ring(
        self, unit_id: int, first_unit: int | None, onward: LaneToRank, back: LaneToRank, *, stages: int = 1
    ) -> int:
        """Lanes out of the first layers here and back to the unit that samples; all engines of a ring call at once.

        The ring's number: a unit may sample for several.

        `stages` that can compute at the same time share the sessions out among themselves.

        Raises StageLost when datagrams do not get through.
        """
        message = {
            "op": "ring",
            "unit": unit_id,
            "first": first_unit or 0,
            "stages": stages,
            "lanes": [_end(onward, 1), _end(back, 0)],
        }
        header, _ = await self._call(message, onward.secret + back.secret)
        return int(header["ring"])

    async def close_ring(self, ring: int) -> None:
        await self._call({"op": "ring_close", "ring": ring})

    def observe(self, unit_id: int, observe: Relayed) -> None:
        """Hear, some time later, what a unit received without this node and what it made of it."""
        self._relayed[unit_id] = observe

    async def open_relay(
        self, unit_id: int, inbound: LaneToRank, onward: LaneToRank, *, stages: int = 1
    ) -> None:
        """This unit's place in a ring; see `observe`."""
        message = {
            "op": "relay",
            "unit": unit_id,
            "stages": stages,
            "lanes": [_end(inbound, 0), _end(onward, 1)],
        }
        await self._call(message, inbound.secret + onward.secret)

    async def ring_step(self, ring: int, frame: Frame, *, ahead: bool = False) -> Sampled:
        """One token around the ring; raises StageLost when it has to take the streams."""
        message = {"op": "ring_step", "ring": ring, "frame": frame_fields(frame), "ahead": ahead}
        header, _ = await self._call(message, frame.payload)
        return _sampled(header)

    def give_up_exchange(self) -> None:
        """End an exchange that waits for a lost rank: the step under way fails now, not at its timeout."""
        self._send_side([])

    # text
    async def tokenize(
        self, unit_id: int, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        _, payload = await self._call(
            {"op": "tokenize", "unit": unit_id, "add_special": add_special, "parse_special": parse_special},
            text.encode("utf-8", "replace"),
        )
        return list(payload.cast("i")) if payload.nbytes else []

    async def detokenize(
        self,
        unit_id: int,
        tokens: Sequence[int],
        *,
        remove_special: bool = False,
        unparse_special: bool = False,
    ) -> bytes:
        message = {
            "op": "detokenize",
            "unit": unit_id,
            "remove_special": remove_special,
            "unparse_special": unparse_special,
        }
        _, payload = await self._call(message, struct.pack(f"={len(tokens)}i", *tokens))
        return bytes(payload)

    async def pieces(self, unit_id: int, tokens: Sequence[int], *, special: bool = True) -> list[bytes]:
        """The bytes of each token."""
        header, _ = await self._call(
            {"op": "pieces", "unit": unit_id, "special": special}, struct.pack(f"={len(tokens)}i", *tokens)
        )
        return list(header["pieces"])

    async def stats(self) -> Message:
        """{"units": {id: counters}, "lane_bytes": [received, sent], "rss_bytes", "anonymous_bytes"}"""
        header, _ = await self._call({"op": "stats"})
        return {key: value for key, value in header.items() if key != "id"}


def _sampled(header: Message) -> Sampled:
    chosen = tuple(
        SampledToken(token, piece, eog, logprob, tuple((i, p, b) for i, p, b in top))
        for token, piece, eog, logprob, top in header["tokens"]
    )
    return Sampled(chosen, Timings(*header["t"]))


def _end(lane: LaneToRank, out: int) -> list[Any]:
    return [out, lane.port, lane.peer_host, lane.peer_port, lane.datagram_bytes]
