"""libp2p certificates: what proves an identity and what does not."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given
from hypothesis import strategies as st

from p2pnode import limits
from p2pnode.transport import tls
from tests.kit import certificates
from tests.kit.net import identity

NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def test_own_certificate_proves_the_identity() -> None:
    """What make_certificate makes, verify_certificates accepts."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = tls.make_certificate(identity("node"), key, NOW, 99)
    peer = tls.verify_certificates([der(certificate)], NOW)
    assert peer == tls.PeerCertificate(identity("node").peer_id, identity("node").public_key)


@pytest.mark.parametrize("case", certificates.GOOD_CASES)
def test_unusual_but_allowed(case: str) -> None:
    """Critical proof, empty names and unknown extensions that are not critical are fine."""
    made = certificates.make(case, now=NOW)
    assert tls.verify_certificates([der(made.certificate)], NOW).peer_id == identity("node").peer_id


@pytest.mark.parametrize(("case", "reason"), certificates.BAD_CASES.items())
def test_every_bad_certificate_is_refused_for_its_reason(case: str, reason: str) -> None:
    made = certificates.make(case, now=NOW)
    with pytest.raises(tls.CertificateError, match=reason):
        tls.verify_certificates([der(made.certificate)], NOW)


@pytest.mark.parametrize("count", [0, 2])
def test_exactly_one_certificate(count: int) -> None:
    made = certificates.make("plain", now=NOW)
    with pytest.raises(tls.CertificateError, match="exactly one"):
        tls.verify_certificates([der(made.certificate)] * count, NOW)


@given(st.binary(max_size=80))
def test_signed_key_parser_survives_anything(data: bytes) -> None:
    """Whatever parses is canonical: encoding it again gives the same bytes."""
    try:
        public_key, signature = tls.decode_signed_key(data)
    except tls.CertificateError:
        return
    assert tls.encode_signed_key(public_key, signature) == data


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_signed_key_round_trip(public_key: bytes, signature: bytes) -> None:
    assert tls.decode_signed_key(tls.encode_signed_key(public_key, signature)) == (public_key, signature)


@given(st.integers(0, 10_000), st.integers(1, 255))
@example(
    position=12, flip=1
)  # an X.509 version that does not exist: cryptography raises what is no ValueError
def test_a_flipped_byte_never_becomes_another_peer(position: int, flip: int) -> None:
    """Any change to a certificate is refused or leaves the proven identity as it was."""
    changed = bytearray.fromhex(_GOOD_HEX)
    changed[position % len(changed)] ^= flip
    try:
        peer = tls.verify_certificates([bytes(changed)], NOW)
    except tls.CertificateError:
        return
    assert peer.peer_id == _GOOD_PEER


def test_every_flipped_bit_is_refused_in_our_words() -> None:
    """All of them, one by one: whatever cryptography raises, and when, only CertificateError comes out."""
    good = bytes.fromhex(_GOOD_HEX)
    for bit in range(len(good) * 8):
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(tls.CertificateError):
            tls.verify_certificates([bytes(changed)], NOW)


@given(st.binary(max_size=400))
def test_bytes_that_are_no_certificate(data: bytes) -> None:
    with pytest.raises(tls.CertificateError):
        tls.verify_certificates([data], NOW)


def test_a_certificate_is_of_bounded_size() -> None:
    with pytest.raises(tls.CertificateError, match="too large"):
        tls.verify_certificates([bytes(limits.CERTIFICATE_BYTES_MAX + 1)], NOW)


# libp2p/specs tls/tls.md, test vector 1.
_GOOD_PEER = "12D3KooWM6CgA9iBFZmcYAHA6A2qvbAxqfkmrYiRQuz3XEsk4Ksv"
_GOOD_HEX = (
    "308201ae30820156a0030201020204499602d2300a06082a8648ce3d040302302031123010060355040a13096c69627032702e"
    "696f310a300806035504051301313020170d3735303130313133303030305a180f34303936303130313133303030305a302031"
    "123010060355040a13096c69627032702e696f310a300806035504051301313059301306072a8648ce3d020106082a8648ce3d"
    "030107034200040c901d423c831ca85e27c73c263ba132721bb9d7a84c4f0380b2a6756fd601331c8870234dec878504c17414"
    "4fa4b14b66a651691606d8173e55bd37e381569ea37c307a3078060a2b0601040183a25a0101046a3068042408011220a77f1d"
    "92fedb59dddaea5a1c4abd1ac2fbde7d7b879ed364501809923d7c11b90440d90d2769db992d5e6195dbb08e706b6651e024fd"
    "a6cfb8846694a435519941cac215a8207792e42849cccc6cd8136c6e4bde92a58c5e08cfd4206eb5fe0bf909300a06082a8648"
    "ce3d0403020346003043021f50f6b6c52711a881778718238f650c9fb48943ae6ee6d28427dc6071ae55e702203625f116a7a4"
    "54db9c56986c82a25682f7248ea1cb764d322ea983ed36a31b77"
)
