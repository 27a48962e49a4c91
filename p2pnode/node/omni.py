"""Stages of this device asked in OmniNode's way: one activation in, one out, without a ring.

Only the device that had a stage prepared may ask it. Its sessions go on where they were: each request of a
session is the next rows; a new session id begins at position 0.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from p2pnode import limits
from p2pnode.errors import Busy, NotFound, P2PNodeError, PeerTimeout, RemoteProtocolError
from p2pnode.frame import DType, Frame, Kind, pack_rows, rows_f32
from p2pnode.node.grants import Announcement, Grants
from p2pnode.node.hosted_stage import UNIT, HostedStage
from p2pnode.node.hosting import Hosting
from p2pnode.transport import omni
from p2pnode.transport.port import Connection, Stream, Transport
from p2pnode.units import PeerId

_DTYPES = (DType.F16, DType.BF16, DType.F32)
SESSIONS_FIRST = 2**62
"""Out of the way of the sessions of rings (small numbers) and of embeddings (2**63 on)."""


@dataclass(slots=True)
class _Session:
    number: int
    hosted: HostedStage
    generation: int
    """Of the engine that holds it; after a crash it is gone."""
    position: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class OmniStages:
    """Answers `/omni/tensor-xfer/1` with the stages of `hosting`."""

    def __init__(self, *, hosting: Hosting, grants: Grants, transport: Transport) -> None:
        self._hosting = hosting
        self._grants = grants
        self._sessions: dict[tuple[PeerId, str, int], _Session] = {}
        self._next = SESSIONS_FIRST
        self._running = 0
        transport.handle(omni.PROTOCOL, self._serve)

    async def _serve(self, stream: Stream) -> None:
        if self._running >= limits.OMNI_REQUESTS_MAX:
            raise Busy("this device answers as many tensor requests as it may")
        self._running += 1
        try:
            async with asyncio.timeout(limits.OMNI_BODY_TIMEOUT_S):
                request = omni.decode_request(await omni.read_body(stream.read_exactly))
            answer = await self._answer(stream.peer_id, request)
            async with asyncio.timeout(limits.OMNI_BODY_TIMEOUT_S):
                await stream.write(omni.encode_answer(answer))
        finally:
            self._running -= 1

    async def _answer(self, peer: PeerId, request: omni.Request) -> omni.Answer:
        words = (request.session_id, request.micro_batch_index, request.to_stage)
        try:
            async with asyncio.timeout(limits.STAGE_ANSWER_S_MAX):
                return omni.Answer(*words, activation=await self._step(peer, request))
        except TimeoutError:
            return omni.Answer(*words, error="peer_timeout: the stage took too long")
        except P2PNodeError as error:
            text = f"{error.code}: {error.message}".encode()[: limits.OMNI_ERROR_BYTES_MAX]
            return omni.Answer(*words, error=text.decode("utf-8", "ignore"))

    def _stage(self, peer: PeerId, request: omni.Request) -> HostedStage:
        """The one stage of this number that the asking device had prepared here; the newest when there are several."""
        found = [
            hosted
            for hosted in self._hosting.stages.values()
            if hosted.order.head == peer
            and hosted.order.stage == request.to_stage
            and not hosted.order.shares
            and hosted.engine.is_up
        ]
        if not found:
            raise NotFound(f"this device has no stage {request.to_stage} of yours")
        return found[-1]

    async def _session(self, key: tuple[PeerId, str, int], hosted: HostedStage) -> _Session:
        known = self._sessions.pop(key, None)
        if known is None or known.hosted is not hosted or known.generation != hosted.engine.generation:
            await self._make_room(key[0], hosted)
            self._next += 1
            known = _Session(self._next, hosted, hosted.engine.generation)
            asked = Announcement(hosted.order.plan_id, known.number, key[1][:128], 0)
            await self._grants.open(key[0], asked)
        self._sessions[key] = known  # the newest last
        return known

    async def _make_room(self, peer: PeerId, hosted: HostedStage) -> None:
        """What was longest unused on this stage ends: nobody says when a session is over."""
        for key in [key for key, session in self._sessions.items() if not session.hosted.engine.is_up]:
            await self._end(key)
        own = [key for key, known in self._sessions.items() if key[0] == peer and known.hosted is hosted]
        if len(own) >= min(limits.OMNI_SESSIONS_PER_STAGE_MAX, hosted.order.sessions):
            await self._end(own[0])

    async def _end(self, key: tuple[PeerId, str, int]) -> None:
        session = self._sessions.pop(key, None)
        if session is not None:
            self._grants.close(session.hosted.order.plan_id, session.number)
        if session is not None and session.hosted.engine.is_up:
            engine = session.hosted.engine
            await engine.client.free_session(engine.unit(UNIT), session.number)

    async def _step(self, peer: PeerId, request: omni.Request) -> omni.Activation:
        hosted = self._stage(peer, request)
        key = (peer, request.session_id, request.to_stage)
        session = await self._session(key, hosted)
        async with session.lock:
            frame = _frame(request.activation, session)
            engine, reach = hosted.engine, self._grants.reach_of(hosted.order.plan_id)
            if session.position + frame.rows > reach.get(session.number, 0):
                raise self._grants.refusal(hosted.tallied, session.number)
            try:
                result = await engine.client.step(engine.unit(UNIT), frame)
            except BaseException:
                # What the engine holds of it is not known: the asker begins again.
                if self._sessions.get(key) is session:
                    await asyncio.shield(self._end(key))
                raise
            session.position += frame.rows
        self._hosting.tallies.add(hosted.tallied, frame, result)
        return _activation(result, request.activation.dtype)


def _frame(activation: omni.Activation, session: _Session) -> Frame:
    kind, dtype = (Kind.TOKENS, DType.I32) if activation.is_tokens else (Kind.ROWS, _DTYPES[activation.dtype])
    return Frame(
        kind=kind, dtype=dtype, rows=activation.seq_len, columns=activation.hidden_dim,
        session=session.number, payload=activation.data, position_first=session.position,
    )  # fmt: skip


def _activation(frame: Frame, dtype: int) -> omni.Activation:
    """Rows in the number format that was asked in; token ids stay token ids."""
    if frame.kind is Kind.ROWS:
        data = bytes(pack_rows(rows_f32(frame), _DTYPES[dtype]))
        return omni.Activation(frame.rows, frame.columns, dtype, data)
    return omni.Activation(frame.rows, 1, dtype, bytes(frame.payload))


async def ask(connection: Connection, request: omni.Request) -> omni.Activation:
    """What another device's stage makes of an activation; raises what it answers, PeerTimeout for silence."""
    try:
        async with asyncio.timeout(limits.STAGE_ANSWER_S_MAX):
            stream = await connection.open_stream(omni.PROTOCOL)
            try:
                await stream.write(omni.encode_request(request))
                await stream.close_write()
                answer = omni.decode_answer(await omni.read_body(stream.read_exactly))
            finally:
                stream.reset()
    except TimeoutError:
        raise PeerTimeout("the other device did not answer an activation in time") from None
    if (answer.session_id, answer.micro_batch_index) != (request.session_id, request.micro_batch_index):
        raise RemoteProtocolError("an answer to another activation")
    if answer.activation is None:
        raise RemoteProtocolError(f"the activation was not accepted: {answer.error}")
    return answer.activation
