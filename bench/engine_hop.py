"""From an engine process on one node to an engine process on another and back: what the hand-overs add to QUIC.

Both engine processes use the engine's own channel and protocol and compute nothing. In between everything is what
a stage has: EngineClient, StageServer, frames over one open stream. As a measure of the hand-over alone the same
frames go round without engine processes.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

from p2pnode.compute.engine_channel import Channel, NodeGoneError
from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import Message, encode_message, frame_fields, frame_of
from p2pnode.compute.engine_stream import MessageStream
from p2pnode.compute.stage import StageServer
from p2pnode.frame import DType, Frame, FrameReader, Kind
from p2pnode.node.orders import OutboundFrames
from p2pnode.transport.port import Connection, Stream
from p2pnode.transport.quic import QuicTransport

WITH_ENGINE, WITHOUT = "/bench/engine/1", "/bench/frames/1"
TRIPS, WARM_UP = 400, 50
ROW = Frame(Kind.ROWS, DType.F32, 1, 2048, 1, bytes(8192))


# --- the two engine processes ----------------------------------------------------------------------
def echo_engine(channel: Channel) -> None:
    """The far one: every step is answered with the rows that came."""
    while True:
        header, payload = channel.receive()
        channel.send({"id": header["id"], "frame": header.get("frame"), "t": [0] * 5}, payload)


def driving_engine(channel: Channel) -> None:
    """The near one: sends a row, waits for it, looks at its clock."""
    channel.receive()
    times = []
    for number in range(WARM_UP + TRIPS):
        started = time.perf_counter()
        channel.send({"id": number, "frame": frame_fields(ROW)}, ROW.payload)
        channel.receive()
        times.append((time.perf_counter() - started) * 1e3)
    channel.send({"id": -1, "times": times[WARM_UP:]})
    channel.receive()


async def start(role: str) -> tuple[asyncio.subprocess.Process, MessageStream, socket.socket]:
    ours, theirs = socket.socketpair()
    side, other = socket.socketpair()
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__)), role, str(theirs.fileno()),
        pass_fds=(theirs.fileno(),), stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    theirs.close()
    other.close()
    return process, MessageStream(ours), side


# --- the nodes -------------------------------------------------------------------------------------
class NoEngine:
    """Answers at once, in the node's own process."""

    async def step(self, unit_id: int, frame: Frame) -> Frame:
        del unit_id
        return frame

    async def free_session(self, unit_id: int, session: int) -> None:
        """Nothing was kept."""


async def serve(node: QuicTransport) -> None:
    """The far node: a stage with an engine process, and one without."""
    client = EngineClient(*await start("echo"), None)

    async def stage(stream: Stream, engine: Any) -> None:
        await StageServer(engine, 1, OutboundFrames(stream).send).serve(FrameReader(stream.read_exactly).read)

    node.handle(WITH_ENGINE, lambda stream: stage(stream, client))
    node.handle(WITHOUT, lambda stream: stage(stream, NoEngine()))


async def measure(connection: Connection) -> dict[str, Any]:
    frames = await _frames_alone(await connection.open_stream(WITHOUT))
    engines = await _engine_to_engine(await connection.open_stream(WITH_ENGINE))
    return {
        "rtt_ms_8192_frames": _quantiles(frames),
        "rtt_ms_8192_engines": _quantiles(engines),
        "engines_add_ms": _quantiles(engines)["p50"] - _quantiles(frames)["p50"],
    }


def _quantiles(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {"p50": ordered[len(ordered) // 2], "p99": ordered[int(len(ordered) * 0.99)]}


async def _frames_alone(stream: Stream) -> list[float]:
    send, read = OutboundFrames(stream).send, FrameReader(stream.read_exactly).read
    times = []
    for _ in range(WARM_UP + TRIPS):
        started = time.perf_counter()
        await send(ROW)
        await read()
        times.append((time.perf_counter() - started) * 1e3)
    stream.reset()
    return times[WARM_UP:]


async def _engine_to_engine(stream: Stream) -> list[float]:
    process, engine, side = await start("drive")
    done: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
    outbound = OutboundFrames(stream)
    sending: set[asyncio.Task[None]] = set()

    def from_engine(header: Message, payload: memoryview) -> None:
        if "times" in header:
            done.set_result(header["times"])
            return
        task = asyncio.ensure_future(outbound.send(frame_of(header["frame"], payload)))
        sending.add(task)
        task.add_done_callback(sending.discard)

    async def to_engine() -> None:
        read = FrameReader(stream.read_exactly).read
        while True:
            frame = await read()
            engine.send(encode_message({"frame": frame_fields(frame)}, frame.payload))

    engine.on_message = from_engine
    returning = asyncio.ensure_future(to_engine())
    engine.send(encode_message({"op": "go"}))
    try:
        return await done
    finally:
        returning.cancel()
        await asyncio.gather(returning, return_exceptions=True)
        engine.send(encode_message({"op": "end"}))
        await process.wait()
        side.close()
        stream.reset()


if __name__ == "__main__":
    role, descriptor = sys.argv[1:]
    try:
        {"echo": echo_engine, "drive": driving_engine}[role](Channel(socket.socket(fileno=int(descriptor))))
    except NodeGoneError:
        print(json.dumps({"role": role, "end": "the node is gone"}), file=sys.stderr)
