"""Who is in the mesh: creating it, inviting, granting and ending memberships, and passing them on."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from p2pnode import commands as c
from p2pnode import limits
from p2pnode.errors import (
    NotAdmitted,
    NotFound,
    RequestError,
    WrongMesh,
)
from p2pnode.identity import Identity
from p2pnode.multiformats import DecodeError
from p2pnode.node.ledger import Ledger
from p2pnode.node.roles import GUEST, is_member, may_use
from p2pnode.transport import messages
from p2pnode.transport.invite import Ticket, encode_ticket, secret_hash
from p2pnode.transport.membership import (
    Grant,
    Membership,
    decode_grant,
    decode_revocation,
    key_of,
    make_grant,
    make_revocation,
    peer_of,
)
from p2pnode.transport.port import Transport
from p2pnode.units import PeerId, UnixMs


class Mesh:
    """Membership of this node; grants are facts of the record."""

    def __init__(
        self,
        *,
        identity: Identity,
        ledger: Ledger,
        transport: Transport,
        name: str,
        addresses: Callable[[], list[str]],
        now_ms: Callable[[], int],
        member_added: Callable[[PeerId, str, list[str]], None],
        where: Callable[[], dict[str, list[str]]],
    ) -> None:
        self._identity = identity
        self._ledger = ledger
        self._transport = transport
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
        transport.set_gate(self._gate)

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
        return is_member(self.role_of(peer_id))

    def is_guest(self, peer_id: PeerId) -> bool:
        return self.role_of(peer_id) == GUEST

    def role_of(self, peer_id: PeerId) -> str:
        """Empty for strangers and for who was revoked."""
        try:
            return (self.membership.role(key_of(peer_id)) or "") if self.membership else ""
        except (NotAdmitted, DecodeError):
            return ""

    def _gate(self, peer_id: PeerId, protocol: str) -> bool:
        return may_use(self.role_of(peer_id), protocol)

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

    def grants_for_guests(self) -> list[bytes]:
        """By which a guest knows whom it may ask; who else is a guest is none of its business."""
        assert self.membership is not None
        grants = (self.membership.grant(key) for key in self.membership.members())
        return [grant.encode() for grant in grants if grant is not None and grant.role != GUEST]

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
