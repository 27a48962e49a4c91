"""Directions of links: kept, told, passed on, and put together for faces."""

from __future__ import annotations

from typing import Any

import pytest

from p2pnode import limits
from p2pnode.node import directions
from p2pnode.node.directions import Direction, Told

ADDRESS = "/ip4/192.0.2.1/udp/9481/quic-v1"
SILENT = [[ADDRESS, "no answer within 3 s"]]
NOW_MS = 1_790_000_000_000


def told(state: Any = "ok", *, by: str = "a", at_ms: int = NOW_MS, good_ms: int = 0, **change: Any) -> Told:
    return Told(state, change.get("tried", []), good_ms, change.get("is_opener", False), at_ms, by)


def test_a_probe_counts_by_its_best_address_and_not_against_a_refusal() -> None:
    way = Direction()
    way.probed([])
    assert (way.state, way.told(NOW_MS, is_opener=False)) == ("untried", {"state": "untried"})
    way.probed([[ADDRESS, "no answer"], ["/ip4/192.0.2.2/udp/1/quic-v1", ""]])
    assert way.told(NOW_MS, is_opener=True) == {"state": "ok", "opened": True}
    way.probed(SILENT)
    assert (way.state, way.tried) == ("unreachable", SILENT)
    way.refused(ADDRESS, "not_admitted: no")
    way.probed([[ADDRESS, ""]])
    assert (way.state, way.tried) == ("unreachable", [[ADDRESS, "not_admitted: no"]])


def test_an_answer_ends_a_refusal_and_says_nothing_of_a_way_that_the_other_side_opened() -> None:
    way = Direction()
    way.probed(SILENT)
    assert not way.answered(NOW_MS, is_outbound=False)
    assert (way.state, way.good_ms) == ("unreachable", NOW_MS)
    way.refused(ADDRESS, "no")
    assert way.answered(NOW_MS, is_outbound=False), "to be tried anew"
    assert way.state == "untried"
    way.refused(ADDRESS, "no")
    assert not way.answered(NOW_MS, is_outbound=True)
    assert way.state == "ok"


def test_what_is_told_is_bounded_and_read_as_it_was_told() -> None:
    way = Direction(good_ms=NOW_MS - 5000)
    way.failed([["x" * 500, "y" * 500]] * 9)
    said = {"a": {"b": way.told(NOW_MS, is_opener=False)}}
    assert directions.is_form(said)
    (found,) = directions.read(said, "a", NOW_MS).values()
    assert (found.state, found.good_ms, found.told_ms) == ("unreachable", NOW_MS - 5000, NOW_MS)
    assert len(found.tried) == limits.DIRECTION_TRIED_MAX
    assert Direction(good_ms=NOW_MS + 9).told(NOW_MS, is_opener=False)["good_ms_ago"] == 0, "a clock set back"


def test_a_state_of_a_later_version_is_an_unknown_one() -> None:
    assert directions.read({"a": {"b": {"state": "later"}}}, "a", NOW_MS)["a", "b"].state == "unknown"


def test_a_device_s_own_word_comes_first_and_of_others_the_last() -> None:
    own, early, late = (
        told(at_ms=1),
        told("unreachable", by="c", at_ms=5),
        told("unreachable", by="d", at_ms=9),
    )
    pair = ("a", "b")
    assert directions.newest([{pair: early}, {pair: own}, {pair: late}]) == {pair: own}
    assert directions.newest([{pair: late}, {pair: early}]) == {pair: late}


