"""Receipts in the record: order, exposure, agreement and fraud."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pnode.commands import AcceptReceipts, ReportFraud
from p2pnode.decide import may_compute
from p2pnode.errors import BadCheckpoint, BadReceipt, CreditEnded, ReceiptOwed
from p2pnode.events import receipt as receipts
from p2pnode.events import types as facts
from p2pnode.events.fraud import equivocation, is_proof
from p2pnode.events.keys import LogKeys, encode_binding
from p2pnode.events.receipt import Signed
from p2pnode.projections import billing
from tests.kit.receipts import Channel, channel, keys_of, public
from tests.kit.story import Story

UNIT = 1_000_000
_VECTORS = Path(__file__).parents[3] / "specs" / "vectors"
FRAUD_VECTORS = json.loads((_VECTORS / "receipt_frauds.json").read_text(encoding="utf-8"))


@pytest.fixture
def between() -> Channel:
    return channel()


@pytest.fixture
def provider(between: Channel) -> Story:
    return Story(between.provider.peer)


@pytest.fixture
def consumer(between: Channel) -> Story:
    return Story(between.consumer.peer)


def fraud_of(peer: str) -> ReportFraud:
    return ReportFraud(
        fraud=facts.PeerEquivocated(peer=peer, origin="o", size_first=1, size_second=2, proof=b"p")
    )


# --- provider --------------------------------------------------------------------------------------
def test_a_provider_earns_when_the_consumer_has_signed(between: Channel, provider: Story) -> None:
    signed = between.signed()
    provider.do(between.give(signed, agreed=False))
    me, them = between.provider.peer, between.consumer.peer
    assert billing.exposure(provider.state.billing, them) == 500_000
    assert billing.available(provider.state.billing, me) == 0
    provider.do(between.give(signed))
    assert billing.exposure(provider.state.billing, them) == 0
    assert dict(billing.balances(provider.state.billing)) == {me: 500_000, billing.DUE + them: -500_000}
    size = provider.state.size
    provider.do(between.give(signed))
    provider.do(between.give(signed, agreed=False))
    assert provider.state.size == size


def test_a_receipt_may_be_recorded_with_both_signatures_at_once(between: Channel, provider: Story) -> None:
    provider.do(between.give(between.signed()))
    provider.do(between.give(between.signed()))
    entry = provider.state.billing.given[between.consumer.peer]
    assert (entry.sequence, entry.agreed_sequence, entry.agreed_microunits) == (2, 2, UNIT)


def test_free_work_is_receipted_and_moves_nothing(between: Channel, provider: Story) -> None:
    provider.do(between.give(between.signed(between.next(microunits=0, request_microunits=0))))
    assert dict(billing.balances(provider.state.billing)) == {}


def test_the_next_receipt_waits_for_the_signature_under_the_last(between: Channel, provider: Story) -> None:
    first = between.signed()
    provider.do(between.give(first, agreed=False))
    second = between.signed()
    with pytest.raises(ReceiptOwed):
        provider.do(between.give(second, agreed=False))
    provider.do(between.give(first))
    provider.do(between.give(second, agreed=False))


def test_a_provider_never_signs_two_receipts_under_one_number(between: Channel, provider: Story) -> None:
    provider.do(between.give(between.signed(), agreed=False))
    other = Channel(between.consumer, between.provider)
    with pytest.raises(BadReceipt, match="another receipt"):
        provider.do(between.give(other.signed(other.next(request_id="r2")), agreed=False))


def test_a_provider_refuses_what_is_not_its_own_or_wrongly_signed(between: Channel, provider: Story) -> None:
    signed = between.signed()
    command = between.give(signed)
    for wrong, match in (
        (replace(command, provider_key=public(between.consumer)), "provider's signature"),
        (
            replace(command, receipts=(Signed(signed.raw, signed.signature, bytes(64)),)),
            "consumer's signature",
        ),
        (replace(command, consumer_key=None), "consumer's signature"),
        (replace(command, receipts=(Signed(signed.raw, bytes(64)),)), "provider's signature"),
        (replace(command, receipts=()), "there is none"),
        (replace(command, provider_key=b"short"), "provider's signature"),
    ):
        with pytest.raises(BadReceipt, match=match):
            provider.do(wrong)
    with pytest.raises(BadReceipt, match="not its provider"):
        Story(between.consumer.peer).do(command)
    between.signed()
    with pytest.raises(BadReceipt, match="1 is next"):
        provider.do(between.give(between.signed()))


def test_work_without_a_signature_stops_at_one_unit(between: Channel, provider: Story) -> None:
    them = between.consumer.peer
    may_compute(provider.state, them, UNIT)
    with pytest.raises(ReceiptOwed):
        may_compute(provider.state, them, UNIT + 1)
    provider.do(between.give(between.signed(), agreed=False))
    may_compute(provider.state, them, UNIT - 500_000)
    with pytest.raises(ReceiptOwed) as owed:
        may_compute(provider.state, them, UNIT - 499_999)
    assert owed.value.details == {"owed": UNIT + 1}
    provider.do(fraud_of(them))
    with pytest.raises(CreditEnded):
        may_compute(provider.state, them, 0)


def test_nothing_is_given_to_a_consumer_that_equivocated(between: Channel, provider: Story) -> None:
    provider.do(fraud_of(between.consumer.peer))
    size = provider.state.size
    provider.do(fraud_of(between.consumer.peer))
    assert provider.state.size == size, "the same fraud is recorded once"
    with pytest.raises(CreditEnded):
        provider.do(between.give(between.signed(), agreed=False))


# --- consumer --------------------------------------------------------------------------------------
def test_a_consumer_records_what_it_signed_once(between: Channel, consumer: Story) -> None:
    signed = between.signed()
    assert accept(consumer, between.accept(signed)) == ["accepted"]
    size = consumer.state.size
    assert accept(consumer, between.accept(signed)) == ["accepted"]
    assert consumer.state.size == size
    consumer.do(between.accept(between.signed()))
    entry = consumer.state.billing.received[between.provider.peer]
    assert (entry.agreed_sequence, entry.agreed_layer_tokens, entry.agreed_microunits) == (2, 80, UNIT)


def test_a_consumer_signs_only_for_work_it_saw(between: Channel, consumer: Story) -> None:
    signed = between.signed()
    for command, why in (
        (between.accept(signed, provider_keys=between.consumer.bound()), "provider's signature"),
        (between.accept(signed, provider_keys=_lent_keys(between)), "another peer's"),
        (between.accept(signed, layer_tokens_max=39), "more work"),
        (between.accept(signed, microunits_max=499_999), "part of the price"),
        (between.accept(Signed(signed.raw, signed.signature, bytes(64))), "own signature"),
        (between.accept(Signed(signed.raw, signed.signature)), "own signature"),
        (between.accept(Signed(signed.raw, bytes(64), signed.countersignature)), "provider's signature"),
    ):
        (refused,) = accept(consumer, command)
        assert why in refused
    assert consumer.state.size == 1
    assert "not its consumer" in accept(Story(between.provider.peer), between.accept(signed))[0]
    between.signed()
    assert "1 is next" in accept(consumer, between.accept(between.signed()))[0]
    accept(consumer, between.accept(signed))
    assert "2 is next" in accept(consumer, between.accept(between.signed()))[0]


def _lent_keys(between: Channel) -> facts.KeysBound:
    """The provider's receipt key, bound to somebody else."""
    return replace(keys_of("somebody else").bound(), receipt_key=between.provider.bound().receipt_key)


