"""Receipts: what a provider computed for a consumer, signed by the one and countersigned by the other.

A receipt is a canonical MessagePack array; both sign its exact bytes under different contexts and both keep
them in their logs. Receipts of one (consumer, provider) channel are numbered from 1, each names the hash of
the one before and carries the sums so far, so that loss and reordering do no harm and two different
receipts with one number prove a fraud. Source: specs/09-billing.md#receipts
"""

from __future__ import annotations

from hashlib import sha256
from typing import Annotated, Final, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta

from p2pnode.errors import BadCheckpoint, BadReceipt
from p2pnode.events.codec import is_canonical
from p2pnode.events.fields import Count, Hash, Label, Signature
from p2pnode.events.keys import decode_binding, encode_binding
from p2pnode.events.types import KeysBound, PeerEquivocated
from p2pnode.limits import EXPOSURE_MICROUNITS_MAX, RECEIPT_BYTES_MAX, RECEIPT_LAYERS_MAX

GENESIS: Final = bytes(32)
"""What the first receipt of a channel names as the one before."""
PROVIDER_CONTEXT: Final = b"p2pnode receipt v1\n"
CONSUMER_CONTEXT: Final = b"p2pnode receipt countersigned v1\n"
FRAUD_KIND: Final = "p2pnode receipt fraud v2"
FRAUD_KIND_TWO_KEYS: Final = "p2pnode receipt fraud v3"

_Layer = Annotated[int, Meta(ge=0, le=RECEIPT_LAYERS_MAX)]
_Note = Annotated[str, Meta(max_length=1024)]


