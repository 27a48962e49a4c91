"""The libp2p TLS certificate: made, and verified strictly (libp2p/specs tls/tls.md).

A fresh P-256 key signs a self-signed certificate; an extension carries the host key and its signature
over the certificate's key. That binds the TLS session to the peer id.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from p2pnode import limits
from p2pnode.identity import Identity
from p2pnode.multiformats import DecodeError
from p2pnode.peer_id import PUBLIC_KEY_BYTES_MAX, peer_id_of, verify_signature
from p2pnode.units import PeerId

EXTENSION_OID = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
SIGNATURE_PREFIX = b"libp2p-tls-handshake:"
_SIGNATURE_BYTES_MAX = 1024
_KNOWN_CRITICAL = frozenset({"2.5.29.15", "2.5.29.19", "2.5.29.37"})
"""Key usage, basic constraints, extended key usage: harmless in a self-signed certificate."""

_OCTET_STRING, _SEQUENCE = 0x04, 0x30


class CertificateError(Exception):
    """The certificate proves nothing; the text is for the close reason."""


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    peer_id: PeerId
    public_key: bytes
    """The host key's PublicKey protobuf."""


def _der(tag: int, body: bytes) -> bytes:
    size = len(body)
    if size < 128:
        return bytes((tag, size)) + body
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + body


def _read_der(data: bytes, index: int, tag: int) -> tuple[bytes, int]:
    """One DER value of the given tag -> (content, index after it)."""
    if len(data) - index < 2 or data[index] != tag:
        raise CertificateError("the libp2p extension is not a SignedKey")
    size, index = data[index + 1], index + 2
    if size & 0x80:
        count = size & 0x7F
        size = int.from_bytes(data[index : index + count], "big")
        if count not in (1, 2) or size < (128 if count == 1 else 256):
            raise CertificateError("the libp2p extension has a length that is not DER")
        index += count
    if size > len(data) - index:
        raise CertificateError("the libp2p extension is truncated")
    return data[index : index + size], index + size


def encode_signed_key(public_key: bytes, signature: bytes) -> bytes:
    """SignedKey ::= SEQUENCE { publicKey OCTET STRING, signature OCTET STRING }."""
    return _der(_SEQUENCE, _der(_OCTET_STRING, public_key) + _der(_OCTET_STRING, signature))


def decode_signed_key(data: bytes) -> tuple[bytes, bytes]:
    """-> (host PublicKey protobuf, signature); no byte more, no byte less."""
    body, end = _read_der(data, 0, _SEQUENCE)
    if end != len(data):
        raise CertificateError("bytes follow the SignedKey")
    public_key, index = _read_der(body, 0, _OCTET_STRING)
    signature, index = _read_der(body, index, _OCTET_STRING)
    if index != len(body):
        raise CertificateError("bytes follow the signature in the SignedKey")
    if len(public_key) > PUBLIC_KEY_BYTES_MAX or len(signature) > _SIGNATURE_BYTES_MAX:
        raise CertificateError("the SignedKey is too large")
    return public_key, signature


def _subject_public_key_info(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def make_certificate(
    identity: Identity, key: ec.EllipticCurvePrivateKey, now: datetime.datetime, serial: int
) -> x509.Certificate:
    """Self-signed by `key` (fresh, not the host key), proving `identity`; valid for a century."""
    spki = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    proof = encode_signed_key(identity.public_key, identity.sign(SIGNATURE_PREFIX + spki))
    name = x509.Name([x509.NameAttribute(x509.NameOID.SERIAL_NUMBER, str(serial))])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        # Clocks of home devices drift; a certificate of today must be valid on one that lags.
        .not_valid_before(now - datetime.timedelta(days=365))
        .not_valid_after(now + datetime.timedelta(days=36_500))
        .add_extension(x509.UnrecognizedExtension(EXTENSION_OID, proof), critical=False)
        .sign(key, hashes.SHA256())
    )


def verify_certificates(chain: Sequence[bytes], now: datetime.datetime) -> PeerCertificate:
    """Who the sender of exactly one certificate (DER) is; CertificateError says why nobody."""
    if len(chain) != 1:
        raise CertificateError(f"expected exactly one certificate, got {len(chain)}")
    if len(chain[0]) > limits.CERTIFICATE_BYTES_MAX:
        raise CertificateError(f"the certificate has {len(chain[0])} bytes, which is too large")
    try:
        return _verify(x509.load_der_x509_certificate(chain[0]), now)
    except CertificateError:
        raise
    except DecodeError as error:
        raise CertificateError(f"the host key is malformed: {error}") from error
    except InvalidSignature as error:
        raise CertificateError("the certificate is not signed by its own key") from error
    except Exception as error:
        # cryptography parses lazily, and what it raises on bytes of a stranger is no closed list: ValueError,
        # TypeError, UnsupportedAlgorithm, and x509's InvalidVersion, DuplicateExtension and
        # UnsupportedGeneralNameType, which have only Exception in common.
        raise CertificateError(f"the certificate is malformed: {str(error)[:200]}") from error


def _verify(certificate: x509.Certificate, now: datetime.datetime) -> PeerCertificate:
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise CertificateError("the certificate is expired or not yet valid; check the clocks")
    proof = _extension(certificate)
    certificate.verify_directly_issued_by(certificate)
    public_key, signature = decode_signed_key(proof)
    if not verify_signature(public_key, signature, SIGNATURE_PREFIX + _subject_public_key_info(certificate)):
        raise CertificateError("the host key did not sign this certificate's key")
    return PeerCertificate(peer_id_of(public_key), public_key)


def _extension(certificate: x509.Certificate) -> bytes:
    found: bytes | None = None
    for extension in certificate.extensions:
        if extension.oid == EXTENSION_OID:
            assert isinstance(extension.value, x509.UnrecognizedExtension)
            found = extension.value.value
        elif extension.critical and extension.oid.dotted_string not in _KNOWN_CRITICAL:
            raise CertificateError(f"critical extension {extension.oid.dotted_string} is unknown")
    if found is None:
        raise CertificateError("the libp2p extension is missing")
    return found