def accept(story: Story, command: AcceptReceipts) -> list[str]:
    """What became of each offer."""
    return [
        "accepted" if answer["accepted"] else "fraud" if answer["fraud"] else answer["refused"]
        for answer in story.do(command)["answers"]
    ]


def test_two_receipts_under_one_number_end_the_providers_credit(between: Channel, consumer: Story) -> None:
    consumer.do(between.accept(between.signed()))
    other = Channel(between.consumer, between.provider)
    lie = between.accept(other.signed(other.next(request_id="r2")), between.signed())
    answers = accept(consumer, lie)
    assert answers[0] == "fraud"
    assert "has just lied" in answers[1]
    event = consumer.records[-1].event
    assert isinstance(event, facts.PeerEquivocated)
    first, second, keys = receipts.check_fraud(event.proof)
    assert (first.sequence, second.sequence, keys) == (1, 1, between.provider.bound())
    assert "no credit any more" in accept(consumer, between.accept(between.signed()))[0]


def test_changing_keys_between_two_receipts_of_one_number_does_not_help(
    between: Channel, consumer: Story
) -> None:
    """The first one's keys are recorded with it: both generations are one log's, which convinces anybody."""
    consumer.do(between.accept(between.signed()))
    received = consumer.records[-1].event
    assert isinstance(received, facts.ReceiptReceived)
    assert received.keys == ((between.provider.peer, encode_binding(between.provider.bound())),)
    rotated = Channel(between.consumer, LogKeys.derive(between.provider.identity, 1))
    assert accept(consumer, rotated.accept(rotated.signed(rotated.next(request_id="r2")))) == ["fraud"]
    event = consumer.records[-1].event
    assert isinstance(event, facts.PeerEquivocated)
    assert equivocation(event.proof) == event
    assert is_proof(event.proof)
    assert receipts.check_fraud(event.proof)[2].generation == 1


