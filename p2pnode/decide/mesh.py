"""The node, its mesh and its members."""

from __future__ import annotations

from typing import Final

from p2pnode import limits
from p2pnode.commands import (
    AdmitPeer,
    CreateInvite,
    CreateMesh,
    EndFederation,
    Federate,
    ForgetPeer,
    JoinMesh,
    RecordMeasurement,
    RecordPeerLost,
    RecordPeerSeen,
    RevokeInvite,
    RevokePeer,
    StartNode,
    StopNode,
)
from p2pnode.decide.outcome import Deciders, between, decision, label, nothing, reason
from p2pnode.decide.requests import failure
from p2pnode.errors import (
    InviteExpired,
    InviteRevoked,
    InviteUsed,
    NotAdmitted,
    NotFound,
    RequestError,
    TicketInvalid,
    WrongMesh,
)
from p2pnode.events import types as facts
from p2pnode.events.log import Decision
from p2pnode.projections import MeshState, federation, invites, peers, sessions
from p2pnode.projections.peers import Measured

ROLES: Final = ("worker", "client", "guest", "member")
GUEST: Final = "guest"
MEASURE_INTERVAL_MS: Final = 60_000
MEASURE_CHANGE_PERCENT: Final = 20


def start_node(state: MeshState, command: StartNode, now_ms: int) -> Decision:
    """NodeStarted; requests a crash cut off fail and get their credit back."""
    events: list[facts.Event] = [
        facts.NodeStarted(version=command.version, platform=command.platform, device_name=command.device_name)
    ]
    left_open = sessions.running(state.sessions)
    for request_id in left_open:
        events += failure(state, request_id, "interrupted", "the node ended while this was running")
    known = state.sessions.requests
    for hold_id, hold in state.billing.holds.items():
        if hold_id not in known or known[hold_id].state != "running":
            events.append(facts.CreditVoided(hold_id=hold_id, payer=hold.payer, reason="interrupted"))
    crashed = state.node.running
    return decision(*events, answer={"crashed": crashed, "interrupted": left_open})


def stop_node(state: MeshState, command: StopNode, now_ms: int) -> Decision:
    """NodeStopped, if it runs."""
    if not state.node.running:
        return nothing()
    return decision(facts.NodeStopped(reason=reason(command.reason)))


def create_mesh(state: MeshState, command: CreateMesh, now_ms: int) -> Decision:
    mesh_id = label(command.mesh_id, "mesh_id")
    if _in_mesh(state, mesh_id):
        return nothing()
    return decision(facts.MeshCreated(mesh_id=mesh_id, mesh_name=label(command.mesh_name, "mesh_name")))


def join_mesh(state: MeshState, command: JoinMesh, now_ms: int) -> Decision:
    mesh_id = label(command.mesh_id, "mesh_id")
    if _in_mesh(state, mesh_id):
        return nothing()
    return decision(
        facts.MeshJoined(
            mesh_id=mesh_id,
            mesh_name=command.mesh_name,
            admitted_by=command.admitted_by,
            grant=command.grant,
            role=command.role,
        )
    )


def _in_mesh(state: MeshState, mesh_id: str) -> bool:
    """True for this mesh already; WrongMesh for another one."""
    if state.node.mesh_id and state.node.mesh_id != mesh_id:
        raise WrongMesh(
            f"this device belongs to the mesh {state.node.mesh_name or state.node.mesh_id}",
            hint="use another data folder with --data to join a second mesh",
        )
    return state.node.mesh_id == mesh_id


