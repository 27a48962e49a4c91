"""Who belongs to the mesh: signed grants that chain back to the founder, and revocations.

A grant is made by the member whose invite was used; any member can check it with nothing but the
founder's key, so membership spreads by gossip without a server. Pure. Source: specs/02-invites.md
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgpack
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from p2pnode import limits
from p2pnode import peer_id as ids
from p2pnode.errors import NotAdmitted, RemoteProtocolError
from p2pnode.units import PeerId

GRANT_DOMAIN = b"p2pnode-grant-v1:"
REVOCATION_DOMAIN = b"p2pnode-revocation-v1:"
ISSUER_ROLES = frozenset({"worker"})
"""A client uses the mesh but lets nobody in."""

Sign = Callable[[bytes], bytes]


def peer_of(key: bytes) -> PeerId:
    return ids.peer_id_of(ids.encode_public_key(Ed25519PublicKey.from_public_bytes(key)))


def key_of(peer_id: str) -> bytes:
    """The 32-byte key inside a member's peer id."""
    key = ids.ed25519_public_key(peer_id)
    if key is None:
        raise NotAdmitted("members have Ed25519 identities; this peer id only holds a hash of its key")
    return key.public_bytes_raw()


@dataclass(frozen=True, slots=True)
class Grant:
    mesh_key: bytes
    subject_key: bytes
    issuer_key: bytes
    role: str
    name: str
    issued_ms: int
    signature: bytes

    def signed_bytes(self) -> bytes:
        return GRANT_DOMAIN + _pack(
            self.mesh_key, self.subject_key, self.issuer_key, self.role, self.name, self.issued_ms
        )

    def encode(self) -> bytes:
        return _pack(
            self.mesh_key,
            self.subject_key,
            self.issuer_key,
            self.role,
            self.name,
            self.issued_ms,
            self.signature,
        )


@dataclass(frozen=True, slots=True)
class Revocation:
    mesh_key: bytes
    subject_key: bytes
    issuer_key: bytes
    issued_ms: int
    signature: bytes

    def signed_bytes(self) -> bytes:
        return REVOCATION_DOMAIN + _pack(self.mesh_key, self.subject_key, self.issuer_key, self.issued_ms)

    def encode(self) -> bytes:
        return _pack(self.mesh_key, self.subject_key, self.issuer_key, self.issued_ms, self.signature)


def make_grant(
    sign: Sign, *, mesh_key: bytes, subject_key: bytes, issuer_key: bytes, role: str, name: str, now_ms: int
) -> Grant:
    unsigned = Grant(mesh_key, subject_key, issuer_key, role, name, now_ms, b"")
    return Grant(mesh_key, subject_key, issuer_key, role, name, now_ms, sign(unsigned.signed_bytes()))


def make_revocation(
    sign: Sign, *, mesh_key: bytes, subject_key: bytes, issuer_key: bytes, now_ms: int
) -> Revocation:
    unsigned = Revocation(mesh_key, subject_key, issuer_key, now_ms, b"")
    return Revocation(mesh_key, subject_key, issuer_key, now_ms, sign(unsigned.signed_bytes()))


def decode_grant(data: bytes) -> Grant:
    """The signature is not checked here; raises RemoteProtocolError for anything but a grant's exact bytes."""
    mesh, subject, issuer, role, name, issued_ms, signature = _unpack(data, 7)
    if not (isinstance(role, str) and isinstance(name, str) and len(name) <= limits.NAME_CHARACTERS_MAX):
        raise RemoteProtocolError("a grant's role or name is not short text")
    grant = Grant(
        _key(mesh), _key(subject), _key(issuer), role, name, _time(issued_ms), _signature(signature)
    )
    if grant.encode() != data:
        raise RemoteProtocolError("a grant is not in its shortest form")
    return grant


def decode_revocation(data: bytes) -> Revocation:
    mesh, subject, issuer, issued_ms, signature = _unpack(data, 5)
    revocation = Revocation(_key(mesh), _key(subject), _key(issuer), _time(issued_ms), _signature(signature))
    if revocation.encode() != data:
        raise RemoteProtocolError("a revocation is not in its shortest form")
    return revocation