def test_a_provider_whose_backup_was_restored_has_not_lied(between: Channel, consumer: Story) -> None:
    """It goes on under another log's name and counts from what it remembers: refused, and nobody's crime."""
    consumer.do(between.accept(between.signed()))
    restored = LogKeys.derive(between.provider.identity, 1, f"{between.provider.origin}/1")
    again = Channel(between.consumer, restored)
    (refused,) = accept(consumer, again.accept(again.signed(again.next(request_id="r2"))))
    assert "not of one log" in refused
    assert not consumer.state.audit.frauds


def test_keys_are_recorded_when_they_are_new(between: Channel, consumer: Story) -> None:
    def keys_in_last() -> list[str]:
        event = consumer.records[-1].event
        assert isinstance(event, facts.ReceiptReceived)
        return [peer for peer, _ in event.keys]

    consumer.do(between.accept(between.signed()))
    assert keys_in_last() == [between.provider.peer]
    consumer.do(between.accept(between.signed()))
    assert keys_in_last() == []
    between.provider = LogKeys.derive(between.provider.identity, 1)
    consumer.do(between.accept(between.signed()))
    assert keys_in_last() == [between.provider.peer]


# --- several at once -------------------------------------------------------------------------------
def test_receipts_of_one_request_stand_in_one_fact(
    between: Channel, provider: Story, consumer: Story
) -> None:
    """Given, received and agreed to: one fact each, whatever the number of stages and devices."""
    other = Channel(between.consumer, keys_of("another provider"))
    mine = [between.signed(between.next(microunits=333_333, request_layer_tokens=120)) for _ in range(3)]
    theirs = [other.signed() for _ in range(2)]
    provider.do(between.give(*mine, agreed=False))
    assert billing.exposure(provider.state.billing, between.consumer.peer) == 999_999
    command = AcceptReceipts(
        offers=(*map(between.offer, mine), *map(other.offer, theirs)), consumer_key=public(between.consumer)
    )
    assert accept(consumer, command) == ["accepted"] * 5
    provider.do(between.give(*mine))
    facts_made = [type(record.event).__name__ for record in (*provider.records[1:], *consumer.records[1:])]
    assert facts_made == ["ReceiptGiven", "ReceiptGiven", "ReceiptReceived"]


def test_some_of_the_receipts_may_be_signed_before_the_rest(between: Channel, provider: Story) -> None:
    signed = [between.signed(between.next(microunits=333_333, request_layer_tokens=120)) for _ in range(3)]
    them = between.consumer.peer
    provider.do(between.give(*signed, agreed=False))
    for wrong in (signed[1:], signed[::-1]):
        with pytest.raises(BadReceipt, match="those before it"):
            provider.do(between.give(*wrong))
    provider.do(between.give(*signed[:2]))
    channel = provider.state.billing.given[them]
    assert (channel.agreed_sequence, channel.waiting) == (2, ((signed[2].raw, signed[2].signature),))
    assert billing.exposure(provider.state.billing, them) == 333_333
    provider.do(between.give(*signed))
    provider.do(between.give(*signed))
    assert billing.available(provider.state.billing, between.provider.peer) == 999_999
    assert sum(billing.balances(provider.state.billing).values()) == 0


