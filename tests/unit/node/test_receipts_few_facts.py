"""A request leaves few facts however many places it ran on, whoever is slow, lies or was not heard."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from p2pnode.errors import LogFailed
from p2pnode.events import codec
from p2pnode.limits import EVENT_BYTES_MAX, RECEIPT_PARTS_MAX, RECEIPT_TURNS_MAX
from p2pnode.node import receipt_messages as exchange
from p2pnode.node.active import Place
from p2pnode.units import PeerId
from tests.kit.receipt_ring import UNIT, Calls, Peer, Ring


@pytest.fixture
def ring() -> Ring:
    calls = Calls()
    return Ring(calls, calls.add("head"), calls.add("first"), calls.add("second"))


LONG_NOTE = f"p2pnode/x\n1\nAA==\n{'x' * 900}\n\n\u2014 p2pnode/x AAAAAAAA\n"
"""As long as a checkpoint in a receipt can be, nearly."""


def facts_of(peer: Peer, request_id: str) -> list[str]:
    records = peer.book.story.records
    return [type(record.event).__name__ for record in records if record.correlation == request_id]


async def over(ring: Ring, places: Sequence[Place], path: str = "wan") -> int:
    for place in places:
        ring.compute(place)
    return await ring.settle(ring.asked("r1", dict.fromkeys(places, 10)), path)


@pytest.mark.parametrize("count", [2, 4, 5, 8, 16, 64])
@pytest.mark.parametrize("devices", [1, 5, 64])
async def test_a_request_leaves_at_most_eight_facts(ring: Ring, count: int, devices: int) -> None:
    """Over any number of places, welcome and all, at the head and at each device; every debit is a credit."""
    peers = [ring.calls.add(f"device {number}") for number in range(min(devices, count))]
    places = [
        ring.place(peers[number % len(peers)], number % 8 + 4, number % 8 + 5, f"plan {number}")
        for number in range(count)
    ]
    assert await over(ring, places) == count
    kinds = facts_of(ring.head, "r1")
    assert len(kinds) + 1 <= 8, kinds  # the welcome belongs to the account
    assert ring.head.book.story.records[1].event.__class__.__name__ == "WelcomeGranted"
    assert all(len(facts_of(peer, "r1")) <= 4 for peer in peers)
    assert sum(ring.agreed(peer)[1] for peer in peers) == UNIT == sum(ring.earned(peer) for peer in peers)
    assert all(len(codec.encode(record)) <= EVENT_BYTES_MAX for record in ring.head.book.story.records)


async def test_what_is_too_long_for_one_fact_stands_in_few(ring: Ring) -> None:
    """Sixty-four receipts of nearly the longest form on one device: two facts here, and as many there, twice."""
    ring.calls.note = LONG_NOTE
    places = [ring.place(ring.first, n % 8 + 4, n % 8 + 5, f"plan {n}") for n in range(64)]
    assert await over(ring, places) == 64
    assert facts_of(ring.head, "r1").count("ReceiptReceived") == 2
    assert facts_of(ring.first, "r1") == ["ReceiptGiven"] * 4
    assert ring.agreed(ring.first) == (64, UNIT)
    assert all(
        len(codec.encode(record)) <= EVENT_BYTES_MAX
        for peer in (ring.head, ring.first)
        for record in peer.book.story.records
    )


async def test_who_is_slow_makes_one_more_fact_and_holds_nobody_up(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pnode.node.receipts.RECEIPT_GATHER_S_MAX", 0.0)
    ring.calls.slow[ring.second.id, exchange.ASK] = until_signed = asyncio.Event()
    ring.first.debts.when_signed = until_signed.set
    assert await ring.settle(ring.work()) == 2
    assert facts_of(ring.head, "r1").count("ReceiptReceived") == 2
    assert ring.agreed(ring.first)[0] == ring.agreed(ring.second)[0] == 1


async def test_one_that_lies_harms_no_other(ring: Ring) -> None:
    """Its receipt is refused; the same fact holds the other's."""
    ring.first.lies = True
    assert await ring.settle(ring.work()) == 1
    assert facts_of(ring.head, "r1").count("ReceiptReceived") == 1
    assert ring.agreed(ring.second)[0] == 1
    assert ring.first.id not in ring.head.book.state.billing.received


