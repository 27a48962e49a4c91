"""The keys that sign the log, cosign other logs and sign receipts, and the identity key's word for them.

Each is derived from the node's seed for one purpose, so that a signature of one kind never passes for
another; a new generation is a key rotation. Source: specs/08-log.md#keys
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pnode import identity as identities
from p2pnode import peer_id as ids
from p2pnode.errors import BadCheckpoint
from p2pnode.events.note import COSIGNATURE, ED25519, Verifier, verifier_of
from p2pnode.events.types import KeysBound
from p2pnode.identity import Identity
from p2pnode.multiformats import DecodeError

_BINDING_CONTEXT: Final = b"p2pnode log keys v1\n"
_encode: Final = msgspec.msgpack.Encoder(order="sorted").encode
_decode: Final = msgspec.msgpack.Decoder(KeysBound).decode


@dataclass(frozen=True, slots=True)
class LogKeys:
    """One generation of a node's record keys."""

    identity: Identity = field(repr=False)
    generation: int
    origin: str
    log: Ed25519PrivateKey = field(repr=False)
    witness: Ed25519PrivateKey = field(repr=False)
    receipt: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def derive(cls, identity: Identity, generation: int = 0, origin: str | None = None) -> LogKeys:
        """Keys of a generation; the witness key stays the same, since it speaks of other logs."""
        return cls(
            identity=identity,
            generation=generation,
            origin=origin_of(identity.peer_id) if origin is None else origin,
            log=identity.derive(f"log {generation}"),
            witness=identity.derive("witness"),
            receipt=identity.derive(f"receipt {generation}"),
        )

    @property
    def peer(self) -> str:
        return self.identity.peer_id

    @property
    def log_verifier(self) -> Verifier:
        return verifier_of(self.origin, self.log)

    @property
    def witness_verifier(self) -> Verifier:
        return verifier_of(witness_name(self.peer), self.witness, COSIGNATURE)

    def bound(self, previous_origin: str = "") -> KeysBound:
        """The fact by which the identity key vouches for these keys."""
        unsigned = KeysBound(
            peer=self.peer,
            identity_key=self.identity.key.public_key().public_bytes_raw(),
            origin=self.origin,
            generation=self.generation,
            log_key=self.log.public_key().public_bytes_raw(),
            witness_key=self.witness.public_key().public_bytes_raw(),
            receipt_key=self.receipt.public_key().public_bytes_raw(),
            previous_origin=previous_origin,
            signature=bytes(64),
        )
        return replace(unsigned, signature=self.identity.sign(binding_message(unsigned)))


def origin_of(peer: str, restart: int = 0) -> str:
    """The name a node's log goes by; a log begun anew after a refused rollback counts up."""
    return f"p2pnode/{peer}" if restart == 0 else f"p2pnode/{peer}/{restart}"


def witness_name(peer: str) -> str:
    """The name a node cosigns other logs by."""
    return f"p2pnode/{peer}/witness"


def binding_message(event: KeysBound) -> bytes:
    """What the identity key signs: the event's other fields, canonical, under a context of their own."""
    return _BINDING_CONTEXT + _encode(replace(event, signature=bytes(64)))


def encode_binding(event: KeysBound) -> bytes:
    """A binding as one peer shows it to another."""
    return _encode(event)


@lru_cache(maxsize=256)
def decode_binding(raw: bytes) -> KeysBound:
    """Read a binding from a peer; BadCheckpoint unless its identity key signed it."""
    try:
        event = _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadCheckpoint(f"not a binding of keys: {error}") from error
    if _encode(event) != raw or not is_binding_valid(event):
        raise BadCheckpoint(f"the keys of {event.peer} are not vouched for by its identity key")
    return event


def is_binding_valid(event: KeysBound) -> bool:
    """Whether the peer id is that of the identity key and this key signed the others."""
    try:
        key = ids.ed25519_public_key(event.peer)
    except DecodeError:
        return False
    if key is None or key.public_bytes_raw() != event.identity_key:
        return False
    return identities.verify(event.peer, event.signature, binding_message(event))


def verifiers_of(event: KeysBound) -> tuple[Verifier, Verifier]:
    """The log's and the witness's verifier that an event bound."""
    return (
        Verifier(event.origin, ED25519, event.log_key),
        Verifier(witness_name(event.peer), COSIGNATURE, event.witness_key),
    )
