"""Peers: who is a member, who answers, what each can do, and who may not be trusted any more."""

from __future__ import annotations

from typing import Final

import msgspec

from p2pnode import limits
from p2pnode.events import types as facts
from p2pnode.events.codec import Record
from p2pnode.projections.fold import Handlers, JsonObject, forget_oldest, in_order


class Measured(msgspec.Struct, array_like=True):
    at_ms: int
    rtt_us: int
    bytes_per_s: int
    memory_bytes: int
    memory_free_bytes: int
    flops_mega: int
    memory_bytes_per_s: int


class Peer(msgspec.Struct, array_like=True):
    index: int
    name: str = ""
    role: str = ""
    admitted_by: str = ""
    grant: bytes = b""
    invite_id: str = ""
    admitted_ms: int = 0
    """0 while it is no member."""
    online: bool = False
    path: str = ""
    version: str = ""
    address_commitment: bytes = b""
    first_seen_ms: int = 0
    last_seen_ms: int = 0
    lost_reason: str = ""
    revoked: str = ""
    """Why its membership ended."""
    equivocated: bool = False
    refused_blobs: int = 0
    stages_lost: int = 0
    measured: Measured | None = None
    revocation: bytes = b""
    """Signed by who revoked it: a restarted node must know it again, and pass it on."""


class Peers(msgspec.Struct):
    own: str = ""
    peers: dict[str, Peer] = {}

    def __post_init__(self) -> None:
        self.peers = in_order(self.peers)


def initial() -> Peers:
    return Peers()


def is_member(state: Peers, peer: str) -> bool:
    entry = state.peers.get(peer)
    return entry is not None and entry.admitted_ms > 0 and not entry.revoked


def name_of(state: Peers, peer: str) -> str:
    """The device's name, or the end of its id while it has none."""
    entry = state.peers.get(peer)
    return entry.name if entry is not None and entry.name else peer[-8:]


def state_of(entry: Peer) -> str:
    """revoked, equivocated, unadmitted, online or offline."""
    if entry.revoked:
        return "revoked"
    if entry.equivocated:
        return "equivocated"
    if not entry.admitted_ms:
        return "unadmitted"
    return "online" if entry.online else "offline"


def _entry(state: Peers, record: Record, peer: str) -> Peer:
    entry = state.peers.get(peer)
    if entry is None:
        entry = state.peers[peer] = Peer(record.index, first_seen_ms=record.wall_ms)
        if len(state.peers) > limits.PEERS_KEPT_MAX:
            _forget_one_stranger(state, peer)
    return entry


def _forget_one_stranger(state: Peers, newest: str) -> None:
    """The oldest that is no member, or else the oldest: never the one that just came."""
    for peer, entry in state.peers.items():
        if not entry.admitted_ms and peer != newest:
            del state.peers[peer]
            return
    forget_oldest(state.peers, limits.PEERS_KEPT_MAX)


def _keys_bound(state: Peers, record: Record, event: facts.KeysBound) -> None:
    state.own = event.peer
    entry = _entry(state, record, event.peer)
    entry.admitted_ms = entry.admitted_ms or record.wall_ms


def _node_started(state: Peers, record: Record, event: facts.NodeStarted) -> None:
    for entry in state.peers.values():
        entry.online = False
    own = state.peers.get(state.own)
    if own is not None:
        own.name, own.version, own.online = event.device_name, event.version, True
        own.path, own.last_seen_ms = "loopback", record.wall_ms


def _node_stopped(state: Peers, record: Record, event: facts.NodeStopped) -> None:
    for entry in state.peers.values():
        entry.online = False


def _peer_admitted(state: Peers, record: Record, event: facts.PeerAdmitted) -> None:
    entry = _entry(state, record, event.peer)
    entry.name, entry.role, entry.admitted_by = event.device_name, event.role, event.admitted_by
    entry.grant, entry.invite_id, entry.admitted_ms = event.grant, event.invite_id, record.wall_ms
    entry.revoked, entry.revocation = "", b""


