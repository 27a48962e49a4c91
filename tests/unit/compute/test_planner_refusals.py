"""Maps by hand and wishes that cannot be: refused, in words that say what would be possible."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pnode.compute import layout
from p2pnode.compute.planner import Rejection, Wish, plan
from p2pnode.errors import LayerGap, NoPlan, PlanError
from tests.kit.meshes import MIB, device, mesh, shape
from tests.kit.planning import HEAD, cuts, reasons

MAP = """
[[blocks]]
device = "n1"
layers = [0, 3]

[[blocks]]
device = "n0"
layers = [3, 8]
"""


def test_a_map_is_obeyed() -> None:
    made = plan(Wish(HEAD, blocks=layout.read_map(MAP)), shape(), mesh(device("n0"), device("n1"))).plan
    assert cuts(made) == [("n1", 0, 3), ("n0", 3, 8)]
    made = plan(Wish(HEAD, blocks=(("n0", 0, 8),)), shape(), mesh(device("n0"))).plan
    assert made.mode == "local"


def test_a_map_is_obeyed_whatever_becomes_of_devices_outside_it() -> None:
    found = mesh(device("n0"), device("n1"), replace(device("n2"), is_paused=True))
    made = plan(Wish(HEAD, blocks=(("n0", 0, 4), ("n1", 4, 8))), shape(), found).plan
    assert cuts(made) == [("n0", 0, 4), ("n1", 4, 8)]


@pytest.mark.parametrize(
    ("blocks", "why"),
    [
        ((("n0", 0, 3), ("n1", 4, 8)), r"layers \[3, 4\) are on no device"),
        ((("n0", 0, 5), ("n1", 4, 8)), r"layers \[4, 5\) are given twice"),
        ((("n0", 0, 7),), r"layers \[7, 8\) are on no device"),
        ((("n0", 0, 9),), r"layers \[8, 9\) are not in this model"),
        ((("n0", 3, 3),), "begins with layer 3 and ends before layer 3: it has none"),
    ],
)
def test_a_map_with_a_gap_is_refused(blocks: tuple[tuple[str, int, int], ...], why: str) -> None:
    with pytest.raises(LayerGap, match=why):
        plan(Wish(HEAD, blocks=blocks), shape(), mesh(device("n0"), device("n1")))


def test_maps_that_cannot_be_are_refused_with_the_reason() -> None:
    found = mesh(device("n0"), device("n1", 0.1))
    with pytest.raises(PlanError, match="no device is called 'n9'"):
        plan(Wish(HEAD, blocks=(("n9", 0, 8),)), shape(), found)
    with pytest.raises(NoPlan, match="n1 needs"):
        plan(Wish(HEAD, blocks=(("n0", 0, 4), ("n1", 4, 8))), shape(), found)
    with pytest.raises(LayerGap, match="multiples of 4"):
        plan(Wish(HEAD, blocks=(("n0", 0, 3), ("n1", 3, 8))), shape(boundary=4), found)
    with pytest.raises(PlanError, match="not this one"):
        plan(Wish(HEAD, blocks=(("n0", 0, 4), ("n1", 4, 8))), shape(cut_refusal="not this one"), found)


@pytest.mark.parametrize("text", ["x", "[[blocks]]\ndevice = 3", "blocks = []", "blocks = 1", "a = 1"])
def test_what_is_no_map_is_said(text: str) -> None:
    with pytest.raises(PlanError):
        layout.read_map(text)


def test_a_model_too_large_for_all_says_how_much_is_missing() -> None:
    with pytest.raises(NoPlan) as caught:
        plan(Wish(HEAD), shape(layer_mib=4000), mesh(device("n0"), device("n1")))
    assert "31.4 GiB are needed" in caught.value.hint
    assert caught.value.details["nearest"] is None
    assert caught.value.details["rejections"]


def test_a_context_that_does_not_fit_says_which_would() -> None:
    model = shape(kv_bytes_per_token=(64 * 1024,) * 8)
    with pytest.raises(NoPlan) as caught:
        plan(Wish(HEAD, n_ctx=8192), model, mesh(device("n0", 2)))
    assert caught.value.details["nearest"]["n_ctx"] < 8192
    assert "with a context of" in caught.value.hint


def test_what_would_fit_without_the_restriction_is_said() -> None:
    found = mesh(device("n0", 1), device("n1", 1))
    with pytest.raises(NoPlan) as caught:
        plan(Wish(HEAD, mode="local", memory_max_bytes={"n0": 100 * MIB}), shape(), found)
    assert "this would fit" in caught.value.hint or "needed" in caught.value.hint
    with pytest.raises(NoPlan) as caught:
        plan(Wish(HEAD, mode="pipeline", stages=3), shape(), found)
    assert "2 devices are ready, 3 stages" in caught.value.message
    assert caught.value.details["nearest"]["mode"] in ("local", "pipeline")


def test_models_that_cannot_be_cut_run_whole_or_not() -> None:
    whole = shape(cut_refusal="its layers share keys")
    assert plan(Wish(HEAD), whole, mesh(device("n0"), device("n1"))).plan.mode == "local"
    with pytest.raises(NoPlan, match="its layers share keys"):
        plan(Wish(HEAD, mode="pipeline", stages=2), whole, mesh(device("n0"), device("n1")))
    with pytest.raises(NoPlan) as caught:
        plan(Wish(HEAD, mode="pipeline"), whole, mesh(device("n0"), device("n1")))
    assert "change what was asked for" in caught.value.hint


def test_a_full_disk_is_a_reason() -> None:
    found = mesh(device("n0", disk_free_bytes=100 * MIB))
    with pytest.raises(NoPlan, match="of disk free"):
        plan(Wish(HEAD), shape(), found)
    found = mesh(device("n0", disk_free_bytes=100 * MIB, held_layers=frozenset(range(8)), holds_ends=True))
    made = plan(Wish(HEAD), shape(), found).plan
    assert (made.prediction.fetch_bytes, made.prediction.fetch_s) == (0, 0.0)


@pytest.mark.parametrize(
    "wish",
    [
        Wish(HEAD, n_ctx=9000),
        Wish(HEAD, n_ctx=0),
        Wish(HEAD, parallel=0),
        Wish(HEAD, stages=9),
        Wish(HEAD, stages=0),
        Wish(HEAD, pins={"n0": (3, 9)}),
        Wish("peer-nobody"),
        Wish(HEAD, devices=("n0", "n0")),
        Wish(HEAD, devices=("nobody",)),
        Wish(HEAD, devices=("paused",)),
        Wish(HEAD, devices=("twin",)),
        Wish(HEAD, excluded=frozenset({"nobody"})),
    ],
)
def test_impossible_wishes_are_refused(wish: Wish) -> None:
    found = mesh(
        device("n0"),
        device("paused", is_paused=True),
        device("twin"),
        replace(device("twin"), peer="peer-twin2"),
    )
    with pytest.raises(PlanError):
        plan(wish, shape(), found)


def test_a_device_outside_its_hours_says_when_it_is_back() -> None:
    rests = replace(device("attic"), is_paused=True, lending="lends itself again at 20:00 CET")
    planned = plan(Wish(HEAD), shape(), mesh(device("n0"), rests))
    assert reasons(planned) == {"attic": "it is paused, lends itself again at 20:00 CET"}


def test_a_device_that_gives_no_sign_of_life_is_no_part_and_no_spare() -> None:
    silent = replace(device("n1", gb_per_s=40), silent_s=5.0)
    planned = plan(Wish(HEAD, mode="pipeline"), shape(), mesh(device("n0"), silent, device("n2")))
    assert reasons(planned)["n1"] == "it may be gone: silent for 5 s"
    assert silent.peer not in {*planned.plan.peers, *(spare.peer for spare in planned.plan.spares)}


def test_devices_that_cannot_help_say_why() -> None:
    found = mesh(device("n0"), device("n1", is_paused=True), device("n2", gb_per_s=0))
    planned = plan(Wish(HEAD), shape(), found)
    assert reasons(planned) == {"n1": "it is paused", "n2": "its speed is not measured yet"}
    assert planned.rejections[0].as_dict() == Rejection("n1", "it is paused").as_dict()