class Membership:
    """The verified members of one mesh; order of arrival does not matter: grants wait for their issuer, bounded."""

    def __init__(self, mesh_key: bytes) -> None:
        self.mesh_key = mesh_key
        self._grants: dict[bytes, Grant] = {}
        self._revocations: dict[bytes, Revocation] = {}
        self._waiting: dict[bytes, Grant] = {}

    def role(self, key: bytes) -> str | None:
        """ "founder", "worker", "client", or None for a stranger or somebody revoked."""
        if key == self.mesh_key:
            return "founder"
        grant = self._grants.get(key)
        if grant is None or not self._stands(grant):
            return None
        return grant.role

    def grant(self, key: bytes) -> Grant | None:
        return self._grants.get(key)

    def members(self) -> list[bytes]:
        return [self.mesh_key, *(key for key in self._grants if self.role(key) is not None)]

    def export(self) -> list[bytes]:
        """All grants, encoded, founder's own first: an order in which each can be checked at once."""
        return [grant.encode() for grant in self._grants.values()]

    def export_revocations(self) -> list[bytes]:
        return [revocation.encode() for revocation in self._revocations.values()]

    def add(self, grant: Grant) -> bool:
        """True when this made somebody a member that was none. A wrong signature raises NotAdmitted."""
        if grant.mesh_key != self.mesh_key:
            raise NotAdmitted("this grant is for another mesh")
        if not _verifies(grant.issuer_key, grant.signature, grant.signed_bytes()):
            raise NotAdmitted("a grant's signature does not verify")
        if grant.subject_key in self._grants or grant.subject_key == self.mesh_key:
            return self._replace_if_renewed(grant)
        if not self._may_issue(grant.issuer_key):
            if len(self._waiting) < limits.MESH_MEMBERS_MAX:
                self._waiting[grant.subject_key] = grant
            return False
        if len(self._grants) >= limits.MESH_MEMBERS_MAX:
            raise NotAdmitted(f"a mesh has at most {limits.MESH_MEMBERS_MAX} members")
        self._grants[grant.subject_key] = grant
        self._retry_waiting()
        return self.role(grant.subject_key) is not None

    def add_all(self, grants: Iterable[Grant]) -> int:
        return sum(self.add(grant) for grant in grants)

    def revoke(self, revocation: Revocation) -> bool:
        """True when this ended a membership. Only the founder and who granted it may."""
        if revocation.mesh_key != self.mesh_key:
            raise NotAdmitted("this revocation is for another mesh")
        if not _verifies(revocation.issuer_key, revocation.signature, revocation.signed_bytes()):
            raise NotAdmitted("a revocation's signature does not verify")
        grant = self._grants.get(revocation.subject_key)
        if grant is None or revocation.issuer_key not in (self.mesh_key, grant.issuer_key):
            raise NotAdmitted("only the founder or the member who let a device in can revoke it")
        known = self._revocations.get(revocation.subject_key)
        if known is not None and known.issued_ms >= revocation.issued_ms:
            return False
        was = self.role(revocation.subject_key)
        self._revocations[revocation.subject_key] = revocation
        return was is not None and self.role(revocation.subject_key) is None

    def _stands(self, grant: Grant) -> bool:
        revocation = self._revocations.get(grant.subject_key)
        return revocation is None or revocation.issued_ms < grant.issued_ms

    def _may_issue(self, key: bytes) -> bool:
        return key == self.mesh_key or self.role(key) in ISSUER_ROLES

    def _replace_if_renewed(self, grant: Grant) -> bool:
        old = self._grants.get(grant.subject_key)
        if old is None or grant.issued_ms <= old.issued_ms or not self._may_issue(grant.issuer_key):
            return False
        was = self.role(grant.subject_key)
        self._grants[grant.subject_key] = grant
        return was is None and self.role(grant.subject_key) is not None

    def _retry_waiting(self) -> None:
        progress = True
        while progress:
            progress = False
            for key, grant in list(self._waiting.items()):
                if self._may_issue(grant.issuer_key):
                    del self._waiting[key]
                    self._grants[key] = grant
                    progress = True


def _verifies(key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _pack(*fields: object) -> bytes:
    packed = msgpack.packb(list(fields))
    assert isinstance(packed, bytes)
    return packed


def _unpack(data: bytes, count: int) -> list[object]:
    if len(data) > limits.GRANT_BYTES_MAX:
        raise RemoteProtocolError("a grant or revocation is too long")
    try:
        fields = msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException):
        raise RemoteProtocolError("a grant or revocation is not MessagePack") from None
    if not isinstance(fields, list) or len(fields) != count:
        raise RemoteProtocolError(f"a grant or revocation has {count} fields here")
    return fields


def _key(value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) != 32:
        raise RemoteProtocolError("a key is 32 bytes")
    return value


def _signature(value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) != 64:
        raise RemoteProtocolError("a signature is 64 bytes")
    return value


def _time(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise RemoteProtocolError("a time is milliseconds since 1970")
    return value
