"""The host's half of the join checklist: steps, their reasons, and a list that no stranger can fill."""

from __future__ import annotations

import pytest

from p2pnode import limits
from p2pnode.errors import InviteExpired
from p2pnode.node.joining import Joins
from p2pnode.units import PeerId


def peer(number: int) -> PeerId:
    return PeerId(f"12D3KooW{number:04}")


def said(joins: Joins, rows: dict | None = None) -> list[list[tuple[str, str]]]:
    return [[(s["step"], s["state"]) for s in row["steps"]] for row in joins.view(rows or {})]


def test_a_device_that_is_let_in_is_followed_until_it_computes() -> None:
    news: list[int] = []
    joins = Joins(now_ms=lambda: 5, changed=lambda: news.append(1))
    attempt = joins.arrived(peer(1), "kitchen", "192.168.1.9")
    with attempt.step("ticket"):
        attempt.tell("ticket", "ok", "its ticket is valid")
    attempt.tell("admitted", "ok", "is a member")
    assert len(news) == 3
    begun = [("connected", "ok"), ("ticket", "ok"), ("admitted", "ok")]
    assert said(joins) == [[*begun, ("status", "waiting")]]
    online = {"state": "online"}
    assert "first status" in joins.view({peer(1): online})[0]["steps"][-1]["text"]
    row = {**online, "capability": {}, "stages": [{"layers": [0, 4], "model": "m", "up": False}]}
    assert said(joins, {peer(1): row}) == [[*begun, ("status", "ok"), ("layers", "waiting")]]
    row["stages"] = [{"layers": [0, 4], "model": "m", "up": True}]
    (view,) = joins.view({peer(1): row})
    assert (view["name"], view["done"], view["failed"]) == ("kitchen", True, False)
    assert view["steps"][-1]["text"] == "holds layers 0–3 of m"


@pytest.mark.parametrize(
    "stages", [None, 5, [5], [{}], [{"layers": 3}], [{"layers": [1]}], [{"layers": ["a", "b"]}], "text"]
)
def test_what_a_device_says_of_itself_may_be_nonsense(stages: object) -> None:
    joins = Joins(now_ms=lambda: 5)
    joins.arrived(peer(1), "", "h").tell("admitted", "ok", "")
    row = {"state": "online", "capability": {}, "stages": stages}
    assert said(joins, {peer(1): row}) == [[("connected", "ok"), ("admitted", "ok"), ("status", "ok")]]


def test_a_step_that_fails_says_why() -> None:
    joins = Joins(now_ms=lambda: 5)
    attempt = joins.arrived(peer(1), "", "10.0.0.1")
    with pytest.raises(InviteExpired), attempt.step("ticket"):
        raise InviteExpired("this ticket expired", hint="make a new one")
    (row,) = joins.view({})
    assert row["failed"]
    assert not row["done"]
    assert row["steps"][-1] == {
        "step": "ticket",
        "state": "failed",
        "text": "this ticket expired (make a new one)",
    }
    with pytest.raises(KeyError), joins.arrived(peer(1), "", "10.0.0.1").step("ticket"):
        raise KeyError
    assert [step["text"] for step in joins.view({})[0]["steps"]][-1] == "the device went away"
    with pytest.raises(InviteExpired), joins.arrived(peer(1), "", "10.0.0.1").step("ticket"):
        raise InviteExpired("this ticket expired", hint="")
    assert len(joins.view({})) == 1, "one that comes again begins anew"


def test_nobody_pushes_the_others_off_the_list() -> None:
    now = [5]
    joins = Joins(now_ms=lambda: now[0])
    joins.arrived(peer(0), "first", "10.0.0.1")
    for number in range(1, 100):
        joins.arrived(peer(number), "x" * 1000, "10.0.0.66")
    rows = joins.view({})
    assert len(rows) == 1 + limits.JOINS_PER_ADDRESS_MAX
    assert rows[-1]["name"] == "first"
    assert len(rows[0]["name"]) == limits.NAME_CHARACTERS_MAX
    for number in range(100, 200):
        joins.arrived(peer(number), "", f"10.0.1.{number}")
    assert len(joins.view({})) == limits.JOINS_SHOWN_MAX
    now[0] += limits.JOINS_SHOWN_MS + 1
    assert joins.view({}) == []
