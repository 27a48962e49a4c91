"""`/p2pnode/log/1`: members read each other's sealed record, and check it. Read-only and bounded.

The content is that of the C2SP layout over HTTP (checkpoint, entries, tiles, proofs), as raw bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from p2pnode import limits
from p2pnode.errors import (
    BadCheckpoint,
    Busy,
    CorruptRecord,
    LogError,
    NotFound,
    P2PNodeError,
    PeerTimeout,
    PeerUnreachable,
    RemoteProtocolError,
)
from p2pnode.events.codec import decode
from p2pnode.events.keys import is_binding_valid, verifiers_of
from p2pnode.events.merkle import Edge, leaf_hash
from p2pnode.events.note import open_checkpoint, parse_checkpoint, parse_note
from p2pnode.events.types import KeysBound
from p2pnode.node.ledger import Ledger
from p2pnode.node.links import Links
from p2pnode.transport import messages
from p2pnode.transport.port import Stream, Transport
from p2pnode.units import PeerId

LOG = "/p2pnode/log/1"
Question = Callable[[Mapping[str, Any]], dict[str, Any]]
AskLog = Callable[[str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


class LogSharing:
    """Answers one question a stream; asks other members theirs."""

    def __init__(self, *, ledger: Ledger, links: Links, transport: Transport) -> None:
        self._log = ledger.log
        self._links = links
        self._reading = 0
        self.questions: dict[str, Question] = {
            "checkpoint": self._checkpoint,
            "entries": self._entries,
            "tile": self._tile,
            "inclusion": self._inclusion,
            "consistency": self._consistency,
        }
        transport.handle(LOG, self._serve)

    async def _serve(self, stream: Stream) -> None:
        async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
            call = await messages.receive_message(stream)
        answer: messages.AnyMessage
        try:
            if not isinstance(call, messages.Call) or call.method not in self.questions:
                raise RemoteProtocolError("this is no question to a log", hint=", ".join(self.questions))
            answer = messages.Answer(data=await self._read(call))
        except P2PNodeError as error:
            answer = messages.refusal(error)
        async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
            await messages.send_message(stream, answer)

    async def _read(self, call: messages.Call) -> dict[str, Any]:
        if self._reading >= limits.LOG_SHARE_READERS_MAX:
            raise Busy("enough members read this log now")
        self._reading += 1
        try:
            return await asyncio.to_thread(self.questions[call.method], call.arguments)
        finally:
            self._reading -= 1

    def _checkpoint(self, _: Mapping[str, Any]) -> dict[str, Any]:
        note = self._log.checkpoint()
        if note is None:
            raise NotFound("nothing was sealed yet")
        return {"checkpoint": note}

    def _entries(self, a: Mapping[str, Any]) -> dict[str, Any]:
        """From `first` on: as many as fit into one answer, at most 256, at least one."""
        size = int(self._log.size)
        first = _number(a, "first", size - 1)
        bodies = self._log.entries(first, min(first + limits.LOG_SHARE_ENTRIES_MAX, size))
        fitting: list[bytes] = []
        total = 0
        for body in bodies:
            total += len(body)
            if fitting and total > limits.LOG_SHARE_BYTES_MAX:
                break
            fitting.append(body)
        return {"first": first, "entries": fitting}

    def _tile(self, a: Mapping[str, Any]) -> dict[str, Any]:
        level, index = _number(a, "level", 8), _number(a, "index", 2**40)
        return {"level": level, "index": index, "hashes": self._log.tile(level, index)}

    def _inclusion(self, a: Mapping[str, Any]) -> dict[str, Any]:
        size = _number(a, "size", int(self._log.size))
        return {"proof": self._log.inclusion_proof(_number(a, "index", max(size - 1, 0)), size)}

    def _consistency(self, a: Mapping[str, Any]) -> dict[str, Any]:
        second = _number(a, "second", int(self._log.size))
        return {"proof": self._log.consistency_proof(_number(a, "first", second), second)}

    # --- asking --------------------------------------------------------------------------------------
    async def ask(self, peer: PeerId, method: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """One question to a member's log."""
        link = self._links.links.get(peer)
        if link is None or link.connection is None or not link.is_up:
            raise PeerUnreachable(
                f"{self._links.name_of(peer)} is not reachable now", tried=link.tried if link else []
            )
        try:
            async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
                stream = await link.connection.open_stream(LOG)
                try:
                    await messages.send_message(
                        stream, messages.Call(method=method, arguments=dict(arguments))
                    )
                    answer = await messages.receive_message(stream)
                finally:
                    stream.reset()
        except TimeoutError:
            raise PeerTimeout(f"{self._links.name_of(peer)} did not answer for its log in time") from None
        if isinstance(answer, messages.Refused):
            raise messages.refusal_error(answer)
        if not isinstance(answer, messages.Answer):
            raise RemoteProtocolError("a log answers with an answer")
        return answer.data

    async def verify(self, peer: PeerId) -> dict[str, Any]:
        """Every sealed entry of a member's log under its newest signed checkpoint."""

        async def of_peer(method: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
            return await self.ask(peer, method, arguments)

        return await verify_log(peer, of_peer)


async def verify_log(peer: PeerId, ask: AskLog) -> dict[str, Any]:
    """Fetch everything under the checkpoint, recompute its root, check who signed.

    The chain: peer id → keys bound in the log by that identity → signature → root → every entry.
    Raises BadCheckpoint or CorruptRecord with what is wrong.
    """
    note = (await ask("checkpoint", {})).get("checkpoint")
    if not isinstance(note, str) or len(note) > limits.LOG_SHARE_BYTES_MAX:
        raise RemoteProtocolError("a checkpoint is text")
    size = parse_checkpoint(parse_note(note).text).size
    edge, at = Edge(), 0
    bound: KeysBound | None = None
    while at < size:
        bodies = (await ask("entries", {"first": at})).get("entries")
        if not isinstance(bodies, list) or not 0 < len(bodies) <= limits.LOG_SHARE_ENTRIES_MAX:
            raise RemoteProtocolError("entries are a short list of bytes")
        for body in bodies[: size - at]:
            if not isinstance(body, bytes):
                raise RemoteProtocolError("an entry is bytes")
            bound = _binding(peer, body, at) or bound
            edge.append(leaf_hash(body))
            at += 1
        await asyncio.sleep(0)
    if bound is None:
        raise BadCheckpoint("the log binds no keys to the identity of its device")
    checkpoint, _ = open_checkpoint(note, verifiers_of(bound)[0], bound.origin)
    if edge.root() != checkpoint.root:
        raise CorruptRecord(f"the {size} entries do not have the root that was signed", index=size - 1)
    return {
        "peer": peer,
        "ok": True,
        "origin": checkpoint.origin,
        "size": size,
        "root": checkpoint.root.hex(),
    }


def _binding(peer: PeerId, body: bytes, index: int) -> KeysBound | None:
    """The keys bound by this entry; raises when it is no entry, or binds for somebody else."""
    try:
        event = decode(body).event
    except (LogError, ValueError, TypeError) as error:
        raise CorruptRecord(f"entry {index} cannot be read: {error}", index=index) from None
    if not isinstance(event, KeysBound):
        return None
    if event.peer != peer or not is_binding_valid(event):
        raise BadCheckpoint(f"entry {index} binds keys that the identity {peer} did not sign")
    return event


def _number(a: Mapping[str, Any], name: str, most: int) -> int:
    value = a.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise RemoteProtocolError(f"{name} is a number from 0 to {most}")
    return value
