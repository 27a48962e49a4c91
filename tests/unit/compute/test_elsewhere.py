"""Who is asked to answer whole, and in which order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pnode.compute.cost import Device, Mesh
from p2pnode.compute.elsewhere import Elsewhere, Whole, able, elsewhere_of, in_order
from p2pnode.compute.plan import Plan
from p2pnode.compute.planner import Wish, plan
from tests.kit.meshes import GIB, device, mesh, shape

HEAD = "peer-n0"


def holder(name: str, gb_per_s: float = 10.0, **changes: object) -> Device:
    made = replace(device(name, gb_per_s=gb_per_s), held_layers=frozenset(range(8)), holds_ends=True)
    return replace(made, **changes)  # type: ignore[arg-type]


def own_plan(found: Mesh, mode: str = "local") -> Plan:
    return plan(Wish(HEAD, mode=mode), shape(), found).plan  # type: ignore[arg-type]


def names(found: list[Whole]) -> list[str]:
    return [one.name for one in found]


def test_holders_are_asked_the_soonest_first() -> None:
    found = mesh(device("n0"), holder("n1", 5), holder("n2", 20), device("n3"))
    whole, rejections = able(Wish(HEAD), shape(), found)
    assert names(whole) == ["n2", "n1"]
    assert rejections == [], "n3 holds nothing, which is no news"
    weights_s = (8 * 100 + 50) * 2**20 / 20e9
    assert whole[0].decode_s == pytest.approx(weights_s, rel=0.05), "no round trip for each token"
    assert whole[0].tokens_per_s == pytest.approx(1 / whole[0].decode_s)
    assert whole[0].answer_s > 128 * whole[0].decode_s
    assert Whole("p", "n", 0.0, 0.0).tokens_per_s == 0


def test_a_far_holder_is_later_with_the_first_token_only() -> None:
    near, far = mesh(device("n0"), holder("n1"), rtt_ms=1), mesh(device("n0"), holder("n1"), rtt_ms=200)
    (a,), (b,) = able(Wish(HEAD), shape(), near)[0], able(Wish(HEAD), shape(), far)[0]
    assert a.decode_s == b.decode_s
    assert b.first_token_s - a.first_token_s == pytest.approx(0.199)


@pytest.mark.parametrize(
    ("changes", "wish", "reason"),
    [
        ({"is_paused": True}, Wish(HEAD), "it is paused"),
        ({"silent_s": 4.2}, Wish(HEAD), "it may be gone: silent for 4 s"),
        ({}, Wish(HEAD, excluded=frozenset({"n1"})), "you excluded it"),
        ({"decode_bytes_per_s": 0.0}, Wish(HEAD), "its speed is not measured yet"),
        ({"on_battery": True}, Wish(HEAD, battery="never"), "it runs on its battery, and the setting"),
        ({"memory_total_bytes": GIB // 2}, Wish(HEAD), "it needs "),
    ],
)
def test_who_cannot_says_why(changes: dict[str, object], wish: Wish, reason: str) -> None:
    whole, rejections = able(wish, shape(), mesh(device("n0"), holder("n1", **changes)))
    assert whole == []
    (rejection,) = rejections
    assert rejection.candidate == "whole by n1"
    assert rejection.reason.startswith(reason)


def test_a_loaded_model_is_no_reason_against_it() -> None:
    """What it holds of this model is not free any more, and need not be."""
    busy = holder("n1", memory_free_bytes=GIB // 4)
    assert names(able(Wish(HEAD), shape(), mesh(device("n0"), busy))[0]) == ["n1"]


@pytest.mark.parametrize(
    ("policy", "speed", "expected"),
    [("never", 100.0, [None]), ("needed", 100.0, [None]), ("faster", 100.0, ["peer-n1", None]),
     ("faster", 10.9, [None]), ("faster", 11.5, ["peer-n1", None])],
)  # fmt: skip
def test_who_can_do_it_alone_does_it_unless_somebody_wants_what_is_sooner(
    policy: Elsewhere, speed: float, expected: list[str | None]
) -> None:
    found = mesh(holder("n0"), holder("n1", speed))
    whole, _ = able(Wish(HEAD), shape(), found)
    assert in_order(own_plan(found), whole, policy) == expected


def test_who_would_have_to_fetch_asks_the_holder() -> None:
    found = mesh(device("n0"), holder("n1", 9.0))
    whole, _ = able(Wish(HEAD), shape(), found)
    assert in_order(own_plan(found), whole, "needed") == ["peer-n1", None]


def test_a_much_quicker_ring_goes_before_a_slow_holder() -> None:
    small = holder("n0", memory_free_bytes=int(0.6 * GIB), decode_bytes_per_s=40e9)
    found = mesh(small, holder("n1", 1.0, memory_free_bytes=GIB // 4), holder("n2", 40, memory_total_bytes=1))
    whole, _ = able(Wish(HEAD), shape(), found)
    assert names(whole) == ["n1"]
    assert in_order(own_plan(found, "pipeline"), whole, "needed") == [None]


def test_who_wants_credit_is_asked_only_when_nothing_else_can_answer() -> None:
    found = mesh(device("n0"), holder("n1", 100), holder("n2", 9))
    whole, _ = able(Wish(HEAD), shape(), found, paid={"peer-n1"})
    assert names(whole) == ["n2", "n1"]
    assert in_order(own_plan(found), whole, "needed") == ["peer-n2", None]
    assert in_order(None, whole, "needed") == ["peer-n2", "peer-n1"]
    only_paid, _ = able(Wish(HEAD), shape(), mesh(device("n0"), holder("n1")), paid={"peer-n1"})
    assert in_order(own_plan(found), only_paid, "faster") == [None]
    assert in_order(None, only_paid, "never") == [None]


def test_the_setting_is_one_of_its_words() -> None:
    assert [elsewhere_of(text) for text in ("", "x", "never", "faster")] == [
        "needed", "needed", "never", "faster"
    ]  # fmt: skip
