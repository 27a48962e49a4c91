"""Keys and values of a session from the devices that computed its prompt to the one that goes on: `/p2pnode/kv/1`.

Only the head that had a stage prepared may take what the stage holds. The state comes behind its header
(specs/06-tensors.md): fingerprint, positions, checksum; nothing unchecked reaches llama.cpp.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from p2pnode import limits
from p2pnode.compute import kv_state
from p2pnode.errors import Busy, NotFound, P2PNodeError, RemoteProtocolError, StageLost
from p2pnode.node.hosted_stage import UNIT
from p2pnode.node.hosting import Hosting
from p2pnode.node.links import Links
from p2pnode.transport import messages
from p2pnode.transport.port import Stream, Transport
from p2pnode.units import PeerId

KV = "/p2pnode/kv/1"


@dataclass(frozen=True, slots=True)
class StateSource:
    """One stage of a ring, as its head knows it."""

    peer: PeerId
    slot: int
    fingerprint: str


class KvTransfers:
    def __init__(self, *, hosting: Hosting, links: Links, transport: Transport) -> None:
        self._hosting = hosting
        self._links = links
        self._running = 0
        transport.handle(KV, self._serve)

    # --- giving --------------------------------------------------------------------------------------
    async def _serve(self, stream: Stream) -> None:
        async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
            call = await messages.receive_message(stream)
        try:
            state = await self._state(stream.peer_id, call)
        except P2PNodeError as error:
            await messages.send_message(stream, messages.refusal(error))
            await stream.close_write()
            return
        self._running += 1
        try:
            await messages.send_message(stream, messages.Answer(data={"bytes": len(state)}))
            for at in range(0, len(state), limits.KV_PIECE_BYTES):
                async with asyncio.timeout(limits.KV_PIECE_S_MAX):
                    await stream.write(state[at : at + limits.KV_PIECE_BYTES])
            await stream.close_write()
        finally:
            self._running -= 1

    async def _state(self, peer: PeerId, call: messages.AnyMessage) -> memoryview:
        if not isinstance(call, messages.Call) or call.method != "state":
            raise RemoteProtocolError("a stream for keys and values begins with state")
        slot, session = call.arguments.get("slot"), call.arguments.get("session")
        if type(slot) is not int or type(session) is not int or not 0 <= session < 2**64:
            raise RemoteProtocolError("a state is asked for by slot and session")
        hosted = self._hosting.stages.get((str(call.arguments.get("plan_id")), slot))
        if hosted is None or hosted.order.head != peer:
            raise NotFound("this device holds no such stage of yours")
        if self._running >= limits.KV_TRANSFERS_MAX:
            raise Busy(f"{self._running} states are on their way from here already")
        return await hosted.engine.client.state_get(hosted.engine.unit(UNIT), session)

    # --- taking --------------------------------------------------------------------------------------
    async def bring(
        self,
        plan_id: str,
        sources: Sequence[StateSource],
        session: int,
        positions: int,
        *,
        fingerprint: str,
        bytes_max: int,
    ) -> bytearray:
        """The states of all stages as one of `fingerprint`; ShapeMismatch where such states cannot be joined."""
        states = await asyncio.gather(
            *(self._take(plan_id, source, session, bytes_max) for source in sources)
        )
        blobs = []
        for source, state in zip(sources, states, strict=True):
            held, blob = kv_state.unpack(source.fingerprint, state)
            if held != positions:
                raise StageLost(f"a state of {held} positions, not of {positions}", peer=source.peer)
            blobs.append(blob)
        if len(blobs) == 1:
            return kv_state.pack(fingerprint, positions, bytes(blobs[0]))
        first, *others = [kv_state.take_apart(blob) for blob in blobs]
        return kv_state.pack(fingerprint, positions, first.joined(others).build())

    async def _take(self, plan_id: str, source: StateSource, session: int, bytes_max: int) -> bytearray:
        name = self._links.name_of(source.peer)
        connection = self._links.connection_to(source.peer)
        if connection is None:
            raise StageLost(f"{name} is not reachable now", peer=source.peer)
        stream: Stream | None = None
        try:
            async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
                stream = await connection.open_stream(KV)
                wish = {"plan_id": plan_id, "slot": source.slot, "session": session}
                answer = await messages.ask(stream, messages.Call(method="state", arguments=wish))
            size = answer.data.get("bytes") if isinstance(answer, messages.Answer) else None
            if type(size) is not int or not 0 < size <= bytes_max:
                raise RemoteProtocolError(f"a state of {size} bytes, at most {bytes_max} were expected")
            state = bytearray()
            while len(state) < size:
                async with asyncio.timeout(limits.KV_PIECE_S_MAX):
                    state += await stream.read_exactly(min(limits.KV_PIECE_BYTES, size - len(state)))
            return state
        except TimeoutError:
            raise StageLost(
                f"{name} fell silent while it gave its keys and values", peer=source.peer
            ) from None
        finally:
            if stream is not None:
                stream.reset()