def federate(state: MeshState, command: Federate, now_ms: int) -> Decision:
    """MeshFederated. Raises: WrongMesh for this node's own mesh, RequestError for a name that is taken or cannot be."""
    mesh_id, name = label(command.mesh_id, "mesh_id"), label(command.name, "name")
    if mesh_id == state.node.mesh_id:
        raise WrongMesh(
            f"this is a ticket of {command.mesh_name}, the mesh this device is in",
            hint="another device joins it with: p2pnode join TICKET",
        )
    if "@" in name or name != name.strip():
        raise RequestError(
            f"a mesh cannot be called {name!r} here: models are asked for as MODEL@NAME", field="name"
        )
    known = state.federation.meshes
    if federation.called(state.federation, name) not in (None, mesh_id):
        raise RequestError(
            f"another mesh is called {name!r} here already",
            hint="choose a name with: p2pnode federation add TICKET --as NAME",
            field="name",
        )
    if mesh_id not in known and len(known) >= limits.FEDERATED_MESHES_MAX:
        raise RequestError(
            f"{len(known)} meshes are known already, at most {limits.FEDERATED_MESHES_MAX} can be",
            hint="end one with: p2pnode federation remove NAME",
        )
    event = facts.MeshFederated(
        mesh_id=mesh_id,
        mesh_name=command.mesh_name,
        name=name,
        gateway=command.gateway,
        grant=command.grant,
    )
    return decision(event, answer={"mesh_id": mesh_id, "mesh": command.mesh_name, "name": name})


def end_federation(state: MeshState, command: EndFederation, now_ms: int) -> Decision:
    entry = state.federation.meshes.get(command.mesh_id)
    if entry is None:
        raise NotFound(f"there is no mesh {command.mesh_id} to end")
    return decision(
        facts.MeshFederationEnded(mesh_id=command.mesh_id),
        answer={"mesh_id": command.mesh_id, "mesh": entry.mesh_name, "name": entry.name},
    )


def create_invite(state: MeshState, command: CreateInvite, now_ms: int) -> Decision:
    """InviteCreated. Raises: RequestError for a role, number of uses or time that cannot be."""
    invite_id = label(command.invite_id, "invite_id")
    between(command.uses, 1, limits.PLAN_DEVICES_MAX * 16, "uses")
    if command.role not in ROLES:
        raise RequestError(f"role {command.role!r} is not one of {', '.join(ROLES)}", field="role")
    if command.expires_ms <= now_ms:
        raise RequestError("an invite must expire in the future", field="expires_ms")
    if invite_id in state.invites.invites:
        raise RequestError(f"invite {invite_id} exists already", field="invite_id")
    event = facts.InviteCreated(
        invite_id=invite_id,
        label=command.label[:128],
        role=command.role,
        uses=command.uses,
        expires_ms=command.expires_ms,
    )
    answer = {
        "invite_id": invite_id,
        "uses": command.uses,
        "role": command.role,
        "expires_ms": command.expires_ms,
    }
    return decision(event, answer=answer)


def revoke_invite(state: MeshState, command: RevokeInvite, now_ms: int) -> Decision:
    invite = state.invites.invites.get(command.invite_id)
    if invite is None:
        raise NotFound(f"there is no invite {command.invite_id}", hint="p2pnode invites lists them")
    if invite.revoked:
        return nothing()
    return decision(facts.InviteRevoked(invite_id=command.invite_id))


def admit_peer(state: MeshState, command: AdmitPeer, now_ms: int) -> Decision:
    """PeerAdmitted after InviteUsed; a member that asks again gets its first grant and uses nothing.

    Raises: TicketInvalid, InviteRevoked, InviteExpired, InviteUsed, NotAdmitted (was revoked).
    """
    peer = label(command.peer, "peer")
    entry = state.peers.peers.get(peer)
    if entry is not None and entry.revoked:
        raise NotAdmitted(f"{peer} was removed from this mesh: {entry.revoked}", hint="")
    if entry is not None and peers.is_member(state.peers, peer):
        return decision(answer={"grant": entry.grant, "role": entry.role, "already": True})
    events: list[facts.Event] = []
    role = command.role or "worker"
    if command.invite_id:
        invite = _open_invite(state, command.invite_id, now_ms)
        role = command.role if command.role == GUEST else invite.role  # who asks for less gets less
        events.append(
            facts.InviteUsed(invite_id=command.invite_id, peer=peer, uses_left=invite.uses_left - 1)
        )
    events.append(
        facts.PeerAdmitted(
            peer=peer,
            device_name=command.device_name,
            role=role,
            admitted_by=command.admitted_by,
            grant=command.grant,
            invite_id=command.invite_id,
        )
    )
    return decision(*events, answer={"grant": command.grant, "role": role, "already": False})


