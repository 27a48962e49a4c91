"""Good and bad libp2p certificates, one per way of being bad."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from p2pnode.transport.tls import EXTENSION_OID, SIGNATURE_PREFIX, encode_signed_key
from tests.kit.net import identity

BAD_CASES = {
    "extension_missing": "missing",
    "extension_empty": "SignedKey",
    "extension_truncated": "truncated",
    "extension_trailing": "follow",
    "extension_inner_trailing": "follow",
    "extension_long_form_length": "DER",
    "wrong_prefix": "did not sign",
    "stolen_identity": "did not sign",
    "signature_of_other_key": "did not sign",
    "signature_flipped": "did not sign",
    "host_key_garbage": "malformed",
    "host_key_unknown_type": "malformed",
    "host_key_wrong_length": "malformed",
    "host_key_not_deterministic": "malformed",
    "host_key_too_large": "too large",
    "expired": "expired",
    "not_yet_valid": "expired",
    "bad_self_signature": "not signed by its own key",
    "unknown_critical": "critical extension",
}
"""Case -> a word of the reason."""

GOOD_CASES = ("plain", "our_extension_critical", "empty_subject", "unknown_not_critical")


@dataclass(frozen=True)
class Made:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def _spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _proof(case: str, key: ec.EllipticCurvePrivateKey, host: str) -> bytes:
    who = identity(host)
    prefix = b"libp2p-tls-handshak:" if case == "wrong_prefix" else SIGNATURE_PREFIX
    signed = _spki(ec.generate_private_key(ec.SECP256R1()) if case == "signature_of_other_key" else key)
    signature = who.sign(prefix + signed)
    public_key = identity("somebody else").public_key if case == "stolen_identity" else who.public_key
    if case == "signature_flipped":
        signature = bytes([signature[0] ^ 1]) + signature[1:]
    elif case == "host_key_garbage":
        public_key = b"\xff" * 36
    elif case == "host_key_unknown_type":
        public_key = b"\x08\x09" + public_key[2:]
    elif case == "host_key_wrong_length":
        public_key = b"\x08\x01\x12\x1f" + public_key[4:-1]
    elif case == "host_key_not_deterministic":
        public_key = public_key[2:] + public_key[:2]
    elif case == "host_key_too_large":
        public_key = b"\x08\x00\x12" + b"\x80\x20" + bytes(4096)
    proof = encode_signed_key(public_key, signature)
    if case == "extension_empty":
        return b""
    if case == "extension_truncated":
        return proof[:-1]
    if case == "extension_trailing":
        return proof + b"\0"
    if case == "extension_inner_trailing":
        return bytes([0x30, proof[1] + 1]) + proof[2:] + b"\0"
    if case == "extension_long_form_length":
        return bytes([0x30, 0x81, proof[1]]) + proof[2:]
    return proof


def make(case: str, *, host: str = "node", now: datetime.datetime | None = None) -> Made:
    """A certificate of `host` that is wrong in the way `case` says."""
    now = datetime.datetime.now(datetime.UTC) if now is None else now
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    hour = datetime.timedelta(hours=1)
    first, last = now - 2 * hour, now + 2 * hour
    if case == "expired":
        last = now - hour
    elif case == "not_yet_valid":
        first = now + hour
    attributes = [] if case == "empty_subject" else [x509.NameAttribute(x509.NameOID.SERIAL_NUMBER, "7")]
    name = x509.Name(attributes)
    builder = x509.CertificateBuilder(
        issuer_name=name,
        subject_name=name,
        public_key=key.public_key(),
        serial_number=7,
        not_valid_before=first,
        not_valid_after=last,
    )
    if case != "extension_missing":
        proof = x509.UnrecognizedExtension(EXTENSION_OID, _proof(case, key, host))
        builder = builder.add_extension(proof, critical=case == "our_extension_critical")
    if case in ("unknown_critical", "unknown_not_critical"):
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")
        builder = builder.add_extension(unknown, critical=case == "unknown_critical")
    return Made(builder.sign(other if case == "bad_self_signature" else key, hashes.SHA256()), key)