def test_what_fails_is_passed_on_from_who_has_it_while_it_is_fresh() -> None:
    old_ms = NOW_MS - 1000 * int(limits.STATUS_SILENCE_S_MAX) - 1
    tellings = {
        ("a", "b"): told("unreachable", at_ms=NOW_MS - 4000, good_ms=NOW_MS - 9000, tried=SILENT),
        ("a", "c"): told("ok"),
        ("a", "d"): told("unreachable", by="e"),
        ("a", "e"): told("unreachable", at_ms=old_ms),
        ("a", "f"): told("unreachable", at_ms=NOW_MS + 1),
    }
    said = directions.passed_on(directions.failing(tellings).items(), NOW_MS)
    assert said == {
        "a": {
            "b": {"state": "unreachable", "tried": SILENT, "told_ms_ago": 4000, "good_ms_ago": 9000},
            "f": {"state": "unreachable", "tried": [], "told_ms_ago": 0},
        }
    }
    assert directions.is_form(said)
    many = {("a", f"p{n}"): told("unreachable") for n in range(200)}
    assert len(directions.passed_on(many.items(), NOW_MS)["a"]) == limits.DIRECTIONS_PASSED_ON_MAX


@pytest.mark.parametrize(
    ("there", "back", "state"),
    [
        ("ok", "ok", "both"),
        ("ok", "unreachable", "one_way"),
        ("untried", "ok", "half"),
        ("ok", "unknown", "half"),
        ("unreachable", "unknown", "none"),
        ("unreachable", "unreachable", "none"),
        ("untried", "unknown", "unknown"),
    ],
)
def test_a_link_is_as_good_as_its_directions(there: str, back: str, state: str) -> None:
    assert directions.state_of(there, back) == state
    assert directions.state_of(back, there) == state


def view(tellings: dict[directions.Pair, Told], *members: str, **change: Any) -> list[dict[str, Any]]:
    return directions.links_view(
        "me", ["me", *members], tellings, rtt_ms=change.get("rtt_ms", {}), asked_ms=change.get("asked_ms", {}),
        now_ms=NOW_MS,
    )  # fmt: skip


def test_links_of_this_device_come_first_and_those_with_trouble_before_the_others() -> None:
    tellings = {
        ("me", "a"): told(by="me"), ("a", "me"): told(), ("me", "b"): told("unreachable", by="me", tried=SILENT),
        ("a", "b"): told(), ("b", "a"): told(by="b"), ("c", "a"): told("unreachable", by="c"),
        ("a", "stranger"): told(), ("a", "a"): told(),
    }  # fmt: skip
    rows = view(tellings, "a", "b", "c", rtt_ms={("me", "a"): 2.5}, asked_ms={"b": NOW_MS - 7})
    assert [(row["peers"], row["state"]) for row in rows] == [
        (["me", "b"], "none"),
        (["me", "c"], "unknown"),
        (["me", "a"], "both"),
        (["a", "c"], "none"),
        (["a", "b"], "both"),
    ]
    there, back = rows[0]["directions"]
    tried = [{"address": ADDRESS, "reason": "no answer within 3 s"}]
    assert (there["from"], there["to"], there["tried"]) == ("me", "b", tried)
    assert (back["state"], back["last_good_ms"]) == ("unknown", NOW_MS - 7)
    assert (back["told_by"], back["told_ms"]) == (None, None)
    assert [way["rtt_ms"] for way in rows[2]["directions"]] == [2.5, None]


def test_what_was_told_long_ago_is_not_known_any_more() -> None:
    old_ms = NOW_MS - 60_000
    late = told("ok", at_ms=old_ms, good_ms=old_ms - 10, tried=SILENT, is_opener=True)
    (row,) = view(
        {("a", "me"): late, ("me", "a"): told(by="me", is_opener=True)}, "a", rtt_ms={("a", "me"): 3.0}
    )
    there, back = row["directions"]
    assert there["opened"]
    assert (back["state"], back["opened"], back["tried"], back["rtt_ms"]) == ("unknown", False, [], None)
    assert (back["last_good_ms"], back["told_ms"]) == (old_ms - 10, old_ms)
    assert row["state"] == "half"


def test_a_large_mesh_shows_so_many_links_and_no_more() -> None:
    names = [f"p{n}" for n in range(40)]
    tellings = {(one, other): told(by=one) for one in names for other in names if one != other}
    rows = view(tellings, *names)
    assert len(rows) == limits.LINKS_SHOWN_MAX
    assert all("me" in row["peers"] for row in rows[:40])
