"""Long requests: each delivered unit is paid out of the hold before the next begins."""

from __future__ import annotations

from typing import Any

import pytest

from p2pnode import limits
from p2pnode.commands import ExpireHolds, FailRequest, SetQuota, SettleUnit, StartNode
from p2pnode.decide import parts_of_share
from p2pnode.errors import CorruptRecord, HoldResolved, NotFound
from p2pnode.events import types as facts
from p2pnode.projections import billing
from tests.kit.story import STRANGER, Story, finish, serve

UNIT = 1_000_000


def unit(number: int, *work: tuple[str, int]) -> SettleUnit:
    return SettleUnit(request_id="r1", unit=number, work=work)


def long_request() -> Story:
    """Three units are held and two of them delivered."""
    story = Story("self")
    story.do(serve(max_tokens=3000))
    assert story.do(unit(1, ("a", 1), ("b", 1)))["shares"] == [["a", 500_000], ["b", 500_000]]
    assert story.do(unit(2, ("a", 3), ("b", 1)))["shares"] == [["a", 750_000], ["b", 250_000]]
    return story


def credit(story: Story, *accounts: str) -> list[int]:
    assert sum(billing.balances(story.state.billing).values()) == 0
    return [billing.available(story.state.billing, account) for account in accounts]


def test_a_long_request_is_divided_unit_by_unit() -> None:
    story = long_request()
    assert credit(story, STRANGER, "held/" + STRANGER, "a", "b") == [2 * UNIT, UNIT, 1_250_000, 750_000]
    command = finish(completion_tokens=2500, work=(("b", 1),))
    answer = {"cost_microunits": 3 * UNIT, "shares": [["a", 1_250_000], ["b", 1_750_000]], "free": False}
    assert story.do(command) == answer
    assert story.do(command) == answer, "the same again"
    assert credit(story, STRANGER, "held/" + STRANGER, "a", "b") == [2 * UNIT, 0, 1_250_000, 1_750_000]
    assert story.state.billing.accounts[STRANGER].spent == 3 * UNIT
    assert story.state.sessions.requests["r1"].cost_microunits == 3 * UNIT
    assert story.state.usage.total.cost_microunits == 3 * UNIT


@pytest.mark.parametrize("how", ["fails", "expires", "crashes"])
def test_delivered_units_stay_paid_when_the_rest_is_given_back(how: str) -> None:
    story = long_request()
    match how:
        case "fails":
            story.do(FailRequest(request_id="r1", code="stage_lost", message="gone"))
        case "expires":
            story.now_ms += limits.HOLD_MS_MAX
            assert story.do(ExpireHolds())["expired"] == 1
            late = story.do(finish(completion_tokens=2500))
            assert (late["cost_microunits"], late["shares"]) == (2 * UNIT, [["a", 1_250_000], ["b", 750_000]])
        case _:
            story.do(StartNode(version="1", platform="linux", device_name="n"))
    assert credit(story, STRANGER, "held/" + STRANGER, "a", "b") == [3 * UNIT, 0, 1_250_000, 750_000]
    assert story.state.sessions.requests["r1"].cost_microunits == 2 * UNIT
    assert dict(story.state.billing.resolved["r1"].shares) == {"a": 1_250_000, "b": 750_000}


def test_units_are_settled_in_order_and_only_from_what_is_held() -> None:
    story = long_request()
    for number in (1, 2, 4):
        with pytest.raises(HoldResolved):
            story.do(unit(number, ("a", 1)))
    assert story.do(unit(3))["shares"] == [["self", UNIT]], "what nobody earns is this node's"
    for number in (3, 4):
        with pytest.raises(NotFound):
            story.do(unit(number, ("a", 1)))
    story.do(serve("free", path="lan", max_tokens=3000))
    with pytest.raises(NotFound):
        story.do(SettleUnit(request_id="free", unit=1, work=()))


def test_the_request_repeated_between_units_gets_its_first_answer() -> None:
    story = long_request()
    again = story.do(serve(max_tokens=3000))
    assert again == {"request_id": "r1", "held_microunits": 3 * UNIT, "free": False}


def test_a_quota_gives_back_what_units_did_not_use() -> None:
    story = Story("self")
    story.do(SetQuota(account=STRANGER, limit_microunits=5 * UNIT, period_ms=86_400_000))
    story.do(serve(max_tokens=3000))
    story.do(unit(1, ("a", 1)))
    story.do(FailRequest(request_id="r1", code="stage_lost", message="gone"))
    assert billing.quota_left(story.state.billing, STRANGER, story.now_ms) == 4 * UNIT


@pytest.mark.parametrize(
    "wrong",
    [{"unit": 2}, {"unit": 0}, {"amount_microunits": 4 * UNIT}, {"payer": "b"}, {"shares": (("a", 1),)}],
)
def test_a_record_with_a_unit_that_cannot_be_is_no_ledger(wrong: dict[str, Any]) -> None:
    story = Story("self")
    story.do(serve(max_tokens=3000))
    fields: dict[str, Any] = {
        "hold_id": "r1", "payer": STRANGER, "request_id": "r1", "unit": 1, "amount_microunits": UNIT,
        "shares": (("a", UNIT),),
    }  # fmt: skip
    with pytest.raises(CorruptRecord):
        story.tell(facts.UnitSettled(**{**fields, **wrong}))


def test_a_share_of_another_division_has_no_parts() -> None:
    """Somebody's credit ended between the division and the receipts: then the parts would not sum to the share."""
    assert parts_of_share(60, 100, 10, (4, 2)) == (40, 20)
    assert parts_of_share(100, 100, 10, (4, 2)) == ()
    assert parts_of_share(10, 100, 10, (4, 2)) == ()
