"""Admission by ticket, both sides of it; `node.mesh` grants, `node.approval` is for devices without a ticket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from p2pnode import __version__, limits
from p2pnode.errors import (
    AdmissionError,
    NotAdmitted,
    P2PNodeError,
    PeerTimeout,
    RemoteProtocolError,
    RequestError,
    WrongMesh,
)
from p2pnode.node.joining import Joins, host_of
from p2pnode.node.ledger import Ledger
from p2pnode.node.mesh import Mesh
from p2pnode.node.roles import ADMIT, GUEST
from p2pnode.transport import messages
from p2pnode.transport.invite import decode_ticket, secret_hash
from p2pnode.transport.membership import peer_of
from p2pnode.transport.port import Connection, Stream, Transport
from p2pnode.units import PeerId, UnixMs

Tell = Callable[[str], None]
Stranger = Callable[[Stream, messages.AnyMessage], Awaitable[messages.AnyMessage]]
"""Answers what comes on `/p2pnode/admit/1` without a ticket."""


class Admission:
    """The side of who made the ticket."""

    def __init__(self, *, mesh: Mesh, ledger: Ledger, transport: Transport, joins: Joins) -> None:
        self._mesh = mesh
        self._ledger = ledger
        self._joins = joins
        self._stranger: Stranger | None = None
        transport.handle(ADMIT, self._serve)

    def serve_strangers(self, handler: Stranger) -> None:
        """Who answers devices that come without a ticket."""
        self._stranger = handler

    async def _serve(self, stream: Stream) -> None:
        async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
            request = await messages.receive_message(stream)
        try:
            if isinstance(request, messages.AdmitRequest):
                answer: messages.AnyMessage = await self._admit(stream, request)
            elif self._stranger is not None:
                answer = await self._stranger(stream, request)
            else:
                raise RemoteProtocolError("admission begins with an admit message")
        except P2PNodeError as error:
            answer = messages.refusal(error)
        await messages.send_message(stream, answer)
        await stream.close_write()

    async def _admit(self, stream: Stream, request: messages.AdmitRequest) -> messages.Admitted:
        attempt = self._joins.arrived(stream.peer_id, request.name, host_of(stream.connection))
        with attempt.step("ticket"):
            invite_id, role = self._invite_of(request)
            answer = await self._mesh.let_in(
                stream.peer_id, request.name, request.addresses, role=role, invite_id=invite_id
            )
        attempt.tell("ticket", "ok", f"its ticket is valid, role {role}")
        attempt.tell("admitted", "ok", f'is a member of "{self._mesh.mesh_name}"')
        return answer

    def _invite_of(self, request: messages.AdmitRequest) -> tuple[str, str]:
        """Id of the invite that a ticket is of, and the role it gives."""
        if self._mesh.membership is None:
            raise WrongMesh("this device is in no mesh yet")
        invite_id = secret_hash(request.secret).hex()[:32]
        invite = self._ledger.state.invites.invites.get(invite_id)
        if invite is None:
            raise NotAdmitted(
                "this ticket is not one of this device", hint="make a new one with: p2pnode invite"
            )
        return invite_id, GUEST if request.guest else invite.role


async def ask_admission(connection: Connection, request: messages.AdmitRequest) -> messages.Admitted:
    """What the device that made a ticket answers to it; PeerTimeout, or what it refused with."""
    try:
        async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
            stream = await connection.open_stream(ADMIT)
            await messages.send_message(stream, request)
            answer = await messages.receive_message(stream)
    except TimeoutError:
        raise PeerTimeout("the device that made this ticket did not answer in time") from None
    return admitted(answer)


def admitted(answer: messages.AnyMessage) -> messages.Admitted:
    """Admission, or the refusal raised as the error it names."""
    if isinstance(answer, messages.Refused):
        raise messages.refusal_error(answer)
    if not isinstance(answer, messages.Admitted):
        raise RemoteProtocolError("the other device answered something else than admission")
    return answer


async def join(mesh: Mesh, transport: Transport, text: str, *, now_ms: Callable[[], int], tell: Tell) -> None:
    """Use a ticket; what happens is told step by step."""
    ticket = decode_ticket(text)
    if mesh.membership is not None:
        if mesh.membership.mesh_key != ticket.mesh_key:
            raise WrongMesh(
                f"this data folder belongs to the mesh {mesh.mesh_name!r} already",
                hint="choose another folder with --data to join a second mesh",
            )
        tell("already a member: the ticket is not used")
        return
    ticket = decode_ticket(text, now_ms=UnixMs(now_ms()))
    if ticket.role == GUEST:
        raise RequestError(
            f"this ticket lets a mesh of your own ask {ticket.mesh_name!r}, it lets no device join it",
            hint="start your own mesh with: p2pnode join, then: p2pnode federation add TICKET",
        )
    minutes = max(0, (ticket.expires_ms - now_ms()) // 60_000)
    tell(f'ticket valid: mesh "{ticket.mesh_name}", role {ticket.role}, expires in {minutes} min')
    inviter = peer_of(ticket.inviter_key)
    if inviter == transport.peer_id:
        raise AdmissionError("this ticket was made by this very device", hint="use it on another device")
    connection = await _reach(transport, list(ticket.addresses), inviter, tell)
    tell(f"connected to {connection.remote_multiaddr}, identity matches the ticket")
    answer = await ask_admission(
        connection,
        messages.AdmitRequest(
            secret=ticket.secret, name=mesh.name, version=__version__, addresses=mesh.my_addresses()
        ),
    )
    await mesh.accept(ticket.mesh_key, ticket.role, inviter, answer, list(ticket.addresses))
    tell(f'admitted as "{mesh.name}"')


async def _reach(transport: Transport, addresses: list[str], inviter: PeerId, tell: Tell) -> Connection:
    """A way to the inviter; without one, every address is told with what became of it."""
    try:
        return await transport.dial(addresses, inviter)
    except P2PNodeError as error:
        for address, reason in error.details.get("tried", []):
            tell(f"✗ {address}: {reason}")
        raise