class Receipt(msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """One stage's work for one request, or for one unit of a long one."""

    v: Literal[1]
    consumer: Label
    provider: Label
    sequence: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    previous: Hash
    """SHA-256 of the channel's receipt before this one; zeros for the first."""
    request_id: Label
    model: Label
    layer_first: _Layer
    layer_end: _Layer
    position_first: Count
    position_end: Count
    input_commitment: Hash
    """HMAC-SHA-256 under the session's salt of the rows the provider was given, in order."""
    output_commitment: Hash
    layer_tokens: Count
    microunits: Count
    request_layer_tokens: Count
    """Work of all stages in what this receipt is a part of."""
    request_microunits: Count
    """Price of it; `microunits` is this provider's part."""
    cumulative_layer_tokens: Count
    cumulative_microunits: Count
    checkpoint: _Note
    """The provider's newest signed checkpoint: what it can not deny later."""
    issued_ms: Count


class Signed(msgspec.Struct, frozen=True):
    """The exact bytes and who signed them; the countersignature is missing until the consumer agreed."""

    raw: bytes
    signature: bytes
    countersignature: bytes | None = None


_encode: Final = msgspec.msgpack.Encoder(order="sorted").encode
_decode: Final = msgspec.msgpack.Decoder(Receipt).decode


def channel_of(consumer: str, provider: str) -> str:
    """The name a channel has in events."""
    return f"{consumer}>{provider}"


def encode(receipt: Receipt) -> bytes:
    """The one encoding; BadReceipt when the receipt contradicts itself."""
    raw = _encode(receipt)
    decode(raw)
    return raw


def decode(raw: bytes) -> Receipt:
    """Read bytes from anywhere; BadReceipt unless they are the one encoding of a receipt that can be."""
    if len(raw) > RECEIPT_BYTES_MAX:
        raise BadReceipt(f"a receipt has at most {RECEIPT_BYTES_MAX} bytes; this one has {len(raw)}")
    try:
        receipt = _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadReceipt(f"not a receipt: {error}") from error
    if not is_canonical(raw) or _encode(receipt) != raw:
        raise BadReceipt("the receipt is not in its one encoding")
    problem = _contradiction(receipt)
    if problem is not None:
        raise BadReceipt(f"a receipt that cannot be: {problem}")
    return receipt


def read(raw: bytes) -> Receipt:
    """Read bytes out of a record, where they were checked before they came into it. Raises: msgspec.MsgspecError."""
    return _decode(raw)


def _contradiction(receipt: Receipt) -> str | None:
    """What in a receipt cannot be true whatever happened; None if nothing."""
    layers = receipt.layer_end - receipt.layer_first
    positions = receipt.position_end - receipt.position_first
    fair = _share(receipt)
    checks = (
        (receipt.consumer != receipt.provider, "nobody works for itself"),
        (layers > 0 and positions > 0, "its layers or positions are empty"),
        (0 < receipt.layer_tokens <= layers * positions, "its work is not within layers times positions"),
        (receipt.layer_tokens <= receipt.request_layer_tokens, "a part is more than the whole"),
        (receipt.microunits in (fair, fair + 1), "its part of the price is not its part of the work"),
        (receipt.microunits <= receipt.request_microunits, "it earns more than the price"),
        (receipt.microunits <= EXPOSURE_MICROUNITS_MAX, "a receipt is for one unit at most"),
        (receipt.layer_tokens <= receipt.cumulative_layer_tokens, "its work is not in its sum"),
        (receipt.microunits <= receipt.cumulative_microunits, "its part is not in its sum"),
        ((receipt.sequence == 1) == (receipt.previous == GENESIS), "only the first has none before it"),
    )
    return next((text for holds, text in checks if not holds), None)


def _share(receipt: Receipt) -> int:
    """The provider's part, rounded down."""
    return receipt.request_microunits * receipt.layer_tokens // max(receipt.request_layer_tokens, 1)


def follows(receipt: Receipt, before: bytes | None) -> bool:
    """Whether a receipt is the next of its channel; None when there was none before."""
    if before is None:
        sequence, previous, layer_tokens, microunits = 0, GENESIS, 0, 0
    else:
        last = decode(before)
        sequence, previous = last.sequence, sha256(before).digest()
        layer_tokens, microunits = last.cumulative_layer_tokens, last.cumulative_microunits
    return (
        receipt.sequence == sequence + 1
        and receipt.previous == previous
        and receipt.cumulative_layer_tokens == layer_tokens + receipt.layer_tokens
        and receipt.cumulative_microunits == microunits + receipt.microunits
    )


# --- signatures ------------------------------------------------------------------------------------
def sign(raw: bytes, key: Ed25519PrivateKey) -> bytes:
    """The provider's signature, by its receipt key."""
    return key.sign(PROVIDER_CONTEXT + raw)


def countersign(raw: bytes, key: Ed25519PrivateKey) -> bytes:
    """The consumer's signature, by its receipt key."""
    return key.sign(CONSUMER_CONTEXT + raw)


def is_signed(raw: bytes, signature: bytes, provider_key: bytes) -> bool:
    return _holds(PROVIDER_CONTEXT + raw, signature, provider_key)


def is_countersigned(raw: bytes, countersignature: bytes, consumer_key: bytes) -> bool:
    return _holds(CONSUMER_CONTEXT + raw, countersignature, consumer_key)


def _holds(message: bytes, signature: bytes, key: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


# --- fraud -----------------------------------------------------------------------------------------
_Binding = Annotated[bytes, Meta(max_length=2048)]
_Raw = Annotated[bytes, Meta(max_length=RECEIPT_BYTES_MAX)]


class _Fraud(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    kind: Literal["p2pnode receipt fraud v2"]
    binding: _Binding
    """The provider's identity vouches for the key that signed both."""
    first: _Raw
    first_signature: Signature
    second: _Raw
    second_signature: Signature


class _FraudTwoKeys(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    kind: Literal["p2pnode receipt fraud v3"]
    binding_first: _Binding
    first: _Raw
    first_signature: Signature
    binding_second: _Binding
    """Of another generation of the same log's keys."""
    second: _Raw
    second_signature: Signature


_decode_fraud: Final = msgspec.msgpack.Decoder(_Fraud).decode
_decode_fraud_two_keys: Final = msgspec.msgpack.Decoder(_FraudTwoKeys).decode


def fraud_proof(first: Signed, binding_first: KeysBound, second: Signed, binding_second: KeysBound) -> bytes:
    """Two different receipts with one number, as one document that convinces who knows nothing but the peer id.

    The keys may be of two generations, if they are of one log: who was restored from a backup goes on under another
    log's name (specs/08-log.md#rollback), and has not lied when it gives a number again.
    """
    raws = (first.raw, first.signature, second.raw, second.signature)
    one, other = encode_binding(binding_first), encode_binding(binding_second)
    proof = _encode(
        _Fraud(FRAUD_KIND, one, *raws)
        if one == other
        else _FraudTwoKeys(FRAUD_KIND_TWO_KEYS, one, *raws[:2], other, *raws[2:])
    )
    check_fraud(proof)
    return proof


def is_fraud(document: bytes) -> bool:
    """Whether a document says it is a proof of this kind; it may still prove nothing."""
    return _has_kind(document, FRAUD_KIND) or _has_kind(document, FRAUD_KIND_TWO_KEYS)


def _has_kind(document: bytes, kind: str) -> bool:
    return kind.encode() in document[:64]


def equivocation(document: bytes) -> PeerEquivocated:
    """The fact to record of a proof; BadReceipt when it proves nothing."""
    first, second, binding = check_fraud(document)
    return PeerEquivocated(
        peer=binding.peer,
        origin=channel_of(first.consumer, first.provider),
        size_first=first.sequence,
        size_second=second.sequence,
        proof=document,
    )


def check_fraud(document: bytes) -> tuple[Receipt, Receipt, KeysBound]:
    """The two receipts and the newer keys of who signed both; BadReceipt when they prove nothing."""
    fraud = _read_fraud(document)
    first, second = decode(fraud.first), decode(fraud.second)
    try:
        bound_first, bound_second = decode_binding(fraud.binding_first), decode_binding(fraud.binding_second)
    except BadCheckpoint as error:
        raise BadReceipt(f"the fraud proof names no keys: {error.message}") from error
    if not (
        is_signed(fraud.first, fraud.first_signature, bound_first.receipt_key)
        and is_signed(fraud.second, fraud.second_signature, bound_second.receipt_key)
    ):
        raise BadReceipt("one of the two receipts is not signed by that key")
    if (bound_first.peer, bound_first.origin) != (bound_second.peer, bound_second.origin):
        raise BadReceipt("the keys are not of one log")
    if first.provider != bound_first.peer:
        raise BadReceipt(f"the keys are {bound_first.peer}'s, not {first.provider}'s")
    if _number(first) != _number(second) or fraud.first == fraud.second:
        raise BadReceipt("the two receipts do not contradict each other")
    return first, second, max(bound_first, bound_second, key=lambda bound: bound.generation)


def _number(receipt: Receipt) -> tuple[str, str, int]:
    return receipt.consumer, receipt.provider, receipt.sequence


def _read_fraud(document: bytes) -> _FraudTwoKeys:
    """Either kind of proof in the form of the one with two keys."""
    try:
        if _has_kind(document, FRAUD_KIND_TWO_KEYS):
            fraud: _Fraud | _FraudTwoKeys = _decode_fraud_two_keys(document)
        else:
            fraud = _decode_fraud(document)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadReceipt(f"not a fraud proof: {error}") from error
    if _encode(fraud) != document:
        raise BadReceipt("the fraud proof is not in its one encoding")
    if isinstance(fraud, _Fraud):
        one = fraud.binding
        raws = (fraud.first, fraud.first_signature, one, fraud.second, fraud.second_signature)
        return _FraudTwoKeys(FRAUD_KIND_TWO_KEYS, one, *raws)
    if fraud.binding_first == fraud.binding_second:
        raise BadReceipt("the fraud proof is not in its one encoding")
    return fraud
