"""Facts about the mesh: who may be in it and who is there."""

from __future__ import annotations

from dataclasses import dataclass

from p2pnode.events.fields import Count, Document, Hash, Label, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshCreated:
    """This node founded a mesh."""

    mesh_id: Label
    mesh_name: Label


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshJoined:
    """This node became a member of a mesh."""

    mesh_id: Label
    mesh_name: Label
    admitted_by: Label
    grant: Document
    role: Label = "member"


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteCreated:
    """A ticket was made; the ticket's secret is not recorded."""

    invite_id: Label
    label: Label
    role: Label
    uses: Count
    expires_ms: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteRevoked:
    """A ticket stopped being valid before its end."""

    invite_id: Label


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteUsed:
    """A peer came with a ticket and it was good."""

    invite_id: Label
    peer: Label
    uses_left: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAdmitted:
    """A peer became a member; the signed grant is what it shows to the others."""

    peer: Label
    device_name: Label
    role: Label
    admitted_by: Label
    grant: Document
    invite_id: Label = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRevoked:
    """A member lost its membership for good."""

    peer: Label
    reason: Reason
    revocation: Document = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshFederated:
    """This node became a guest of another mesh, which may serve whole requests; told again, the newer grant counts."""

    mesh_id: Label
    mesh_name: Label
    """What that mesh calls itself."""
    name: Label
    """What people here call it: `MODEL@name`."""
    gateway: Label
    """The member of it that let this node in."""
    grant: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshFederationEnded:
    """This node asks another mesh no more."""

    mesh_id: Label


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSeen:
    """A member became reachable."""

    peer: Label
    device_name: Label
    path: Label
    """loopback, lan, wan or relay, as authenticated by the transport."""
    address_commitment: Hash | None = None
    version: Label = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLost:
    """A member stopped answering."""

    peer: Label
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityDuplicated:
    """Two devices run under one identity at once: a data folder was copied."""

    peer: Label
    """Whose identity; this node's own when a member told it."""
    device: Label
    other_device: Label
    """Host names, as both say themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerForgotten:
    """The owner removed a peer from the list of known ones."""

    peer: Label


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerMeasured:
    """What a peer and the way to it can do; only after a large change, at most once a minute."""

    peer: Label
    rtt_us: Count
    bytes_per_s: Count
    memory_bytes: Count
    memory_free_bytes: Count
    flops_mega: Count
    memory_bytes_per_s: Count
