"""Receipts that were lost, refused or asked for wrongly: nobody signs too much, and what is owed is made up for."""

from __future__ import annotations

from typing import Any

import pytest

from p2pnode.commands import FailRequest, SettleUnit
from p2pnode.errors import (
    BadCheckpoint,
    BadReceipt,
    Forbidden,
    NotFound,
    RemoteProtocolError,
)
from p2pnode.events.keys import LogKeys
from p2pnode.node import receipt_messages as exchange
from p2pnode.node.receipts import RequestDone
from tests.kit.receipt_ring import PLAN, UNIT, Book, Calls, Ring, rows
from tests.kit.receipts import keys_of
from tests.kit.story import serve


@pytest.fixture
def ring() -> Ring:
    calls = Calls()
    return Ring(calls, calls.add("head"), calls.add("first"), calls.add("second"))


@pytest.mark.parametrize("method", [exchange.ASK, exchange.AGREE])
@pytest.mark.parametrize("arrived", [True, False])
async def test_what_was_lost_is_made_up_for_with_the_next_request(
    ring: Ring, method: str, arrived: bool
) -> None:
    lost = ring.calls.lost_after if arrived else ring.calls.lost_before
    lost.add(method)
    assert await ring.settle(ring.work()) == 0
    lost.clear()
    await ring.settle(ring.work("r2"))
    nothing_was_given = method == exchange.ASK and not arrived
    assert ring.agreed(ring.first)[0] == (1 if nothing_was_given else 2)


async def test_a_stage_that_is_gone_or_knows_nothing_is_left_out(ring: Ring) -> None:
    ring.calls.lost_before.add(exchange.TALLY)
    assert await ring.settle(ring.work()) == 0
    ring.calls.lost_before.clear()
    done = ring.done("r2", session=99)
    assert await ring.settle(done) == 0
    assert exchange.ASK not in ring.calls.made


async def test_more_than_the_head_fed_is_never_signed(ring: Ring) -> None:
    done = ring.work()
    ring.first.tallies.add(ring.stage(4, 8), rows(10, 90, b"x"), rows(10, 90, b"y"))
    assert ring.head.receipts is not None
    stages = await ring.head.receipts.tally(done)
    assert [stage.layer_tokens for stage in stages] == [40, 40]


