"""Receipts in the record: those of one request at a time in each channel, so that at most one unit is ever unsigned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from p2pnode.commands import AcceptReceipts, GiveReceipts, OfferedReceipt
from p2pnode.decide.outcome import Answer, Deciders, decision, nothing
from p2pnode.errors import BadReceipt, CreditEnded, ReceiptOwed
from p2pnode.events import receipt as receipts
from p2pnode.events import types as facts
from p2pnode.events.keys import decode_binding, encode_binding
from p2pnode.events.log import Decision
from p2pnode.events.receipt import Receipt, Signed
from p2pnode.limits import EXPOSURE_MICROUNITS_MAX, RECEIPTS_FACT_BYTES_MAX
from p2pnode.projections import MeshState, billing
from p2pnode.projections.billing import Channel

_BESIDE_BYTES: Final = 144
"""Two signatures and the lengths of all three in a fact; more than a peer id beside its keys."""


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


def draft_receipts(
    state: MeshState, consumer: str, works: Sequence[StageWork], checkpoint: str, now_ms: int
) -> list[Receipt]:
    """Provider: the channel's next receipts, to be encoded, signed and given together."""
    channel = state.billing.given.get(consumer) or Channel(0, consumer)
    before, sequence = channel.receipt, channel.sequence
    layer_tokens, microunits = channel.layer_tokens, channel.microunits
    made: list[Receipt] = []
    for work in works:
        sequence, layer_tokens, microunits = (
            sequence + 1,
            layer_tokens + work.layer_tokens,
            microunits + work.microunits,
        )
        receipt = Receipt(
            v=1,
            consumer=consumer,
            provider=state.billing.own_account,
            sequence=sequence,
            previous=sha256(before).digest() if before else receipts.GENESIS,
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
            cumulative_layer_tokens=layer_tokens,
            cumulative_microunits=microunits,
            checkpoint=checkpoint,
            issued_ms=now_ms,
        )
        before = receipts.encode(receipt)
        made.append(receipt)
    return made


# --- provider --------------------------------------------------------------------------------------
def give_receipts(state: MeshState, command: GiveReceipts, now_ms: int) -> Decision:
    """ReceiptGiven: before the consumer signed, and once more with its signatures.

    Raises: BadReceipt, ReceiptOwed (those before are not countersigned), CreditEnded.
    """
    _expect(bool(command.receipts), "there is none")
    read = [_read(signed, command.provider_key) for signed in command.receipts]
    consumer, request_id = read[0].consumer, read[0].request_id
    for receipt in read:
        _expect(receipt.provider == state.billing.own_account, "this node is not its provider")
        _expect(
            (receipt.consumer, receipt.request_id) == (consumer, request_id), "they are not of one request"
        )
    is_agreed = _are_countersigned(command)
    channel = state.billing.given.get(consumer) or Channel(0, consumer)
    if read[0].sequence <= channel.sequence:
        for receipt, signed in zip(read, command.receipts, strict=True):
            known = channel.numbered(receipt.sequence)
            _expect(
                known is not None and known[0] == signed.raw, "another receipt was given under this number"
            )
        new = [
            signed
            for receipt, signed in zip(read, command.receipts, strict=True)
            if receipt.sequence > channel.agreed_sequence
        ]
        if not is_agreed or not new:
            return nothing()
        numbers = [receipt.sequence for receipt in read[-len(new) :]]
        next_number = channel.agreed_sequence + 1
        _expect(numbers == [*range(next_number, next_number + len(new))], "those before it are not signed")
    else:
        _check_trusted(state, consumer)
        if channel.waiting:
            raise ReceiptOwed(f"{consumer} has yet to sign receipt {channel.agreed_sequence + 1}")
        _check_follow(read, command.receipts, channel.receipt)
        new = list(command.receipts)
    return decision(facts.ReceiptGiven(peer=consumer, request_id=request_id, receipts=_kept(new)))


def _are_countersigned(command: GiveReceipts) -> bool:
    """Whether the consumer signed all of them; BadReceipt when it signed some, or wrongly."""
    made = [(signed.raw, signed.countersignature) for signed in command.receipts]
    if all(countersignature is None for _, countersignature in made):
        return False
    for raw, countersignature in made:
        _expect(
            countersignature is not None
            and command.consumer_key is not None
            and receipts.is_countersigned(raw, countersignature, command.consumer_key),
            "the consumer's signature is wrong",
        )
    return True


