"""Receipts in the record: one at a time in each channel, so that at most one unit is ever unsigned."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from p2pnode.commands import AcceptReceipt, GiveReceipt
from p2pnode.decide.outcome import Deciders, decision, nothing
from p2pnode.errors import BadReceipt, CreditEnded, ReceiptOwed
from p2pnode.events import receipt as receipts
from p2pnode.events import types as facts
from p2pnode.events.log import Decision
from p2pnode.events.receipt import Receipt, Signed
from p2pnode.limits import EXPOSURE_MICROUNITS_MAX
from p2pnode.projections import MeshState, billing
from p2pnode.projections.billing import Channel


def may_compute(state: MeshState, consumer: str, unreceipted_microunits: int) -> None:
    """Provider: whether to go on working for a consumer, with so much done since its last receipt.

    Raises: CreditEnded, ReceiptOwed.
    """
    _check_trusted(state, consumer)
    owed = billing.exposure(state.billing, consumer) + unreceipted_microunits
    if owed > EXPOSURE_MICROUNITS_MAX:
        raise ReceiptOwed(
            f"{consumer} has not signed for {owed} micro-units of work",
            hint="it signs as soon as it is reachable again",
            owed=owed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWork:
    """What one stage did for one request (or one unit of it), and its part of the price by settlement."""

    request_id: str
    model: str
    layers: tuple[int, int]
    positions: tuple[int, int]
    layer_tokens: int
    request_layer_tokens: int
    microunits: int
    request_microunits: int
    input_commitment: bytes
    output_commitment: bytes


def draft_receipt(state: MeshState, consumer: str, work: StageWork, checkpoint: str, now_ms: int) -> Receipt:
    """Provider: the channel's next receipt, to be encoded, signed and given."""
    channel = state.billing.given.get(consumer)
    before = Channel(0, consumer) if channel is None else channel
    return Receipt(
        v=1,
        consumer=consumer,
        provider=state.billing.own_account,
        sequence=before.sequence + 1,
        previous=sha256(before.receipt).digest() if before.sequence else receipts.GENESIS,
        request_id=work.request_id,
        model=work.model,
        layer_first=work.layers[0],
        layer_end=work.layers[1],
        position_first=work.positions[0],
        position_end=work.positions[1],
        input_commitment=work.input_commitment,
        output_commitment=work.output_commitment,
        layer_tokens=work.layer_tokens,
        microunits=work.microunits,
        request_layer_tokens=work.request_layer_tokens,
        request_microunits=work.request_microunits,
        cumulative_layer_tokens=before.layer_tokens + work.layer_tokens,
        cumulative_microunits=before.microunits + work.microunits,
        checkpoint=checkpoint,
        issued_ms=now_ms,
    )


def give_receipt(state: MeshState, command: GiveReceipt, now_ms: int) -> Decision:
    """ReceiptGiven: before the consumer signed, and once more with its signature.

    Raises: BadReceipt, ReceiptOwed (the one before is not countersigned), CreditEnded.
    """
    receipt = _read(command.receipt, command.signature, command.provider_key)
    _expect(receipt.provider == state.billing.own_account, "this node is not its provider")
    channel = state.billing.given.get(receipt.consumer)
    if command.countersignature is not None:
        _expect(
            command.consumer_key is not None
            and receipts.is_countersigned(command.receipt, command.countersignature, command.consumer_key),
            "the consumer's signature is wrong",
        )
    if channel is not None and receipt.sequence == channel.sequence:
        _expect(command.receipt == channel.receipt, "another receipt was given under this number")
        if command.countersignature is None or channel.agreed_sequence == channel.sequence:
            return nothing()
    else:
        _check_next(state, receipt, channel)
    return decision(
        facts.ReceiptGiven(
            channel=receipts.channel_of(receipt.consumer, receipt.provider),
            sequence=receipt.sequence,
            peer=receipt.consumer,
            request_id=receipt.request_id,
            receipt=command.receipt,
            signature=command.signature,
            cumulative_layer_tokens=receipt.cumulative_layer_tokens,
            cumulative_microunits=receipt.cumulative_microunits,
            countersignature=command.countersignature,
        )
    )


def _check_next(state: MeshState, receipt: Receipt, channel: Channel | None) -> None:
    _check_trusted(state, receipt.consumer)
    if channel is not None and channel.agreed_sequence != channel.sequence:
        raise ReceiptOwed(f"{receipt.consumer} has yet to sign receipt {channel.sequence}")
    _check_follows(receipt, channel)


def accept_receipt(state: MeshState, command: AcceptReceipt, now_ms: int) -> Decision:
    """ReceiptReceived; or PeerEquivocated when the provider signed another one under this number.

    Answer: {"accepted": bool, "fraud": bool}. Raises: BadReceipt (out of order, wrongly signed, about work
    this node did not see), CreditEnded.
    """
    receipt = _read(command.receipt, command.signature, command.provider_keys.receipt_key)
    _expect(receipt.provider == command.provider_keys.peer, "its keys are another peer's")
    own = state.billing.own_account
    _expect(receipt.consumer == own, "this node is not its consumer")
    channel = state.billing.received.get(receipt.provider)
    if channel is not None and receipt.sequence == channel.sequence:
        if command.receipt == channel.receipt:
            return decision(answer={"accepted": True, "fraud": False})
        return _fraud(command, channel)
    _check_trusted(state, receipt.provider)
    _check_follows(receipt, channel)
    _expect(receipt.layer_tokens <= command.layer_tokens_max, "it claims more work than was done")
    _expect(receipt.microunits <= command.microunits_max, "it claims more than its part of the price")
    _expect(
        receipts.is_countersigned(command.receipt, command.countersignature, command.consumer_key),
        "this node's own signature is wrong",
    )
    event = facts.ReceiptReceived(
        channel=receipts.channel_of(own, receipt.provider),
        sequence=receipt.sequence,
        peer=receipt.provider,
        request_id=receipt.request_id,
        receipt=command.receipt,
        signature=command.signature,
        cumulative_layer_tokens=receipt.cumulative_layer_tokens,
        cumulative_microunits=receipt.cumulative_microunits,
        countersignature=command.countersignature,
    )
    return decision(event, answer={"accepted": True, "fraud": False})


def _fraud(command: AcceptReceipt, channel: Channel) -> Decision:
    """Both are signed by the provider, one number, other bytes: anybody can see that it lied."""
    first = Signed(channel.receipt, channel.signature)
    second = Signed(command.receipt, command.signature)
    proof = receipts.fraud_proof(first, second, command.provider_keys)
    return decision(receipts.equivocation(proof), answer={"accepted": False, "fraud": True})


def _read(raw: bytes, signature: bytes, provider_key: bytes) -> Receipt:
    receipt = receipts.decode(raw)
    _expect(receipts.is_signed(raw, signature, provider_key), "the provider's signature is wrong")
    return receipt


def _check_trusted(state: MeshState, peer: str) -> None:
    entry = state.billing.accounts.get(peer)
    if entry is not None and entry.ended:
        raise CreditEnded(f"{peer} gets no credit any more: {entry.ended}")


def _check_follows(receipt: Receipt, channel: Channel | None) -> None:
    if not receipts.follows(receipt, None if channel is None else channel.receipt):
        expected = 1 if channel is None else channel.sequence + 1
        raise BadReceipt(f"receipt {receipt.sequence} does not follow; {expected} is next", expected=expected)


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BadReceipt(f"the receipt was refused: {otherwise}")


DECIDERS: Final[Deciders] = {GiveReceipt: give_receipt, AcceptReceipt: accept_receipt}