async def test_a_provider_signs_for_no_more_than_it_did(ring: Ring) -> None:
    done = ring.work()

    async def ask(**changes: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await ring.first.methods[exchange.ASK](
            ring.head.id, {**_asked(done), **changes}, None
        )
        return answer

    with pytest.raises(BadReceipt, match="40 layer-tokens"):
        await ask(parts=[_part(layer_tokens=41)])
    with pytest.raises(RemoteProtocolError):
        await ask(salt=b"short")
    with pytest.raises(RemoteProtocolError):
        await ask(parts=[])
    with pytest.raises(RemoteProtocolError, match="once"):
        await ask(parts=[_part(), _part()])
    with pytest.raises(RemoteProtocolError):
        await ring.first.methods[exchange.AGREE](
            ring.head.id, {"receipt": b"", "signature": b"", "keys": b""}, None
        )
    with pytest.raises(NotFound):
        await ring.first.methods[exchange.AGREE](
            ring.head.id, {"receipts": [[b"x", bytes(64)]], "keys": b""}, None
        )
    left_out = await ask(parts=[_part(layers=[0, 1]), _part()])
    assert len(left_out["receipts"]) == 1, "of a part it knows nothing of there is none; of the rest there is"


def _asked(done: RequestDone, **part: Any) -> dict[str, Any]:
    return {
        "session": done.session,
        "request_id": done.request_id,
        "model": "m",
        "salt": bytes(32),
        "request_layer_tokens": 40,
        "request_microunits": 0,
        "parts": [_part(**part)],
    }


def _part(**changes: Any) -> dict[str, Any]:
    return {"plan_id": PLAN, "layers": [4, 8], "layer_tokens": 40, "microunits": 0, **changes}


async def test_a_unit_whose_signature_was_lost_is_signed_with_the_next(ring: Ring) -> None:
    """Also when the request fails in between: what was settled is owed."""
    theirs = ring.place(ring.first, 4, 12)
    story = ring.head.book.story
    story.do(serve("r1", max_tokens=3000))
    assert ring.head.receipts is not None
    ring.compute(theirs)
    done = ring.asked("r1", {theirs: 10})
    stages = await ring.head.receipts.tally(done)
    answer = story.do(SettleUnit(request_id="r1", unit=1, work=tuple(done.work(stages).items())))
    ring.calls.lost_after.add(exchange.ASK)
    assert await ring.head.receipts.collect(done, stages, done.work(stages), dict(answer["shares"])) == 0
    ring.calls.lost_after.clear()
    story.do(FailRequest(request_id="r1", code="stage_lost", message="gone"))
    assert ring.first.id not in ring.head.book.state.billing.received
    ring.compute(theirs, 0, 5)
    await ring.settle(ring.asked("r2", {ring.place(ring.head, 0, 4): 5, theirs: 5}))
    assert ring.agreed(ring.first) == (2, ring.earned(ring.first))


@pytest.mark.parametrize("method", [exchange.ASK, exchange.AGREE])
@pytest.mark.parametrize("arrived", [True, False])
async def test_what_was_lost_is_made_up_for_without_more_work(ring: Ring, method: str, arrived: bool) -> None:
    """When the device is back, or refuses the next request: both books are even again, and stay so."""
    lost = ring.calls.lost_after if arrived else ring.calls.lost_before
    lost.add(method)
    assert await ring.settle(ring.work()) == 0
    lost.clear()
    assert ring.head.receipts is not None
    for _ in range(2):
        await ring.head.receipts.make_up(ring.first.id)
        assert ring.agreed(ring.first) == (1, ring.earned(ring.first))


async def test_a_receipt_that_would_exceed_the_bound_is_asked_for_again_later(ring: Ring) -> None:
    ring.first.debts.beside = UNIT
    assert await ring.settle(ring.work()) == 1
    assert ring.first.id not in ring.head.book.state.billing.received
    ring.first.debts.beside = 0
    assert ring.head.receipts is not None
    await ring.head.receipts.make_up(ring.first.id)
    assert ring.agreed(ring.first) == (1, ring.earned(ring.first))


async def test_a_repeated_receipt_is_bounded_by_what_was_earned(ring: Ring) -> None:
    """A provider that repeats a receipt for more than the settlement gave it is not signed for."""
    theirs = ring.place(ring.first, 4, 12)
    ring.compute(theirs)
    greedy = {**_asked(ring.done(), layers=[4, 12], microunits=900_000), "request_microunits": 900_000}
    await ring.first.methods[exchange.ASK](ring.head.id, greedy, None)
    ring.compute(theirs)
    assert await ring.settle(ring.asked("r1", {ring.place(ring.head, 0, 8): 10, theirs: 10})) == 0
    assert ring.first.id not in ring.head.book.state.billing.received


async def test_receipts_are_for_the_head_of_the_plan_alone(ring: Ring) -> None:
    """Else another member could sign for work, at no price, before its head does."""
    done = ring.work()
    stranger = ring.calls.add("stranger")
    where = {"plan_id": PLAN, "session": done.session, "layers": [4, 8]}
    for method, arguments in ((exchange.TALLY, where), (exchange.ASK, _asked(done))):
        with pytest.raises(Forbidden, match="only the head"):
            await ring.first.methods[method](stranger.id, arguments, None)
    assert await ring.settle(done) == 2


async def test_only_keys_an_identity_vouches_for_count(ring: Ring) -> None:
    done = ring.work()
    stranger = keys_of("stranger")
    ring.first.keys = LogKeys(
        stranger.identity, 0, stranger.origin, stranger.log, stranger.witness, stranger.receipt
    )
    assert await ring.settle(done) == 1
    assert ring.first.id not in ring.head.book.state.billing.received
    ring.work("r2")
    offer = await ring.second.methods[exchange.ASK](ring.head.id, _asked(done, layers=[8, 12]), None)
    with pytest.raises(BadCheckpoint, match="not a binding"):
        await ring.second.methods[exchange.AGREE](ring.head.id, {**offer, "keys": b"x"}, None)


async def test_a_provider_that_signs_one_number_twice_convicts_itself(ring: Ring) -> None:
    await ring.settle(ring.work())
    backup = Book(ring.first.id)
    ring.first.book.story = backup.story
    assert await ring.settle(ring.work("r2")) == 1
    assert ring.head.book.state.billing.accounts[ring.first.id].ended == "equivocated"
    assert await ring.settle(ring.work("r3")) == 1, "the others go on"
