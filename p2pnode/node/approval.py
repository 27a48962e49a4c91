"""Letting a device in that has no ticket: it asks, both screens show a code, and the owner says yes or no."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from p2pnode import __version__, limits
from p2pnode.errors import (
    ApprovalPending,
    Busy,
    NotAdmitted,
    NotFound,
    P2PNodeError,
    PeerTimeout,
    PeerUnreachable,
    RemoteProtocolError,
    RequestError,
    WrongMesh,
)
from p2pnode.node.admission import Admission, admitted
from p2pnode.node.joining import Joins, host_of
from p2pnode.node.mesh import Mesh
from p2pnode.node.roles import ADMIT
from p2pnode.transport import messages
from p2pnode.transport.match import NONCE_BYTES, check_nonce, check_reveal, commitment, match_code
from p2pnode.transport.membership import key_of
from p2pnode.transport.port import Stream, Transport
from p2pnode.units import PeerId

Tell = Callable[[str], None]
Command = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]


@dataclass(slots=True)
class Waiting:
    """A device that asked; it is let in, refused, or forgotten when its time is over."""

    peer: PeerId
    name: str
    code: str
    address: str
    addresses: list[str]
    expires_ms: int
    decided: asyncio.Future[bool]


class Approvals:
    """The member's side; nothing of it is a fact until the owner says yes."""

    def __init__(
        self,
        *,
        mesh: Mesh,
        admission: Admission,
        joins: Joins,
        now_ms: Callable[[], int],
        changed: Callable[[], None],
    ) -> None:
        self._mesh = mesh
        self._joins = joins
        self._now_ms = now_ms
        self._changed = changed
        self.waiting: dict[PeerId, Waiting] = {}
        admission.serve_strangers(self._serve)

    async def _serve(self, stream: Stream, request: messages.AnyMessage) -> messages.AnyMessage:
        """The answer to anything but a ticket on `/p2pnode/admit/1`."""
        membership = self._mesh.membership
        if membership is None or self._mesh.my_role not in ("founder", "worker"):
            raise WrongMesh("this device lets nobody in")
        if isinstance(request, messages.Look):
            return messages.Here(
                mesh_key=membership.mesh_key, mesh_name=self._mesh.mesh_name, name=self._mesh.name
            )
        if not isinstance(request, messages.Ask):
            raise RemoteProtocolError("admission begins with admit, ask or look")
        return await self._ask(stream, request, membership.mesh_key)

    async def _ask(self, stream: Stream, request: messages.Ask, mesh_key: bytes) -> messages.AnyMessage:
        peer, address = stream.peer_id, host_of(stream.connection)
        asker_key = key_of(peer)
        if self._mesh.is_member(peer):
            return await self._mesh.let_in(peer, request.name, request.addresses)
        self._check_room(peer, address)
        nonce = os.urandom(NONCE_BYTES)
        async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
            asked = messages.Pending(
                mesh_key=mesh_key,
                mesh_name=self._mesh.mesh_name,
                name=self._mesh.name,
                nonce=nonce,
                wait_s=limits.APPROVAL_WAIT_S,
            )
            await messages.send_message(stream, asked)
            reveal = await messages.receive_message(stream)
        if not isinstance(reveal, messages.Reveal):
            raise RemoteProtocolError("after pending comes reveal")
        code = match_code(
            mesh_key=mesh_key,
            asker_key=asker_key,
            member_key=self._mesh.my_key,
            asker_nonce=check_reveal(reveal.nonce, request.commitment),
            member_nonce=nonce,
        )
        self._check_room(peer, address)
        name = request.name[: limits.NAME_CHARACTERS_MAX] or peer[-6:]
        expires_ms = self._now_ms() + int(limits.APPROVAL_WAIT_S * 1000)
        decided: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        entry = Waiting(peer, name, code, address, request.addresses, expires_ms, decided)
        self.waiting[peer] = entry
        self._changed()
        attempt = self._joins.arrived(peer, name, address)
        attempt.tell("approval", "waiting", f"waits for your approval, match code {code[:3]} {code[3:]}")
        try:
            with attempt.step("approval"):
                await self._until_decided(stream, entry)
                if not decided.result():
                    raise NotAdmitted(
                        "the owner of this mesh refused the request", hint="ask the owner for a ticket"
                    )
        finally:
            if self.waiting.get(peer) is entry:
                del self.waiting[peer]
            self._changed()
        attempt.tell("approval", "ok", f"approved, match code {code[:3]} {code[3:]}")
        with attempt.step("admitted"):
            answer = await self._mesh.let_in(peer, name, request.addresses)
        attempt.tell("admitted", "ok", f'is a member of "{self._mesh.mesh_name}"')
        return answer

    def _check_room(self, peer: PeerId, address: str) -> None:
        if peer in self.waiting:
            raise ApprovalPending("this device has asked already", hint="wait for the owner's answer")
        same = sum(entry.address == address for entry in self.waiting.values())
        if len(self.waiting) >= limits.APPROVALS_MAX or same >= limits.APPROVALS_PER_ADDRESS_MAX:
            raise Busy("too many devices ask to be let in here now", hint="try again in a few minutes")

    async def _until_decided(self, stream: Stream, entry: Waiting) -> None:
        """Raises when the time is over or the asker has gone."""
        gone = asyncio.ensure_future(stream.read(1))
        try:
            async with asyncio.timeout(limits.APPROVAL_WAIT_S):
                await asyncio.wait((gone, entry.decided), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise PeerTimeout(
                "nobody approved this device in time", hint="ask again, or ask the owner for a ticket"
            ) from None
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
        if not entry.decided.done():
            raise RemoteProtocolError("the asking device has gone")

    # --- the owner -----------------------------------------------------------------------------------
    def view(self) -> list[dict[str, Any]]:
        """Rows for /peers."""
        return [
            {
                "peer": entry.peer,
                "name": entry.name,
                "state": "pending",
                "match_code": entry.code,
                "expires_ms": entry.expires_ms,
                "role": "",
                "addresses": [entry.address],
                "rtt_ms": None,
                "path": "",
                "self": False,
                "last_seen_ms": self._now_ms(),
                "silent_ms": 0,
                "version": "",
                "tried": [],
            }
            for entry in self.waiting.values()
        ]

    def decide(self, wanted: str, *, approve: bool) -> dict[str, Any]:
        """Say yes or no to a waiting device, by its code, name or peer id."""
        plain = "".join(wanted.split()).replace("-", "")
        found = [e for e in self.waiting.values() if wanted in (e.peer, e.name) or plain == e.code]
        if len(found) != 1:
            problem = (
                "no device that asks now has" if not found else f"{len(found)} devices that ask now have"
            )
            raise NotFound(
                f"{problem} the code, name or id {wanted[:80]!r}",
                hint="p2pnode peers shows those that ask, with their codes",
            )
        entry = found[0]
        if not entry.decided.done():
            entry.decided.set_result(approve)
        return {"peer": entry.peer, "name": entry.name, "approved": approve}


# --- the asking device -------------------------------------------------------------------------------
async def look(transport: Transport, peer: PeerId, addresses: list[str]) -> messages.Here:
    """Which mesh a device nearby belongs to; it says so itself, unproven."""
    connection = await transport.dial(addresses, peer)
    async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
        stream = await connection.open_stream(ADMIT)
        await messages.send_message(stream, messages.Look())
        answer = await messages.receive_message(stream)
    stream.reset()
    if isinstance(answer, messages.Refused):
        raise messages.refusal_error(answer)
    if not isinstance(answer, messages.Here):
        raise RemoteProtocolError("a device nearby answered something else than where it is")
    return answer


async def ask(mesh: Mesh, transport: Transport, peer: PeerId, addresses: list[str], tell: Tell) -> None:
    """Ask one member to be let in, and wait for its owner; raises when refused or too late."""
    connection = await transport.dial(addresses, peer)
    tell(f"connected to {connection.remote_multiaddr}")
    nonce = os.urandom(NONCE_BYTES)
    try:
        async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
            stream = await connection.open_stream(ADMIT)
            await messages.send_message(
                stream,
                messages.Ask(
                    name=mesh.name,
                    version=__version__,
                    commitment=commitment(nonce),
                    addresses=mesh.my_addresses(),
                ),
            )
            pending = _pending(await messages.receive_message(stream))
            await messages.send_message(stream, messages.Reveal(nonce=nonce))
    except TimeoutError:
        raise PeerTimeout("the member did not answer the request in time") from None
    code = match_code(
        mesh_key=pending.mesh_key,
        asker_key=mesh.my_key,
        member_key=key_of(peer),
        asker_nonce=nonce,
        member_nonce=check_nonce(pending.nonce),
    )
    tell(f'asked "{pending.name}" to be let into the mesh "{pending.mesh_name}"')
    tell(f"match code {code[:3]} {code[3:]}: approve there if it shows the same (p2pnode approve {code})")
    try:
        async with asyncio.timeout(limits.APPROVAL_WAIT_S + limits.CONTROL_TIMEOUT_S):
            answer = await messages.receive_message(stream)
    except TimeoutError:
        raise PeerTimeout("nobody approved this device in time", hint="ask the owner for a ticket") from None
    await mesh.accept(pending.mesh_key, "worker", peer, admitted(answer), addresses)
    tell(f'admitted as "{mesh.name}"')


def _pending(answer: messages.AnyMessage) -> messages.Pending:
    if isinstance(answer, messages.Refused):
        raise messages.refusal_error(answer)
    if not isinstance(answer, messages.Pending) or len(answer.mesh_key) != 32:
        raise RemoteProtocolError("the member answered something else than a pending approval")
    return answer


async def ask_nearby(mesh: Mesh, transport: Transport, found: Mapping[PeerId, list[str]], tell: Tell) -> None:
    """Ask the first of these devices that belongs to a mesh; several meshes are the person's choice."""
    here = await survey(transport, found)
    if not here:
        raise PeerUnreachable(
            "no mesh was found on this network",
            hint="ask with --peer MULTIADDR, or join with a ticket",
            tried=[[address, peer] for peer, addresses in found.items() for address in addresses],
        )
    meshes = {entry.mesh_key: entry.mesh_name for entry in here.values()}
    if len(meshes) > 1:
        raise RequestError(
            f"several meshes are near: {', '.join(sorted(meshes.values()))}",
            hint="p2pnode join --nearby lists them; choose one with --ask --peer MULTIADDR",
        )
    peer = next(iter(here))
    await ask(mesh, transport, peer, found[peer], tell)


async def survey(transport: Transport, found: Mapping[PeerId, list[str]]) -> dict[PeerId, messages.Here]:
    """Which of these devices answer that they belong to a mesh."""
    peers = list(found)[: limits.NEARBY_DEVICES_MAX]
    answers = await asyncio.gather(
        *(look(transport, peer, found[peer]) for peer in peers), return_exceptions=True
    )
    here: dict[PeerId, messages.Here] = {}
    for peer, answer in zip(peers, answers, strict=True):
        if isinstance(answer, messages.Here):
            here[peer] = answer
        elif not isinstance(answer, P2PNodeError | TimeoutError):
            raise answer
    return here