def _open_invite(state: MeshState, invite_id: str, now_ms: int) -> invites.Invite:
    invite = state.invites.invites.get(invite_id)
    if invite is None:
        raise TicketInvalid("this ticket was not made by this device")
    match invites.state_of(invite, now_ms):
        case "revoked":
            raise InviteRevoked("this ticket was revoked")
        case "used":
            raise InviteUsed(f"this ticket was good for {invite.uses} device(s) and is used up")
        case "expired":
            raise InviteExpired("this ticket has expired")
    return invite


def revoke_peer(state: MeshState, command: RevokePeer, now_ms: int) -> Decision:
    entry = _known(state, command.peer)
    if entry.revoked:
        return nothing()
    return decision(
        facts.PeerRevoked(
            peer=command.peer, reason=reason(command.reason) or "revoked", revocation=command.revocation
        )
    )


def forget_peer(state: MeshState, command: ForgetPeer, now_ms: int) -> Decision:
    _known(state, command.peer)
    return decision(facts.PeerForgotten(peer=command.peer))


def _known(state: MeshState, peer: str) -> peers.Peer:
    """A peer other than this node; NotFound else."""
    entry = state.peers.peers.get(peer)
    if entry is None or peer == state.peers.own:
        raise NotFound(f"{peer} is not another device this one knows", hint="p2pnode peers lists them")
    return entry


def record_peer_seen(state: MeshState, command: RecordPeerSeen, now_ms: int) -> Decision:
    """PeerSeen when something changed; a heartbeat is no fact."""
    entry = state.peers.peers.get(command.peer)
    if entry is not None and entry.online:
        before = (entry.name, entry.path, entry.version)
        after = (
            command.device_name or entry.name,
            command.path,
            command.version or entry.version,
        )
        if before == after:
            return nothing()
    return decision(
        facts.PeerSeen(
            peer=label(command.peer, "peer"),
            device_name=command.device_name,
            path=command.path,
            address_commitment=command.address_commitment,
            version=command.version,
        )
    )


def record_peer_lost(state: MeshState, command: RecordPeerLost, now_ms: int) -> Decision:
    """PeerLost for one that was online."""
    entry = state.peers.peers.get(command.peer)
    if entry is None or not entry.online:
        return nothing()
    return decision(facts.PeerLost(peer=command.peer, reason=reason(command.reason)))


def record_measurement(state: MeshState, command: RecordMeasurement, now_ms: int) -> Decision:
    """PeerMeasured after a change of 20 % in anything, at most once a minute for each peer."""
    entry = state.peers.peers.get(command.measured.peer)
    if entry is None:
        raise NotFound(f"{command.measured.peer} is not a device this one knows")
    before = entry.measured
    if before is not None and (
        now_ms - before.at_ms < MEASURE_INTERVAL_MS or not _changed_much(before, command.measured)
    ):
        return nothing()
    return decision(command.measured)


def _changed_much(before: Measured, after: facts.PeerMeasured) -> bool:
    pairs = (
        (before.rtt_us, after.rtt_us),
        (before.bytes_per_s, after.bytes_per_s),
        (before.memory_bytes, after.memory_bytes),
        (before.memory_free_bytes, after.memory_free_bytes),
        (before.flops_mega, after.flops_mega),
        (before.memory_bytes_per_s, after.memory_bytes_per_s),
    )
    return any(abs(a - b) * 100 > max(a, b) * MEASURE_CHANGE_PERCENT for a, b in pairs)


DECIDERS: Final[Deciders] = {
    StartNode: start_node,
    StopNode: stop_node,
    CreateMesh: create_mesh,
    JoinMesh: join_mesh,
    Federate: federate,
    EndFederation: end_federation,
    CreateInvite: create_invite,
    RevokeInvite: revoke_invite,
    AdmitPeer: admit_peer,
    RevokePeer: revoke_peer,
    ForgetPeer: forget_peer,
    RecordPeerSeen: record_peer_seen,
    RecordPeerLost: record_peer_lost,
    RecordMeasurement: record_measurement,
}
