"""Grants chain back to the founder whatever order they arrive in; nothing else makes a member."""

from __future__ import annotations

from random import Random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import limits
from p2pnode.errors import NotAdmitted, RemoteProtocolError
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


class Device:
    def __init__(self, number: int) -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
        self.key = self.private.public_key().public_bytes_raw()

    def grants(self, other: Device, *, mesh: Device, role: str = "worker", now_ms: int = 10) -> Grant:
        return make_grant(
            self.private.sign, mesh_key=mesh.key, subject_key=other.key, issuer_key=self.key, role=role,
            name="d", now_ms=now_ms,
        )  # fmt: skip

    def revokes(self, other: Device, *, mesh: Device, now_ms: int = 20):  # type: ignore[no-untyped-def]
        return make_revocation(
            self.private.sign, mesh_key=mesh.key, subject_key=other.key, issuer_key=self.key, now_ms=now_ms
        )


founder, kitchen, study, guest, stranger = (Device(n) for n in range(1, 6))


def chain() -> list[Grant]:
    return [
        founder.grants(kitchen, mesh=founder),
        kitchen.grants(study, mesh=founder),
        study.grants(guest, mesh=founder, role="client"),
    ]


@given(st.permutations(range(3)))
def test_order_of_arrival_does_not_matter(order: list[int]) -> None:
    mesh, grants = Membership(founder.key), chain()
    for index in order:
        mesh.add(grants[index])
    assert [mesh.role(d.key) for d in (founder, kitchen, study, guest)] == [
        "founder",
        "worker",
        "worker",
        "client",
    ]
    assert mesh.role(stranger.key) is None
    assert set(mesh.members()) == {founder.key, kitchen.key, study.key, guest.key}
    assert [decode_grant(data) for data in mesh.export()] == sorted(
        grants, key=lambda g: mesh.export().index(g.encode())
    )


def test_a_stranger_or_a_client_lets_nobody_in() -> None:
    mesh = Membership(founder.key)
    assert mesh.add_all(chain()) == 3
    assert not mesh.add(stranger.grants(Device(9), mesh=founder))
    assert not mesh.add(guest.grants(Device(9), mesh=founder))
    assert mesh.role(Device(9).key) is None


def test_wrong_mesh_and_wrong_signature_are_refused() -> None:
    mesh = Membership(founder.key)
    with pytest.raises(NotAdmitted, match="another mesh"):
        mesh.add(stranger.grants(kitchen, mesh=stranger))
    good = founder.grants(kitchen, mesh=founder)
    for forged in (
        Grant(
            good.mesh_key,
            good.subject_key,
            good.issuer_key,
            "client",
            good.name,
            good.issued_ms,
            good.signature,
        ),
        Grant(
            good.mesh_key, stranger.key, good.issuer_key, good.role, good.name, good.issued_ms, good.signature
        ),
        Grant(
            good.mesh_key,
            good.subject_key,
            stranger.key,
            good.role,
            good.name,
            good.issued_ms,
            good.signature,
        ),
        Grant(
            good.mesh_key,
            good.subject_key,
            b"\xff" * 32,
            good.role,
            good.name,
            good.issued_ms,
            good.signature,
        ),
    ):
        with pytest.raises(NotAdmitted, match="does not verify"):
            mesh.add(forged)


def test_revocation_ends_and_a_newer_grant_renews() -> None:
    mesh = Membership(founder.key)
    mesh.add_all(chain())
    with pytest.raises(NotAdmitted, match="only the founder"):
        mesh.revoke(study.revokes(kitchen, mesh=founder))
    with pytest.raises(NotAdmitted, match="another mesh"):
        mesh.revoke(stranger.revokes(kitchen, mesh=stranger))
    forged = make_revocation(
        stranger.private.sign, mesh_key=founder.key, subject_key=study.key, issuer_key=founder.key, now_ms=20
    )
    with pytest.raises(NotAdmitted, match="does not verify"):
        mesh.revoke(forged)
    assert mesh.revoke(kitchen.revokes(study, mesh=founder))
    assert not mesh.revoke(kitchen.revokes(study, mesh=founder))
    assert mesh.role(study.key) is None
    assert study.key not in mesh.members()
    assert len(mesh.export_revocations()) == 1
    assert not mesh.add(kitchen.grants(study, mesh=founder, now_ms=10))
    assert mesh.add(founder.grants(study, mesh=founder, now_ms=30))
    assert mesh.role(study.key) == "worker"
    assert mesh.grant(study.key) is not None
    assert not mesh.add(founder.grants(founder, mesh=founder))


def test_members_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MESH_MEMBERS_MAX", 2)
    mesh = Membership(founder.key)
    mesh.add(founder.grants(kitchen, mesh=founder))
    mesh.add(founder.grants(study, mesh=founder))
    with pytest.raises(NotAdmitted, match="at most 2"):
        mesh.add(founder.grants(guest, mesh=founder))
    for number in range(20, 30):
        assert not mesh.add(stranger.grants(Device(number), mesh=founder))
    assert len(mesh._waiting) == 2


def test_encodings_round_trip_and_damage_is_refused() -> None:
    grant = founder.grants(kitchen, mesh=founder)
    revocation = founder.revokes(kitchen, mesh=founder)
    assert decode_grant(grant.encode()) == grant
    assert decode_revocation(revocation.encode()) == revocation
    rng = Random(5)
    mesh = Membership(founder.key)
    for _ in range(300):
        data = bytearray(grant.encode())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        with pytest.raises((RemoteProtocolError, NotAdmitted)):
            mesh.add(decode_grant(bytes(data)))
    for bad in (b"", b"\xc1", b"\x90", grant.encode() + b"\x00", b"\x00" * 600, revocation.encode()[:-1]):
        with pytest.raises(RemoteProtocolError):
            decode_grant(bad)
        with pytest.raises(RemoteProtocolError):
            decode_revocation(bad)


@pytest.mark.parametrize("position", range(7))
def test_fields_of_the_wrong_type(position: int) -> None:
    import msgpack

    fields: list[object] = [founder.key, kitchen.key, founder.key, "worker", "d", 10, b"s" * 64]
    for wrong in (True, -1, "x" * 65, b"short", None, [1]):
        if position in (3, 4) and isinstance(wrong, str) and position == 3:
            continue
        broken = list(fields)
        broken[position] = wrong
        with pytest.raises(RemoteProtocolError):
            decode_grant(msgpack.packb(broken))


def test_a_longer_encoding_of_the_same_grant_is_refused() -> None:
    grant = founder.grants(kitchen, mesh=founder)
    data = grant.encode()
    at = data.index(b"\xa1d")
    with pytest.raises(RemoteProtocolError, match="shortest"):
        decode_grant(data[:at] + b"\xd9\x01d" + data[at + 2 :])
    data = founder.revokes(kitchen, mesh=founder, now_ms=5).encode()
    at = data.rindex(b"\x05\xc4\x40")
    with pytest.raises(RemoteProtocolError, match="shortest"):
        decode_revocation(data[:at] + b"\xcc\x05" + data[at + 1 :])


def test_a_member_is_named_by_its_key() -> None:
    """The id of a key that is too long to stand in it names no member."""
    key = Device(1).key
    assert key_of(peer_of(key)) == key
    rsa = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"  # libp2p/specs, peer-ids.md
    with pytest.raises(NotAdmitted, match="only holds a hash"):
        key_of(rsa)
