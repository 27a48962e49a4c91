"""The streams of a ring at its head: one to the first stage, one from the last, and what both tell of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from p2pnode import limits
from p2pnode.compute.pipeline_route import PipelineRoute
from p2pnode.errors import NotFound, P2PNodeError, PlanError, StageLost
from p2pnode.node.active import Active
from p2pnode.node.stage_streams import StageStreams
from p2pnode.node.timed_frames import TimedFrames
from p2pnode.transport import messages
from p2pnode.transport.port import Stream
from p2pnode.units import PeerId


class RingEnds:
    """Both ends of a ring at its head."""

    def __init__(self, forward: Stream, back: Stream, forget: Callable[[], None]) -> None:
        self.forward = forward
        self.back = back
        self._forget = forget

    def end(self) -> None:
        self.forward.reset()
        self.back.reset()
        self._forget()


async def attach_ring(
    streams: StageStreams, plan_id: str, first: PeerId, last: PeerId, stage: int
) -> RingEnds:
    """Streams from here to the first remote device, which has `stage`, and from the last one back; all or nothing."""
    arrived: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()
    finished = asyncio.Event()

    async def take_return(back: Stream) -> None:
        if back.peer_id != last:
            raise NotFound("another device has the last stage of this plan")
        if arrived.done():
            raise PlanError("this plan's ring is closed already")
        await messages.send_message(back, messages.Answer(data={}))
        if not arrived.done():
            arrived.set_result(back)
            await finished.wait()

    returns = streams.returns

    def forget() -> None:
        finished.set()
        arrived.cancel()
        if returns.get(plan_id) is take_return:
            del returns[plan_id]

    returns[plan_id] = take_return
    try:
        forward = await streams.attach(first, plan_id, stage, [])
        try:
            async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
                back = await asyncio.shield(arrived)
        except BaseException:
            forward.reset()
            raise
    except TimeoutError:
        forget()
        raise StageLost("the last stage did not attach to its head") from None
    except BaseException:
        forget()
        raise
    return RingEnds(forward, back, forget)


async def read_ring(active: Active, route: PipelineRoute, stream: Stream) -> None:
    reader = TimedFrames(stream)
    try:
        while True:
            route.arrived(await reader.read())
    except P2PNodeError as error:
        # The way forward usually knows better who is missing: give its word a moment.
        await asyncio.sleep(limits.TROUBLE_GRACE_S)
        active.end(StageLost(f"the last stage went away: {error.message}"))


async def hear_trouble(active: Active, stream: Stream, me: PeerId) -> None:
    first_remote = next((s["name"] for s in active.stages if s["peer"] != me), "the next device")
    try:
        notice = await messages.receive_message(stream)
        reason = (
            notice.message if isinstance(notice, messages.Refused) else "the first stage left the protocol"
        )
    except P2PNodeError as error:
        reason = f"the way to {first_remote} broke: {error.message}"
    active.end(StageLost(reason))
