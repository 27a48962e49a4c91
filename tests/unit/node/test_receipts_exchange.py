"""A head and two providers exchange receipts over calls that may fail at any moment."""

from __future__ import annotations

import pytest

from p2pnode.commands import SettleUnit
from p2pnode.events import receipt as receipts
from p2pnode.events.keys import LogKeys
from p2pnode.node import receipt_messages as exchange
from p2pnode.projections import billing
from tests.kit.receipt_ring import UNIT, Calls, Ring
from tests.kit.story import serve


@pytest.fixture
def ring() -> Ring:
    calls = Calls()
    return Ring(calls, calls.add("head"), calls.add("first"), calls.add("second"))


async def test_every_stage_is_receipted_in_both_books(ring: Ring) -> None:
    assert await ring.settle(ring.work()) == 2
    parts = [ring.agreed(peer)[1] for peer in (ring.first, ring.second)]
    parts.append(billing.available(ring.head.book.state.billing, ring.head.id))
    assert sorted(parts) == [333_333, 333_333, 333_334]
    assert billing.available(ring.second.book.state.billing, ring.second.id) == parts[1]
    given = [
        receipts.decode(peer.book.state.billing.given[ring.head.id].receipt)
        for peer in (ring.first, ring.second)
    ]
    assert given[0].output_commitment == given[1].input_commitment
    assert given[0].input_commitment != given[0].output_commitment
    assert (given[0].position_first, given[0].position_end, given[0].layer_tokens) == (0, 10, 40)
    assert given[0].checkpoint.count("\u2014") == 1, "the witnesses' lines are left out"


async def test_free_work_is_receipted_too(ring: Ring) -> None:
    assert await ring.settle(ring.work(), path="lan") == 2
    assert ring.agreed(ring.first) == (1, 0)


async def test_nothing_done_needs_no_receipt(ring: Ring) -> None:
    assert ring.head.receipts is not None
    ring.work()
    idle = ring.asked("r1", {ring.place(ring.first, 4, 8): 0})
    stages = await ring.head.receipts.tally(idle)
    assert await ring.head.receipts.collect(idle, stages, {}, {}) == 0


async def test_two_stages_of_one_device_are_receipted_both(ring: Ring) -> None:
    """Around another's stage; its share is divided over them, and each receipt is a fair part of the price."""
    places = [
        ring.place(ring.head, 0, 1),
        ring.place(ring.first, 1, 2),
        ring.place(ring.second, 2, 9),
        ring.place(ring.first, 9, 12),
    ]
    for place in places[1:]:
        ring.compute(place)
    assert await ring.settle(ring.asked("r1", dict.fromkeys(places, 10))) == 3
    assert ring.agreed(ring.first) == (2, 333_334)
    assert ring.agreed(ring.second) == (1, 583_333)
    assert ring.calls.made.count(exchange.ASK) == 2


async def test_every_rank_of_a_group_is_receipted_by_its_width(ring: Ring) -> None:
    """The parts of all ranks are the stage's work."""
    group = [
        ring.place(peer, 4, 12, rank=rank, shares=(1, 2, 4))
        for rank, peer in enumerate((ring.head, ring.first, ring.second))
    ]
    places = [ring.place(ring.head, 0, 4), *group]
    for place in group[1:]:
        ring.compute(place)
    done = ring.asked("r1", dict.fromkeys(places, 10))
    assert sum(place.layer_tokens(10) for place in group) == 80
    assert await ring.settle(done) == 2
    parts = [receipts.decode(ring.given(peer)).layer_tokens for peer in (ring.first, ring.second)]
    assert parts == [23, 46]
    assert ring.agreed(ring.first)[1] == 23 * UNIT // 120 + 1
    assert sum(ring.earned(peer) for peer in (ring.head, ring.first, ring.second)) == UNIT


async def test_all_plans_a_request_ran_on_are_receipted(ring: Ring) -> None:
    """First over two devices, then over one of them: what the lost one did is credited, and nobody can sign for it."""
    before, after = ring.place(ring.first, 4, 8), ring.place(ring.first, 4, 12, "other plan")
    lost = ring.place(ring.second, 8, 12)
    ring.compute(before, 0, 6)
    ring.compute(after, 0, 10)
    del ring.calls.peers[ring.second.id]
    done = ring.asked("r1", {ring.place(ring.head, 0, 4): 14, before: 6, lost: 6, after: 10})
    assert await ring.settle(done) == 2
    work = 4 * 14 + 4 * 6 + 4 * 6 + 8 * 10
    assert ring.agreed(ring.first)[1] == ring.earned(ring.first)
    assert ring.earned(ring.first) in (UNIT * 104 // work, UNIT * 104 // work + 1)
    assert ring.earned(ring.second) in (UNIT * 24 // work, UNIT * 24 // work + 1)


async def test_each_unit_of_a_long_request_is_signed_before_the_next(ring: Ring) -> None:
    """No receipt is for more than a unit, each is for its own positions, and the books agree after each."""
    mine, theirs = ring.place(ring.head, 0, 4), ring.place(ring.first, 4, 12)
    story = ring.head.book.story
    story.do(serve("r1", max_tokens=3000))
    assert ring.head.receipts is not None
    for unit in (1, 2):
        ring.compute(theirs, 1000 * (unit - 1), 1000)
        done = ring.asked("r1", {mine: 1000, theirs: 1000})
        stages = await ring.head.receipts.tally(done)
        work = done.work(stages)
        answer = story.do(SettleUnit(request_id="r1", unit=unit, work=tuple(work.items())))
        assert await ring.head.receipts.collect(done, stages, work, dict(answer["shares"])) == 1
        receipt = receipts.decode(ring.given(ring.first))
        assert (receipt.position_first, receipt.position_end) == (1000 * (unit - 1), 1000 * unit)
        assert ring.agreed(ring.first) == (unit, ring.earned(ring.first))
    assert ring.agreed(ring.first)[1] > UNIT


async def test_who_watches_debts_hears_of_each_receipt(ring: Ring) -> None:
    await ring.settle(ring.work())
    share = ring.agreed(ring.first)[1]
    assert ring.first.debts.told == [("given", "plan (4, 8)", share), ("signed", "plan (4, 8)", 0)]


async def test_changed_keys_do_not_stop_a_channel(ring: Ring) -> None:
    ring.calls.lost_before.add(exchange.AGREE)
    await ring.settle(ring.work())
    ring.calls.lost_before.clear()
    for peer in (ring.first, ring.head):
        old = peer.keys
        peer.keys = LogKeys.derive(old.identity, old.generation + 1)
    assert await ring.settle(ring.work("r2")) == 2
    assert ring.agreed(ring.first)[0] == 2
