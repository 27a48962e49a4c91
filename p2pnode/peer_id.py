"""libp2p peer ids and key protobufs (libp2p/specs peer-ids/peer-ids.md).

A peer id is the multihash of the protobuf of a public key; in text it is base58btc, and a CIDv1 of the
`libp2p-key` codec is read too.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from p2pnode.multiformats import (
    DecodeError,
    base32_decode,
    base58_decode,
    base58_encode,
    bytes_field,
    decode_fields,
    decode_uvarint,
    encode_fields,
    encode_uvarint,
    int_field,
)
from p2pnode.units import PeerId

RSA, ED25519, SECP256K1, ECDSA = 0, 1, 2, 3

PUBLIC_KEY_BYTES_MAX = 2048
"""An RSA-8192 SubjectPublicKeyInfo has 1,062 bytes."""

RSA_BITS_MIN, RSA_BITS_MAX = 2048, 8192
"""libp2p refuses RSA below 2,048 bits; go-libp2p refuses above 8,192."""

_IDENTITY_BYTES_MAX = 42
_HASH_IDENTITY, _HASH_SHA2_256 = 0x00, 0x12
_CID_V1, _CODEC_LIBP2P_KEY = 1, 0x72
_SEED_BYTES = 32


def encode_public_key(key: Ed25519PublicKey) -> bytes:
    """The PublicKey protobuf of an Ed25519 key: 36 bytes."""
    return encode_fields([(1, ED25519), (2, key.public_bytes_raw())])


def encode_private_key(key: Ed25519PrivateKey) -> bytes:
    """The PrivateKey protobuf: Data is seed || public key."""
    return encode_fields([(1, ED25519), (2, key.private_bytes_raw() + key.public_key().public_bytes_raw())])


def decode_private_key(data: bytes) -> Ed25519PrivateKey:
    """Inverse of encode_private_key; also reads the old 96-byte form (seed, public key twice)."""
    fields = decode_fields(data)
    kind, body = int_field(fields, 1), bytes_field(fields, 2)
    if kind != ED25519 or body is None:
        raise DecodeError("not an Ed25519 private key")
    if len(body) not in (64, 96):
        raise DecodeError("an Ed25519 private key has 64 bytes")
    key = Ed25519PrivateKey.from_private_bytes(body[:_SEED_BYTES])
    public = key.public_key().public_bytes_raw()
    if body[_SEED_BYTES:] != public * ((len(body) - _SEED_BYTES) // 32):
        raise DecodeError("the public half of the key does not belong to its seed")
    return key


def _split_public_key(data: bytes) -> tuple[int, bytes]:
    if len(data) > PUBLIC_KEY_BYTES_MAX:
        raise DecodeError(f"public key is longer than {PUBLIC_KEY_BYTES_MAX} bytes")
    fields = decode_fields(data)
    kind, body = int_field(fields, 1), bytes_field(fields, 2)
    if kind is None or body is None:
        raise DecodeError("public key lacks its type or data")
    if encode_fields([(1, kind), (2, body)]) != data:
        raise DecodeError("public key is not deterministically encoded")
    return kind, body


def _spki(body: bytes) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    key = serialization.load_der_public_key(body)
    if isinstance(key, rsa.RSAPublicKey):
        if not RSA_BITS_MIN <= key.key_size <= RSA_BITS_MAX:
            raise DecodeError(f"RSA keys have {RSA_BITS_MIN} to {RSA_BITS_MAX} bits")
        return key
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key
    raise DecodeError("public key is of another type than it says")


def verify_signature(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Check a host key's signature; the key is a PublicKey protobuf of any of libp2p's four types."""
    kind, body = _split_public_key(public_key)
    try:
        if kind == ED25519:
            Ed25519PublicKey.from_public_bytes(body).verify(signature, message)
        elif kind == SECP256K1:
            point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), body)
            point.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        elif kind in (ECDSA, RSA):
            key = _spki(body)
            if isinstance(key, rsa.RSAPublicKey) != (kind == RSA):
                raise DecodeError("public key is of another type than it says")
            if isinstance(key, rsa.RSAPublicKey):
                key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
            else:
                key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        else:
            raise DecodeError(f"key type {kind} is unknown")
    except InvalidSignature:
        return False
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DecodeError(f"public key cannot be used: {error}") from error
    return True


def peer_id_bytes(public_key: bytes) -> bytes:
    """Multihash of a PublicKey protobuf."""
    if len(public_key) <= _IDENTITY_BYTES_MAX:
        return encode_uvarint(_HASH_IDENTITY) + encode_uvarint(len(public_key)) + public_key
    return bytes((_HASH_SHA2_256, 32)) + hashlib.sha256(public_key).digest()


def peer_id_of(public_key: bytes) -> PeerId:
    """Text peer id of a PublicKey protobuf."""
    return PeerId(base58_encode(peer_id_bytes(public_key)))


def check_multihash(data: bytes) -> bytes:
    """The bytes of a peer id, or DecodeError."""
    code, index = decode_uvarint(data)
    size, index = decode_uvarint(data, index)
    if size != len(data) - index:
        raise DecodeError("peer id has a wrong length")
    if code == _HASH_IDENTITY and 0 < size <= _IDENTITY_BYTES_MAX:
        return data
    if code == _HASH_SHA2_256 and size == 32:
        return data
    raise DecodeError("peer id is neither an identity nor a sha2-256 multihash")


def peer_id_from_bytes(data: bytes) -> PeerId:
    return PeerId(base58_encode(check_multihash(data)))


def peer_id_to_bytes(text: str) -> bytes:
    """Multihash of a peer id in either text form."""
    if text.startswith(("1", "Qm")):
        return check_multihash(base58_decode(text))
    if len(text) > 200:
        raise DecodeError("peer id is too long")
    if text.startswith("b"):
        cid = base32_decode(text[1:])
    elif text.startswith("z"):
        cid = base58_decode(text[1:])
    else:
        raise DecodeError("peer id is neither base58btc nor a CID")
    version, index = decode_uvarint(cid)
    codec, index = decode_uvarint(cid, index)
    if (version, codec) != (_CID_V1, _CODEC_LIBP2P_KEY):
        raise DecodeError("the CID is not one of a libp2p key")
    return check_multihash(cid[index:])


def parse_peer_id(text: str) -> PeerId:
    """Any text form -> the base58btc form used everywhere in p2pnode."""
    return PeerId(base58_encode(peer_id_to_bytes(text)))


def ed25519_public_key(peer_id: str) -> Ed25519PublicKey | None:
    """The key inside an Ed25519 peer id; None for ids that are only a hash of their key."""
    data = peer_id_to_bytes(peer_id)
    if data[0] != _HASH_IDENTITY:
        return None
    kind, body = _split_public_key(data[2:])
    if kind != ED25519 or len(body) != 32:
        return None
    return Ed25519PublicKey.from_public_bytes(body)
