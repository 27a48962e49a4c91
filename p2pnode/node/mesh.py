"""Who is in the mesh: creating it, letting devices in, joining one, and passing membership on."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from p2pnode import __version__, limits
from p2pnode import commands as c
from p2pnode import peer_id as ids
from p2pnode.errors import (
    AdmissionError,
    NotAdmitted,
    NotFound,
    P2PNodeError,
    RemoteProtocolError,
    RequestError,
    WrongMesh,
)
from p2pnode.identity import Identity
from p2pnode.models.files import write_atomic
from p2pnode.multiformats import DecodeError
from p2pnode.node.joining import Joins, host_of
from p2pnode.node.ledger import Ledger
from p2pnode.transport import messages
from p2pnode.transport.invite import Ticket, decode_ticket, encode_ticket, secret_hash
from p2pnode.transport.membership import (
    Grant,
    Membership,
    decode_grant,
    decode_revocation,
    make_grant,
    make_revocation,
)
from p2pnode.transport.port import Connection, Stream, Transport
from p2pnode.units import PeerId, UnixMs

ADMIT = "/p2pnode/admit/1"
INFER = "/p2pnode/infer/1"
"""Whole answers: `node.federation`."""
OPEN_PROTOCOLS = frozenset({ADMIT, "/ipfs/ping/1.0.0", "/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0"})
"""What a stranger may use."""
GUEST = "guest"
GUEST_PROTOCOLS = frozenset({*OPEN_PROTOCOLS, INFER})
"""What the node of another mesh may use: whole answers, no stage, no weights, nothing that members tell each other."""


def peer_of(key: bytes) -> PeerId:
    return ids.peer_id_of(ids.encode_public_key(Ed25519PublicKey.from_public_bytes(key)))


def key_of(peer_id: str) -> bytes:
    """The 32-byte key inside a member's peer id."""
    key = ids.ed25519_public_key(peer_id)
    if key is None:
        raise NotAdmitted("members have Ed25519 identities; this peer id only holds a hash of its key")
    return key.public_bytes_raw()


Stranger = Callable[[Stream, messages.AnyMessage], Awaitable[messages.AnyMessage]]
"""Answers what comes on `/p2pnode/admit/1` without a ticket."""