@pytest.mark.parametrize("arrived", [True, False])
async def test_many_receipts_whose_signatures_were_lost_are_signed_once(ring: Ring, arrived: bool) -> None:
    """Recorded here and not heard of there, or given there and not heard of here; then the same receipts, once each."""
    (ring.calls.lost_before if arrived else ring.calls.lost_after).add(
        exchange.AGREE if arrived else exchange.ASK
    )
    places = [ring.place(ring.first, n + 4, n + 5, f"plan {n}") for n in range(6)]
    await over(ring, places)
    ring.calls.lost_before.clear()
    ring.calls.lost_after.clear()
    assert ring.head.receipts is not None
    for _ in range(2):
        await ring.head.receipts.make_up(ring.first.id)
        assert ring.agreed(ring.first) == (6, UNIT)
    assert facts_of(ring.head, "r1").count("ReceiptReceived") == 1
    assert facts_of(ring.first, "r1") == ["ReceiptGiven"] * 2


async def test_a_record_that_can_not_be_written_ends_the_exchange(ring: Ring) -> None:
    ring.head.book.refuses = LogFailed("the disk is gone")
    done = ring.work()
    assert ring.head.receipts is not None
    stages = await ring.head.receipts.tally(done)
    assert await ring.head.receipts.collect(done, stages, done.work(stages), {}) == 0


async def test_what_exceeds_the_bound_at_once_is_signed_in_turns(ring: Ring) -> None:
    """Two stages of which only one is within a unit beside what else is owed: signed one after the other."""
    ring.first.debts.besides = [0, UNIT]
    places = [ring.place(ring.first, 4, 8), ring.place(ring.first, 8, 12)]
    assert await over(ring, places) == 2
    assert ring.agreed(ring.first) == (2, UNIT)
    assert ring.calls.made.count(exchange.ASK) == 2


async def test_a_device_that_says_something_else_is_not_signed_for(ring: Ring) -> None:
    """Receipts for another request, or more than one fact holds: nothing is recorded."""
    theirs = ring.place(ring.first, 4, 8)
    honest = ring.first.methods[exchange.ASK]

    async def other_request(peer: PeerId, arguments: dict[str, Any], say: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await honest(peer, {**arguments, "request_id": "another"}, say)
        return answer

    async def too_many(peer: PeerId, arguments: dict[str, Any], say: Any) -> dict[str, Any]:
        offer = await honest(peer, arguments, say)
        return {**offer, "receipts": offer["receipts"] * RECEIPT_PARTS_MAX, "repeated": True}

    ring.calls.note = LONG_NOTE
    for n, answer in enumerate((other_request, too_many)):
        ring.first.methods[exchange.ASK] = answer
        ring.compute(theirs)
        assert await ring.settle(ring.asked(f"r{n}", {theirs: 10})) == 0
    assert ring.first.id not in ring.head.book.state.billing.received


async def test_a_device_that_repeats_for_ever_is_left_after_some_turns(ring: Ring) -> None:
    theirs = ring.place(ring.first, 4, 8)
    ring.compute(theirs)
    await ring.settle(ring.asked("r1", {theirs: 10}))
    ring.first.book.story.state.billing.given[
        ring.head.id
    ].agreed_sequence = 0  # it forgets that it was signed
    ring.first.methods[exchange.AGREE] = _nothing
    ring.compute(theirs, 10)
    asked = ring.calls.made.count(exchange.ASK)
    assert await ring.settle(ring.asked("r2", {theirs: 10})) == 0
    assert ring.calls.made.count(exchange.ASK) - asked == RECEIPT_TURNS_MAX
    assert facts_of(ring.head, "r1").count("ReceiptReceived") == 1


async def _nothing(peer: PeerId, arguments: dict[str, Any], say: Any) -> dict[str, Any]:
    return {}


async def test_what_could_not_be_asked_is_kept_until_it_can(ring: Ring) -> None:
    """Refused twice for what is owed beside it, then signed once."""
    ring.first.debts.beside = UNIT
    theirs = ring.place(ring.first, 4, 8)
    ring.compute(theirs)
    assert await ring.settle(ring.asked("r1", {theirs: 10})) == 0
    assert ring.head.receipts is not None
    await ring.head.receipts.make_up(ring.first.id)
    assert ring.first.id not in ring.head.book.state.billing.received
    ring.first.debts.beside = 0
    await ring.head.receipts.make_up(ring.first.id)
    assert ring.agreed(ring.first) == (1, UNIT)