# --- consumer --------------------------------------------------------------------------------------
def accept_receipts(state: MeshState, command: AcceptReceipts, now_ms: int) -> Decision:
    """ReceiptReceived, one fact for each request (more where one would be too long); PeerEquivocated for each
    provider that signed another receipt under a number.

    Answer: {"answers": [{"accepted", "fraud", "refused"}]}, one for each offer: what is out of order, wrongly
    signed, or about work this node did not see is refused with the reason, and harms no other provider's.
    """
    answers: list[Answer] = []
    tails: dict[str, bytes] = {}
    accepted: dict[str, dict[str, list[OfferedReceipt]]] = {}
    frauds: dict[str, facts.PeerEquivocated] = {}
    for offer in command.offers:
        provider, fraud, refused = offer.provider_keys.peer, None, ""
        try:
            receipt = _read(offer.signed, offer.provider_keys.receipt_key)
            _expect(receipt.provider == provider, "its keys are another peer's")
            _expect(receipt.consumer == state.billing.own_account, "this node is not its consumer")
            _expect(provider not in frauds, "its provider has just lied")
            channel = state.billing.received.get(provider) or Channel(0, provider)
            known = channel.numbered(receipt.sequence)
            if known is None:
                _check_offer(state, command, offer, receipt, tails.get(provider, channel.receipt))
                tails[provider] = offer.signed.raw
                accepted.setdefault(receipt.request_id, {}).setdefault(provider, []).append(offer)
            elif known[0] != offer.signed.raw:
                fraud = frauds[provider] = _fraud(offer, Signed(*known), channel.keys)
        except (BadReceipt, CreditEnded) as error:
            refused = error.message
        answers.append(
            {"accepted": not refused and fraud is None, "fraud": fraud is not None, "refused": refused}
        )
    received = [
        fact for request_id, offers in accepted.items() for fact in _received(state, request_id, offers)
    ]
    return decision(*received, *frauds.values(), answer={"answers": answers})


def _check_offer(
    state: MeshState, command: AcceptReceipts, offer: OfferedReceipt, receipt: Receipt, before: bytes
) -> None:
    _check_trusted(state, receipt.provider)
    _check_follow([receipt], [offer.signed], before)
    _expect(receipt.layer_tokens <= offer.layer_tokens_max, "it claims more work than was done")
    _expect(receipt.microunits <= offer.microunits_max, "it claims more than its part of the price")
    countersignature = offer.signed.countersignature
    _expect(
        countersignature is not None
        and receipts.is_countersigned(offer.signed.raw, countersignature, command.consumer_key),
        "this node's own signature is wrong",
    )


def _received(
    state: MeshState, request_id: str, accepted: Mapping[str, Sequence[OfferedReceipt]]
) -> list[facts.ReceiptReceived]:
    """As few facts as hold them. What one provider offered at once stays together, for it may be repeated at once."""
    made: list[facts.ReceiptReceived] = []
    part: list[Signed] = []
    keys: list[tuple[str, bytes]] = []
    size = 0
    for provider, offers in accepted.items():
        channel = state.billing.received.get(provider)
        bound = encode_binding(offers[0].provider_keys)
        shown = [(provider, bound)] if channel is None or channel.keys != bound else []
        more = sum(fact_bytes(offer.signed.raw) for offer in offers) + sum(fact_bytes(b) for _, b in shown)
        if part and size + more > RECEIPTS_FACT_BYTES_MAX:
            made.append(_received_fact(request_id, part, keys))
            part, keys, size = [], [], 0
        part += [offer.signed for offer in offers]
        keys += shown
        size += more
    return [*made, _received_fact(request_id, part, keys)]


def _received_fact(
    request_id: str, part: Sequence[Signed], keys: Sequence[tuple[str, bytes]]
) -> facts.ReceiptReceived:
    return facts.ReceiptReceived(request_id=request_id, receipts=_kept(part), keys=tuple(keys))


def _fraud(offer: OfferedReceipt, first: Signed, keys: bytes) -> facts.PeerEquivocated:
    """Both are signed by the provider, one number, other bytes: anybody can see that it lied.

    Raises: BadReceipt when its keys are of another log than the first one's: a restored backup, which is no lie.
    """
    bound = decode_binding(keys) if keys else offer.provider_keys
    second = Signed(offer.signed.raw, offer.signed.signature)
    return receipts.equivocation(receipts.fraud_proof(first, bound, second, offer.provider_keys))


# --- both ------------------------------------------------------------------------------------------
def fact_bytes(document: bytes) -> int:
    """At most so many bytes a receipt with both signatures, or a provider's keys, take in a fact."""
    return len(document) + _BESIDE_BYTES


def _kept(signed: Sequence[Signed]) -> tuple[tuple[bytes, bytes, bytes | None], ...]:
    return tuple((one.raw, one.signature, one.countersignature) for one in signed)


def _read(signed: Signed, provider_key: bytes) -> Receipt:
    receipt = receipts.decode(signed.raw)
    _expect(
        receipts.is_signed(signed.raw, signed.signature, provider_key), "the provider's signature is wrong"
    )
    return receipt


def _check_trusted(state: MeshState, peer: str) -> None:
    entry = state.billing.accounts.get(peer)
    if entry is not None and entry.ended:
        raise CreditEnded(f"{peer} gets no credit any more: {entry.ended}")


def _check_follow(read: Sequence[Receipt], signed: Sequence[Signed], before: bytes) -> None:
    """Each is the next after the one before it; `before` is empty when there is none yet."""
    for receipt, one in zip(read, signed, strict=True):
        if not receipts.follows(receipt, before or None):
            expected = receipts.read(before).sequence + 1 if before else 1
            raise BadReceipt(
                f"receipt {receipt.sequence} does not follow; {expected} is next", expected=expected
            )
        before = one.raw


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BadReceipt(f"the receipt was refused: {otherwise}")


DECIDERS: Final[Deciders] = {GiveReceipts: give_receipts, AcceptReceipts: accept_receipts}