class Mesh:
    """Membership of this node; grants are facts of the record, addresses are a forgettable file beside it."""

    def __init__(
        self,
        *,
        identity: Identity,
        ledger: Ledger,
        transport: Transport,
        data_dir: Path,
        name: str,
        addresses: Callable[[], list[str]],
        now_ms: Callable[[], int],
        member_added: Callable[[PeerId, str, list[str]], None],
        where: Callable[[], dict[str, list[str]]],
    ) -> None:
        self._identity = identity
        self._ledger = ledger
        self._transport = transport
        self._path = data_dir / "addresses.json"
        self.name = name
        self._addresses = addresses
        self._now_ms = now_ms
        self._member_added = member_added
        self._where = where
        self.my_key = key_of(identity.peer_id)
        self.mesh_name = ""
        self.membership: Membership | None = None
        self.member_removed: Callable[[PeerId], None] = lambda _: None
        """Told when a membership ended, so that what is open to it is closed."""
        self._stranger: Stranger | None = None
        self.joins = Joins(now_ms=now_ms)
        transport.set_gate(self._gate)
        transport.handle(ADMIT, self._serve_admit)

    # --- state ---------------------------------------------------------------------------------------
    def restore(self) -> bool:
        """Membership from the record; False when this node is in no mesh yet."""
        state = self._ledger.state
        mesh_id = state.node.mesh_id
        if not mesh_id:
            return False
        self.mesh_name = state.node.mesh_name
        self.membership = Membership(key_of(mesh_id))
        for entry in state.peers.peers.values():
            if entry.grant:
                self.membership.add(decode_grant(entry.grant))
        for entry in state.peers.peers.values():
            if entry.revocation:
                self.membership.revoke(decode_revocation(entry.revocation))
        return True

    @property
    def my_role(self) -> str:
        return (self.membership.role(self.my_key) or "") if self.membership else ""

    def is_member(self, peer_id: PeerId) -> bool:
        """Guests, which belong to another mesh, are none."""
        return self.role_of(peer_id) not in ("", GUEST)

    def is_guest(self, peer_id: PeerId) -> bool:
        return self.role_of(peer_id) == GUEST

    def role_of(self, peer_id: PeerId) -> str:
        """Empty for strangers and for who was revoked."""
        try:
            return (self.membership.role(key_of(peer_id)) or "") if self.membership else ""
        except (NotAdmitted, DecodeError):
            return ""

    def _gate(self, peer_id: PeerId, protocol: str) -> bool:
        if self.is_guest(peer_id):
            return protocol in GUEST_PROTOCOLS
        return protocol in OPEN_PROTOCOLS or self.is_member(peer_id)

    # --- creating and inviting -----------------------------------------------------------------------
    async def create(self, mesh_name: str) -> None:
        """The first device ever: its key becomes the mesh's name in every grant."""
        await self._ledger.do(c.CreateMesh(mesh_id=self._identity.peer_id, mesh_name=mesh_name))
        self.membership = Membership(self.my_key)
        self.mesh_name = mesh_name

    async def invite(self, *, uses: int, expires_s: int, role: str, label: str) -> dict[str, Any]:
        """A ticket for `uses` devices; only its hash is kept."""
        if self.membership is None or self.my_role not in ("founder", "worker"):
            raise RequestError(
                "this device may not invite others", hint="ask the owner of a worker device for a ticket"
            )
        secret = os.urandom(16)
        expires_ms = UnixMs((self._now_ms() // 1000 + expires_s) * 1000)
        invite_id = secret_hash(secret).hex()[:32]
        await self._ledger.do(
            c.CreateInvite(invite_id=invite_id, label=label, role=role, uses=uses, expires_ms=expires_ms)
        )
        ticket = Ticket(
            self.membership.mesh_key,
            self.my_key,
            secret,
            expires_ms,
            role,
            self.mesh_name,
            tuple(self._addresses()),
        )
        return {
            "ticket": encode_ticket(ticket),
            "expires_ms": expires_ms,
            "uses": uses,
            "role": role,
            "label": label,
            "invite_id": invite_id,
        }

    async def _serve_admit(self, stream: Stream) -> None:
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
        attempt = self.joins.arrived(stream.peer_id, request.name, host_of(stream.connection))
        with attempt.step("ticket"):
            invite_id, role = self._invite_of(request)
            answer = await self.let_in(
                stream.peer_id, request.name, request.addresses, role=role, invite_id=invite_id
            )
        attempt.tell("ticket", "ok", f"its ticket is valid, role {role}")
        attempt.tell("admitted", "ok", f'is a member of "{self.mesh_name}"')
        return answer

    def _invite_of(self, request: messages.AdmitRequest) -> tuple[str, str]:
        """Id of the invite that a ticket is of, and the role it gives."""
        if self.membership is None:
            raise WrongMesh("this device is in no mesh yet")
        invite_id = secret_hash(request.secret).hex()[:32]
        invite = self._ledger.state.invites.invites.get(invite_id)
        if invite is None:
            raise NotAdmitted(
                "this ticket is not one of this device", hint="make a new one with: p2pnode invite"
            )
        return invite_id, GUEST if request.guest else invite.role

    def grants_for_guests(self) -> list[bytes]:
        """By which a guest knows whom it may ask; who else is a guest is none of its business."""
        assert self.membership is not None
        grants = (self.membership.grant(key) for key in self.membership.members())
        return [grant.encode() for grant in grants if grant is not None and grant.role != GUEST]

    def serve_strangers(self, handler: Stranger) -> None:
        """Who answers devices that come without a ticket."""
        self._stranger = handler

    async def let_in(
        self, peer_id: PeerId, name: str, addresses: list[str], *, role: str = "worker", invite_id: str = ""
    ) -> messages.Admitted:
        """Grant, record and tell; the caller has decided that the device may."""
        if self.membership is None:
            raise WrongMesh("this device is in no mesh yet")
        name = name[: limits.NAME_CHARACTERS_MAX] or peer_id[-6:]
        grant = make_grant(
            self._identity.sign,
            mesh_key=self.membership.mesh_key,
            subject_key=key_of(peer_id),
            issuer_key=self.my_key,
            role=role,
            name=name,
            now_ms=self._now_ms(),
        )
        await self._ledger.do(
            c.AdmitPeer(
                peer=peer_id,
                device_name=name,
                role=role,
                admitted_by=self._identity.peer_id,
                grant=grant.encode(),
                invite_id=invite_id,
            )
        )
        self.membership.add(grant)
        if role != GUEST:
            self._member_added(peer_id, name, [a for a in addresses if a.startswith("/")])
        return messages.Admitted(
            grant=grant.encode(),
            mesh_name=self.mesh_name,
            grants=self.grants_for_guests() if role == GUEST else self.membership.export(),
            revocations=self.membership.export_revocations(),
            peers=[{"peer": peer, "addresses": addresses} for peer, addresses in self._where().items()],
        )

    # --- joining -------------------------------------------------------------------------------------
    async def join(self, text: str, tell: Callable[[str], None]) -> None:
        """Use a ticket; what happens is told step by step."""
        ticket = decode_ticket(text)
        if self.membership is not None:
            if self.membership.mesh_key != ticket.mesh_key:
                raise WrongMesh(
                    f"this data folder belongs to the mesh {self.mesh_name!r} already",
                    hint="choose another folder with --data to join a second mesh",
                )
            tell("already a member: the ticket is not used")
            return
        ticket = decode_ticket(text, now_ms=UnixMs(self._now_ms()))
        if ticket.role == GUEST:
            raise RequestError(
                f"this ticket lets a mesh of your own ask {ticket.mesh_name!r}, it lets no device join it",
                hint="start your own mesh with: p2pnode join, then: p2pnode federation add TICKET",
            )
        minutes = max(0, (ticket.expires_ms - self._now_ms()) // 60_000)
        tell(f'ticket valid: mesh "{ticket.mesh_name}", role {ticket.role}, expires in {minutes} min')
        inviter = peer_of(ticket.inviter_key)
        if inviter == self._identity.peer_id:
            raise AdmissionError("this ticket was made by this very device", hint="use it on another device")
        connection = await self._reach(list(ticket.addresses), inviter, tell)
        tell(f"connected to {connection.remote_multiaddr}, identity matches the ticket")
        async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
            stream = await connection.open_stream(ADMIT)
            request = messages.AdmitRequest(
                secret=ticket.secret, name=self.name, version=__version__, addresses=self._addresses()
            )
            await messages.send_message(stream, request)
            answer = await messages.receive_message(stream)
        if isinstance(answer, messages.Refused):
            raise messages.refusal_error(answer)
        if not isinstance(answer, messages.Admitted):
            raise RemoteProtocolError("the inviter answered something else than admission")
        await self.accept(ticket.mesh_key, ticket.role, inviter, answer, list(ticket.addresses))
        tell(f'admitted as "{self.name}"')

    async def _reach(self, addresses: list[str], inviter: PeerId, tell: Callable[[str], None]) -> Connection:
        """A way to the inviter; without one, every address is told with what became of it."""
        try:
            return await self._transport.dial(addresses, inviter)
        except P2PNodeError as error:
            for address, reason in error.details.get("tried", []):
                tell(f"✗ {address}: {reason}")
            raise

    def my_addresses(self) -> list[str]:
        return self._addresses()

    async def accept(
        self, mesh_key: bytes, role: str, inviter: PeerId, answer: messages.Admitted, addresses: list[str]
    ) -> None:
        """Become a member by what the inviter at these addresses answered, if its grants say so."""
        membership = Membership(mesh_key)
        grants = [decode_grant(data) for data in (*answer.grants[: limits.MESH_MEMBERS_MAX], answer.grant)]
        membership.add_all(grants)
        if membership.role(self.my_key) is None:
            raise NotAdmitted("the inviter's grants do not make this device a member")
        await self._ledger.do(
            c.JoinMesh(
                mesh_id=peer_of(mesh_key),
                mesh_name=answer.mesh_name[: limits.NAME_CHARACTERS_MAX],
                admitted_by=inviter,
                grant=answer.grant,
                role=role,
            )
        )
        self.membership, self.mesh_name = membership, answer.mesh_name
        for grant in grants:
            if grant.subject_key != self.my_key:
                await self._record(grant)
        await self._hear_revocations(answer.revocations)
        for entry in answer.peers[: limits.MESH_MEMBERS_MAX]:
            said = [str(a) for a in entry.get("addresses", []) if str(a).startswith("/")]
            peer = PeerId(str(entry.get("peer")))
            if peer != self._transport.peer_id and self.is_member(peer):
                self._member_added(peer, "", said[: limits.PEER_ADDRESSES_MAX])
        self._member_added(inviter, "", addresses)

    # --- ending a membership -------------------------------------------------------------------------
    async def revoke(self, peer_id: PeerId, reason: str) -> None:
        """A device is a member no longer, here at once and elsewhere with the next status."""
        if self.membership is None:
            raise WrongMesh("this device is in no mesh yet")
        subject_key = key_of(peer_id)
        grant = self.membership.grant(subject_key)
        if grant is None or not self.role_of(peer_id):
            raise NotFound(f"{peer_id} is no member that could be revoked")
        revocation = make_revocation(
            self._identity.sign,
            mesh_key=self.membership.mesh_key,
            subject_key=subject_key,
            issuer_key=self.my_key,
            now_ms=max(self._now_ms(), grant.issued_ms),
        )
        self.membership.revoke(revocation)
        await self._removed(peer_id, reason, revocation.encode())

    async def _removed(self, peer_id: PeerId, reason: str, revocation: bytes) -> None:
        await self._ledger.do(c.RevokePeer(peer=peer_id, reason=reason, revocation=revocation))
        self.member_removed(peer_id)

    # --- gossip --------------------------------------------------------------------------------------
    async def hear(self, status: messages.Status) -> None:
        """Grants and revocations that a member passed on; each stands or falls by its own signatures."""
        if self.membership is None or status.mesh_key != self.membership.mesh_key:
            return
        for data in status.grants[: limits.MESH_MEMBERS_MAX]:
            grant = decode_grant(data)
            known = self.membership.grant(grant.subject_key)
            if (known is None or known.issued_ms < grant.issued_ms) and self.membership.add(grant):
                await self._record(grant)
                if grant.role != GUEST:
                    self._member_added(peer_of(grant.subject_key), grant.name, [])
        await self._hear_revocations(status.revocations)

    async def _hear_revocations(self, revocations: list[bytes]) -> None:
        assert self.membership is not None
        for data in revocations[: limits.MESH_MEMBERS_MAX]:
            revocation = decode_revocation(data)
            if self.membership.revoke(revocation):
                await self._removed(peer_of(revocation.subject_key), "revoked by its inviter", data)

    async def _record(self, grant: Grant) -> None:
        await self._ledger.do(
            c.AdmitPeer(
                peer=peer_of(grant.subject_key),
                device_name=grant.name,
                role=grant.role,
                admitted_by=peer_of(grant.issuer_key),
                grant=grant.encode(),
                invite_id="",
            )
        )

    # --- remembered addresses ------------------------------------------------------------------------
    def remembered(self) -> dict[str, list[str]]:
        """Where members were last reached; a damaged file is the same as none."""
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {
            str(peer): [str(a) for a in addresses[: limits.PEER_ADDRESSES_MAX]]
            for peer, addresses in found.items()
            if isinstance(addresses, list)
        }

    def remember(self, addresses: dict[str, list[str]]) -> None:
        """Written when something changed: a node that is killed shall find the others as well."""
        before = self.remembered()
        merged = {**before, **addresses}
        if merged != before:
            write_atomic(self._path, json.dumps(merged, indent=1).encode())