# --- the bytes -------------------------------------------------------------------------------------
def test_a_fraud_proof_needs_a_contradiction_and_both_signatures(between: Channel) -> None:
    first = between.signed()
    other = Channel(between.consumer, between.provider)
    second = other.signed(other.next(request_id="r2"))
    key = between.provider.bound()
    proof = receipts.fraud_proof(first, key, second, key)
    with pytest.raises(BadReceipt, match="do not contradict"):
        receipts.fraud_proof(first, key, first, key)
    with pytest.raises(BadReceipt, match="do not contradict"):
        receipts.fraud_proof(first, key, between.signed(), key)
    with pytest.raises(BadReceipt, match="not signed"):
        receipts.fraud_proof(first, key, Signed(second.raw, bytes(64)), key)
    with pytest.raises(BadReceipt, match="not signed"):
        receipts.fraud_proof(
            first, keys_of("somebody else").bound(), second, keys_of("somebody else").bound()
        )
    changed = LogKeys.derive(between.provider.identity, 1).bound()
    with pytest.raises(BadReceipt, match="not signed"):  # a restored backup goes on under other keys
        receipts.fraud_proof(first, changed, second, changed)
    with pytest.raises(BadReceipt, match="not a fraud proof"):
        receipts.check_fraud(proof[:-1])
    with pytest.raises(BadReceipt, match="one encoding"):
        receipts.check_fraud(b"\xdc\x00\x06" + proof[1:])


@pytest.mark.parametrize("case", FRAUD_VECTORS, ids=lambda case: case["name"])
def test_fraud_vectors(case: dict[str, Any]) -> None:
    """Checked by who knows nothing but the document: the log's own port for proofs that others tell."""
    document = bytes.fromhex(case["input"])
    assert is_proof(document) or case["expect"] != "ok"
    if case["expect"] == "ok":
        event = equivocation(document)
        sizes = [event.size_first, event.size_second]
        assert {"peer": event.peer, "origin": event.origin, "sizes": sizes} == case["output"]
    else:
        with pytest.raises((BadReceipt, BadCheckpoint)):
            equivocation(document)


@pytest.mark.parametrize(
    "changes",
    [
        {"provider": "same", "consumer": "same"},
        {"layer_end": 4},
        {"position_end": 0},
        {"layer_tokens": 0},
        {"layer_tokens": 41},
        {"request_layer_tokens": 39},
        {"microunits": 499_999},
        {"microunits": 500_002},
        {"microunits": 1, "request_microunits": 0},
        {"microunits": 1_500_000, "request_microunits": 3_000_000},
        {"cumulative_layer_tokens": 39},
        {"cumulative_microunits": 499_999},
        {"sequence": 2},
        {"previous": b"\x01" * 32},
        {"previous": b""},
        {"sequence": 0},
        {"layer_first": -1},
        {"checkpoint": "x" * 1025},
    ],
)
def test_a_receipt_that_cannot_be_true_is_refused(between: Channel, changes: dict[str, object]) -> None:
    with pytest.raises(BadReceipt):
        receipts.encode(between.next(**changes))


def test_a_receipt_has_one_encoding(between: Channel) -> None:
    raw = receipts.encode(between.next())
    assert receipts.decode(raw) == between.next()
    fields = msgspec.msgpack.decode(raw)
    sequence = raw.index(b"\x01" + b"\xc4\x20" + bytes(32))
    longer = raw[:sequence] + b"\xcc" + raw[sequence:]
    mapped = msgspec.msgpack.encode(msgspec.structs.asdict(between.next()), order="sorted")
    for wrong in (longer, mapped, raw[:-1], raw + b"\x00", b"", b"\xc1", b"\x91" * 100, b"\x00" * 3000):
        with pytest.raises(BadReceipt):
            receipts.decode(wrong)
    for wrong_fields in ([*fields, 1], fields[:-1], [2, *fields[1:]], [*fields[:-1], float(fields[-1])]):
        with pytest.raises(BadReceipt):
            receipts.decode(msgspec.msgpack.encode(wrong_fields))


def test_the_two_signatures_are_not_interchangeable(between: Channel) -> None:
    signed = between.signed()
    assert receipts.is_signed(signed.raw, signed.signature, public(between.provider))
    assert signed.countersignature is not None
    assert receipts.is_countersigned(signed.raw, signed.countersignature, public(between.consumer))
    assert not receipts.is_signed(signed.raw, signed.countersignature, public(between.consumer))
    assert receipts.channel_of("a", "b") == "a>b"