def _peer_revoked(state: Peers, record: Record, event: facts.PeerRevoked) -> None:
    entry = _entry(state, record, event.peer)
    entry.revoked, entry.revocation, entry.online = event.reason or "revoked", event.revocation, False


def _peer_seen(state: Peers, record: Record, event: facts.PeerSeen) -> None:
    entry = _entry(state, record, event.peer)
    entry.name = event.device_name or entry.name
    entry.version = event.version or entry.version
    entry.online, entry.path, entry.lost_reason = True, event.path, ""
    entry.address_commitment = event.address_commitment or b""
    entry.last_seen_ms = record.wall_ms


def _peer_lost(state: Peers, record: Record, event: facts.PeerLost) -> None:
    entry = state.peers.get(event.peer)
    if entry is not None:
        entry.online, entry.lost_reason, entry.last_seen_ms = False, event.reason, record.wall_ms


def _peer_forgotten(state: Peers, record: Record, event: facts.PeerForgotten) -> None:
    state.peers.pop(event.peer, None)


def _peer_measured(state: Peers, record: Record, event: facts.PeerMeasured) -> None:
    _entry(state, record, event.peer).measured = Measured(
        record.wall_ms,
        event.rtt_us,
        event.bytes_per_s,
        event.memory_bytes,
        event.memory_free_bytes,
        event.flops_mega,
        event.memory_bytes_per_s,
    )


def _peer_equivocated(state: Peers, record: Record, event: facts.PeerEquivocated) -> None:
    _entry(state, record, event.peer).equivocated = True


def _blob_refused(state: Peers, record: Record, event: facts.BlobRefused) -> None:
    entry = state.peers.get(event.peer)
    if entry is not None:
        entry.refused_blobs += 1


def _stage_lost(state: Peers, record: Record, event: facts.StageLost) -> None:
    entry = state.peers.get(event.peer)
    if entry is not None:
        entry.stages_lost += 1


def _measured_view(measured: Measured | None) -> JsonObject | None:
    return None if measured is None else msgspec.structs.asdict(measured)


def view(state: Peers, now_ms: int) -> JsonObject:
    """{"peers": [{"peer", "name", "state", "role", "addresses", "rtt_ms", "path", "self", "last_seen_ms",
    "version", "admitted_by", "admitted_ms", "lost_reason", "equivocated", "refused_blobs", "stages_lost",
    "silent_ms", "measured"}]}; `addresses` is empty here, the node fills it in from its live connections.
    """
    return {
        "peers": [
            {
                "peer": peer,
                "name": name_of(state, peer),
                "state": state_of(entry),
                "role": entry.role,
                "addresses": [],
                "rtt_ms": None if entry.measured is None else entry.measured.rtt_us / 1000,
                "path": entry.path,
                "self": peer == state.own,
                "last_seen_ms": entry.last_seen_ms,
                "silent_ms": 0 if entry.online else max(now_ms - entry.last_seen_ms, 0),
                "version": entry.version,
                "admitted_by": entry.admitted_by,
                "admitted_ms": entry.admitted_ms,
                "lost_reason": entry.lost_reason,
                "equivocated": entry.equivocated,
                "refused_blobs": entry.refused_blobs,
                "stages_lost": entry.stages_lost,
                "measured": _measured_view(entry.measured),
            }
            for peer, entry in state.peers.items()
        ]
    }


HANDLERS: Final[Handlers] = {
    facts.KeysBound: _keys_bound,
    facts.NodeStarted: _node_started,
    facts.NodeStopped: _node_stopped,
    facts.PeerAdmitted: _peer_admitted,
    facts.PeerRevoked: _peer_revoked,
    facts.PeerSeen: _peer_seen,
    facts.PeerLost: _peer_lost,
    facts.PeerForgotten: _peer_forgotten,
    facts.PeerMeasured: _peer_measured,
    facts.PeerEquivocated: _peer_equivocated,
    facts.BlobRefused: _blob_refused,
    facts.StageLost: _stage_lost,
}
