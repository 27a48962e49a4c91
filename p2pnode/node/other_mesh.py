"""One other mesh whose guest this node is: its members, where they are and what they offer, as last heard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2pnode import limits
from p2pnode.compute.other_meshes import ToldModel
from p2pnode.errors import NotAdmitted
from p2pnode.models.files import write_atomic
from p2pnode.multiformats import DecodeError
from p2pnode.node.roles import GUEST, is_member
from p2pnode.transport.membership import Membership, decode_grant, decode_revocation, key_of, peer_of
from p2pnode.units import PeerId


@dataclass(slots=True)
class Other:
    """One other mesh as it is known now; the record has only that this node is its guest."""

    mesh_id: str
    name: str
    gateway: PeerId
    membership: Membership
    addresses: dict[PeerId, list[str]] = field(default_factory=dict)
    names: dict[PeerId, str] = field(default_factory=dict)
    offers: dict[PeerId, list[ToldModel]] = field(default_factory=dict)
    last: dict[PeerId, list[ToldModel]] = field(default_factory=dict)
    """What each member told when it was heard last: who asks for a model there by name may be answered here instead."""
    trouble: str = "not asked yet"

    def has_member(self, peer: PeerId) -> bool:
        with suppress(NotAdmitted, DecodeError):
            return is_member(self.membership.role(key_of(peer)) or "")
        return False

    def members(self) -> list[PeerId]:
        """Whom to ask, who let this node in first."""
        known = (peer_of(key) for key in self.membership.members() if self.membership.role(key) != GUEST)
        return sorted((p for p in known if self.addresses.get(p)), key=lambda p: (p != self.gateway, p))

    def learn_membership(self, grants: Sequence[bytes], revocations: Sequence[bytes]) -> None:
        """Each stands or falls by its own signatures."""
        for data in grants[: limits.MESH_MEMBERS_MAX]:
            self.membership.add(decode_grant(data))
        for data in revocations[: limits.MESH_MEMBERS_MAX]:
            self.membership.revoke(decode_revocation(data))

    def learn_addresses(self, peers: Sequence[dict[str, Any]]) -> None:
        for entry in peers[: limits.MESH_MEMBERS_MAX]:
            said = [str(a) for a in entry.get("addresses", []) if str(a).startswith("/")]
            peer = PeerId(str(entry.get("peer")))
            if said and self.has_member(peer):
                self.addresses[peer] = said[: limits.PEER_ADDRESSES_MAX]

    def moved(self, peer: PeerId, addresses: Sequence[str]) -> bool:
        """Where a peer says it is now, before where it was; False when it is no member or nothing is new."""
        if not self.has_member(peer):
            return False
        known = self.addresses.get(peer, [])
        fresh = [address for address in addresses if address not in known]
        self.addresses[peer] = [*fresh, *known][: limits.PEER_ADDRESSES_MAX]
        return bool(fresh)


@dataclass(frozen=True, slots=True)
class Remembered:
    grants: list[bytes] = field(default_factory=list)
    addresses: dict[PeerId, list[str]] = field(default_factory=dict)


class OtherMeshesFile:
    """Who is in other meshes and where, so that they can be asked after a restart; forgettable."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "other_meshes.json"

    def read(self) -> dict[str, Remembered]:
        """By mesh id; a damaged file is the same as none."""
        try:
            return {
                str(mesh_id): _remembered(said)
                for mesh_id, said in json.loads(self._path.read_text()).items()
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def write(self, others: Sequence[Other]) -> None:
        """When something changed."""
        now = {
            other.mesh_id: Remembered(other.membership.export(), dict(other.addresses)) for other in others
        }
        if now != self.read():
            document = {
                mesh_id: {"grants": [data.hex() for data in one.grants], "addresses": one.addresses}
                for mesh_id, one in now.items()
            }
            write_atomic(self._path, json.dumps(document, indent=1).encode())


def _remembered(said: dict[str, Any]) -> Remembered:
    return Remembered(
        [bytes.fromhex(text) for text in said["grants"] if text],
        {
            PeerId(str(peer)): [str(a) for a in addresses][: limits.PEER_ADDRESSES_MAX]
            for peer, addresses in said["addresses"].items()
        },
    )
