"""Devices on their battery or with dear traffic are spared, not banned; other versions of llama.cpp are kept apart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pnode.compute.care import Policy
from p2pnode.compute.cost import Device
from p2pnode.compute.planner import Planned, Wish, plan
from p2pnode.errors import NoPlan, PlanError
from tests.kit.meshes import device, mesh, shape

HEAD = "peer-n0"
EVERY_LAYER = frozenset(range(8))


def used(planned: Planned) -> set[str]:
    return {peer.removeprefix("peer-") for peer in planned.plan.peers} - {"n0"}


def reason(planned: Planned, name: str) -> str:
    return next(r.reason for r in planned.rejections if r.candidate == name)


def costly(kind: str, name: str = "n1", gb_per_s: float = 10.0, gib: float = 4.0) -> Device:
    made = device(name, gib=gib, gb_per_s=gb_per_s)
    if kind == "battery":
        return replace(made, on_battery=True)
    return replace(made, is_metered=True, held_layers=EVERY_LAYER, holds_ends=True)


@pytest.mark.parametrize(
    ("kind", "words"), [("battery", "it runs on its battery"), ("metered", "its traffic costs money")]
)
class TestSparing:
    def test_a_gain_that_is_not_large_is_given_up_with_numbers(self, kind: str, words: str) -> None:
        found = mesh(device("n0"), costly(kind, gb_per_s=15))
        planned = plan(Wish(HEAD), shape(), found)
        assert used(planned) == set()
        assert reason(planned, "n1").startswith(f"{words}, and is spared: ")
        (numbers,) = [r.numbers for r in planned.rejections if r.candidate == "n1" and r.numbers]
        assert numbers["tokens_per_s"] > numbers["best_tokens_per_s"] > 0

    def test_a_device_that_is_of_no_use_is_not_spared(self, kind: str, words: str) -> None:
        planned = plan(Wish(HEAD), shape(), mesh(device("n0"), costly(kind, gb_per_s=0.1)))
        assert used(planned) == set()
        assert words not in reason(planned, "n1")

    def test_another_device_is_taken_instead(self, kind: str, words: str) -> None:
        small = device("n0", gib=0.6)
        found = mesh(small, costly(kind, gb_per_s=15), device("n2"))
        assert used(plan(Wish(HEAD), shape(), found)) == {"n2"}
        assert words in reason(plan(Wish(HEAD), shape(), found), "n1")

    def test_it_is_used_where_nothing_fits_without_it(self, kind: str, words: str) -> None:
        planned = plan(Wish(HEAD), shape(), mesh(device("n0", gib=0.6), costly(kind)))
        assert used(planned) == {"n1"}
        assert f"n1: {words}; used all the same: nothing fits without it" in planned.plan.reasons

    def test_it_is_used_where_that_is_twice_as_fast(self, kind: str, words: str) -> None:
        planned = plan(Wish(HEAD), shape(), mesh(device("n0"), costly(kind, gb_per_s=100)))
        assert used(planned) == {"n1"}
        assert any(r.startswith(f"n1: {words}; used all the same: ") for r in planned.plan.reasons)

    def test_who_names_it_has_decided(self, kind: str, words: str) -> None:
        found = mesh(device("n0"), costly(kind))
        for wish in (
            Wish(HEAD, mode="pipeline", devices=("n0", "n1")),
            Wish(HEAD, blocks=(("n0", 0, 4), ("n1", 4, 8))),
            Wish(HEAD, mode="pipeline", stages=2, pins={"n1": (4, 8)}),
        ):
            planned = plan(wish, shape(), found)
            assert used(planned) == {"n1"}
            assert words not in str(planned.plan.reasons)

    def test_the_operator_may_count_it_like_any_other(self, kind: str, words: str) -> None:
        found = mesh(device("n0"), costly(kind, gb_per_s=15))
        wish = replace(Wish(HEAD), **{kind: "use"})  # type: ignore[arg-type]
        planned = plan(wish, shape(), found)
        assert used(planned) == {"n1"}
        assert words not in str(planned.plan.reasons)

    def test_the_operator_may_leave_it_out(self, kind: str, words: str) -> None:
        wish = replace(Wish(HEAD), **{kind: "never"})  # type: ignore[arg-type]
        with pytest.raises(NoPlan, match=f"n1: {words}, and the setting plan.{kind} is never"):
            plan(wish, shape(), mesh(device("n0", gib=0.6), costly(kind)))
        planned = plan(wish, shape(), mesh(device("n0"), costly(kind, gb_per_s=100)))
        assert used(planned) == set()

    def test_a_spare_that_costs_nothing_goes_before(self, kind: str, words: str) -> None:
        found = mesh(device("n0"), device("n1"), costly(kind, "n2", gb_per_s=50), device("n3", gb_per_s=5))
        made = plan(Wish(HEAD, mode="pipeline", devices=("n0", "n1")), shape(), found).plan
        assert [spare.peer for spare in made.spares] == ["peer-n3"], words


def test_the_head_is_not_spared() -> None:
    found = mesh(replace(device("n0"), on_battery=True), device("n1", gb_per_s=9))
    planned = plan(Wish(HEAD), shape(), found)
    assert planned.plan.mode == "local"


def test_prompts_are_compared_by_their_first_token() -> None:
    slow, quick = device("n1", gb_per_s=5), replace(device("n2", gb_per_s=40), on_battery=True)
    planned = plan(Wish(HEAD, mode="disaggregated"), shape(), mesh(device("n0"), slow, quick))
    assert used(planned) == {"n2"}
    assert any("to the first token with it" in r for r in planned.plan.reasons)


# --- versions --------------------------------------------------------------------------------------
def versions(one: str, other: str) -> tuple[Device, Device]:
    return replace(device("n0", gib=0.6), version=one), replace(device("n1"), version=other)


def test_another_version_is_left_out_and_said() -> None:
    found = mesh(*versions("0.3.36 aaaa", "0.3.30 bbbb"))
    with pytest.raises(
        NoPlan, match=r"n1: its llama.cpp is 0\.3\.30 bbbb, n0's is 0\.3\.36 aaaa: texts could"
    ):
        plan(Wish(HEAD), shape(), found)


@pytest.mark.parametrize(
    "wish", [Wish(HEAD, devices=("n0", "n1")), Wish(HEAD, blocks=(("n0", 0, 2), ("n1", 2, 8)))]
)
def test_another_version_is_refused_by_name(wish: Wish) -> None:
    with pytest.raises(PlanError, match=r"n1 .*, but its llama.cpp is two, n0's is one") as caught:
        plan(wish, shape(), mesh(*versions("one", "two")))
    assert wish.blocks is not None or "plan.versions any" in str(caught.value.hint)


def test_another_version_is_allowed_with_a_warning() -> None:
    planned = plan(Wish(HEAD, versions="any"), shape(), mesh(*versions("one", "two")))
    assert used(planned) == {"n1"}
    assert planned.plan.reasons[-1] == (
        "n1 computes with llama.cpp two, n0 with one: texts may differ from one device's"
    )


@pytest.mark.parametrize("pair", [("one", "one"), ("", "two"), ("one", "")])
def test_equal_and_untold_versions_work_together(pair: tuple[str, str]) -> None:
    planned = plan(Wish(HEAD), shape(), mesh(*versions(*pair)))
    assert used(planned) == {"n1"}
    assert "llama.cpp" not in str(planned.plan.reasons)


def test_a_spare_computes_with_the_same_version() -> None:
    n0, n1 = versions("one", "one")
    others = replace(device("n2", gb_per_s=50), version="two"), replace(device("n3"), version="one")
    made = plan(Wish(HEAD, devices=("n0", "n1")), shape(), mesh(n0, n1, *others)).plan
    assert {spare.peer for spare in made.spares} == {"peer-n3"}


def test_settings_that_are_no_words_count_as_not_set() -> None:
    assert Policy.of(lambda _: "") == Policy.of(lambda _: "perhaps") == Policy()
    stored = {"plan.battery": "never", "plan.metered": "use", "plan.versions": "any"}
    assert Policy.of(stored.__getitem__) == Policy("never", "use", "any")
