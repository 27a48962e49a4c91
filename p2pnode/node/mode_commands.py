"""What operators may ask of modes by hand: one forward step, one reduction, an RPC worker, a cleared pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from p2pnode import limits
from p2pnode.compute.rpc import RpcServer
from p2pnode.errors import NotFound, RemoteProtocolError, RequestError, ShapeMismatch, StageLost
from p2pnode.frame import HEADER_BYTES, DType, Frame, Kind, decode, decode_header, encode, pack_rows, rows_f32
from p2pnode.node.core import Node
from p2pnode.node.hosted_stage import UNIT
from p2pnode.units import SessionId

Command = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]
HAND_SESSIONS_FIRST = 2**61
"""Sessions of frames pushed by hand are kept apart from those of rings."""


class ModeCommands:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._worker: RpcServer | None = None

    def table(self) -> dict[str, Command]:
        return {
            "pipeline_forward": self._forward,
            "pipeline_clear": self._clear,
            "tensor_allreduce": self._all_reduce,
            "tensor_rpc_start": self._rpc_start,
            "tensor_rpc_stop": self._rpc_stop,
        }

    async def _forward(self, a: Mapping[str, Any]) -> dict[str, Any]:
        """One frame through a stage this device hosts, exactly as a ring's stream would bring it."""
        with _as_request():
            frame = whole_frame(_raw(a))
        plan_id, stage = str(a.get("plan_id", "")), a.get("stage", 0)
        hosted = next(
            (
                h
                for (plan, number), h in self._node.hosting.stages.items()
                if plan == plan_id and number == stage
            ),
            None,
        )
        if hosted is None:
            raise NotFound(
                f"this device hosts no stage {stage} of plan {plan_id[:40]!r}", hint="GET /status lists them"
            )
        if frame.kind not in (Kind.ROWS, Kind.TOKENS):
            raise RequestError("a forward step takes rows or token ids")
        session = SessionId(HAND_SESSIONS_FIRST + frame.session % HAND_SESSIONS_FIRST)
        engine = hosted.engine
        async with asyncio.timeout(limits.STAGE_ANSWER_S_MAX):
            result = await engine.client.step(engine.unit(UNIT), replace(frame, session=session))
        answer = replace(result, session=frame.session, meta={})
        return {"frame": b"".join(encode(answer))}

    async def _clear(self, a: Mapping[str, Any]) -> dict[str, Any]:
        """End what runs on a plan (or on all) and forget its sessions on every stage; the plan itself stays."""
        wanted = a.get("plan_id")
        cleared = []
        for active in list(self._node.routing.active.values()):
            if active.mode != "local" and wanted in (None, active.plan_id):
                self._node.routing.give_up(active, StageLost("the pipeline was cleared by its owner"))
                cleared.append(active.plan_id)
        if wanted is not None and not cleared:
            raise NotFound(f"no pipeline {str(wanted)[:40]!r} runs here")
        return {"cleared": cleared}

    async def _all_reduce(self, a: Mapping[str, Any]) -> dict[str, Any]:
        """The sum, in order, of row frames of one shape sent one after another."""
        raw = memoryview(_raw(a))
        frames: list[Frame] = []
        while raw:
            with _as_request():
                header = decode_header(raw[:HEADER_BYTES])
                end = HEADER_BYTES + header.body_bytes
                frames.append(decode(header, raw[HEADER_BYTES:end]))
            raw = raw[end:]
            if len(frames) > limits.RANKS_MAX:
                raise RequestError(f"at most {limits.RANKS_MAX} partial sums can be added")
        if len({(f.kind, f.rows, f.columns) for f in frames}) != 1 or frames[0].kind is not Kind.ROWS:
            raise ShapeMismatch("partial sums are row frames of one shape")
        return {"frame": await asyncio.to_thread(_sum, frames), "ranks": len(frames)}

    async def _rpc_start(self, a: Mapping[str, Any]) -> dict[str, Any]:
        """llama.cpp's RPC worker on this device's loopback, for whoever may use this machine."""
        if self._worker is None or self._worker.exit_code is not None:
            threads = a.get("threads", self._node.threads)
            if not isinstance(threads, int) or isinstance(threads, bool):
                raise RequestError("threads is a number", param="threads")
            self._worker = await RpcServer.start(threads=threads)
        return {"endpoint": self._worker.endpoint, "build": await self._node.tunnel.build()}

    async def _rpc_stop(self, a: Mapping[str, Any]) -> dict[str, Any]:
        del a
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.close()
        return {"stopped": worker is not None}

    async def close(self) -> None:
        await self._rpc_stop({})


@contextmanager
def _as_request() -> Iterator[None]:
    """Between devices a broken frame is the other side's fault; here it is the caller's."""
    try:
        yield
    except RemoteProtocolError as error:
        raise RequestError(
            f"this is no tensor frame: {error.message}", hint="see specs/06-tensors.md"
        ) from None


def whole_frame(raw: bytes) -> Frame:
    """Exactly one frame; RemoteProtocolError says what is wrong with it."""
    header = decode_header(raw[:HEADER_BYTES])
    return decode(header, raw[HEADER_BYTES:])


def _raw(a: Mapping[str, Any]) -> bytes:
    raw = a.get("frame")
    if not isinstance(raw, bytes) or not raw:
        raise RequestError("the body is a binary tensor frame", hint="see specs/06-tensors.md")
    return raw


def _sum(frames: list[Frame]) -> bytes:
    total = rows_f32(frames[0]).copy()
    for frame in frames[1:]:
        total += rows_f32(frame)
    return b"".join(encode(replace(frames[0], dtype=DType.F32, payload=pack_rows(total, DType.F32), meta={})))
