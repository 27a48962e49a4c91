"""What devices say they hold of a model, and spares that step in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from p2pnode import limits
from p2pnode.compute.plan import Plan, Spare
from p2pnode.errors import RemoteProtocolError
from p2pnode.node.heard import check_status
from p2pnode.node.planner_view import held_by
from p2pnode.node.planning import spare_blocks
from p2pnode.transport.messages import Status


def status(**entry: Any) -> Status:
    return Status(
        name="x", version="1", role="worker", mesh_key=b"", addresses=[], grants=[], revocations=[],
        models=[{"name": "m", "manifest": "c", **entry}], capability={}, state="active", now_ms=1,
        checkpoint="", extra={},
    )  # fmt: skip


@pytest.mark.parametrize(
    "held",
    [
        {},
        {"layers": []},
        {"layers": [[0, 1], [3, limits.MODEL_LAYERS_MAX]], "ends": True},
    ],
)
def test_what_can_be_held_is_heard(held: dict[str, Any]) -> None:
    check_status(status(held=held))


@pytest.mark.parametrize(
    "held",
    [
        "all",
        [],
        {"layers": "0-4"},
        {"layers": [[0]]},
        {"layers": [[0, 1, 2]]},
        {"layers": [[2, 2]]},
        {"layers": [[-1, 2]]},
        {"layers": [[False, True]]},
        {"layers": [[0.0, 1.0]]},
        {"layers": [[0, limits.MODEL_LAYERS_MAX + 1]]},
        {"layers": [[n, n + 1] for n in range(limits.HELD_RANGES_MAX + 1)]},
    ],
)
def test_what_cannot_be_held_is_refused(held: object) -> None:
    with pytest.raises(RemoteProtocolError):
        check_status(status(held=held))


def test_an_older_version_says_only_whether_it_has_all() -> None:
    whole = held_by(status(complete=True).models, "c")
    assert (whole.layers, whole.ends) == (((0, limits.MODEL_LAYERS_MAX),), True)
    for models in (status(complete=False).models, status(complete=True, held={}).models, []):
        nothing = held_by(models, "c")
        assert (nothing.layers, nothing.ends) == ((), False)
    part = held_by(status(held={"layers": [[1, 3]], "ends": False}).models, "c")
    assert (part.layers, part.ends) == (((1, 3),), False)


def plan(*spares: Spare, ranks: int = 1) -> Plan:
    def stage(peer: str, first: int, end: int) -> Any:
        return SimpleNamespace(peer=peer, layer_first=first, layer_end=end, ranks=(1,) * ranks)

    made = SimpleNamespace(stages=(stage("a", 0, 4), stage("b", 4, 8), stage("c", 8, 9)), spares=spares)
    return cast(Plan, made)


def test_spares_take_the_layers_of_those_who_are_gone() -> None:
    made = plan(Spare(1, "d"), Spare(2, "b"))
    assert spare_blocks(made, ["b"]) == [("a", 0, 4), ("d", 4, 8), ("c", 8, 9)]
    assert spare_blocks(made, ["c"]) == [("a", 0, 4), ("b", 4, 8), ("b", 8, 9)]


def test_without_a_spare_that_is_there_the_planner_decides() -> None:
    assert spare_blocks(plan(Spare(1, "d")), ["a"]) is None
    assert spare_blocks(plan(Spare(1, "d")), ["b", "d"]) is None
    assert spare_blocks(plan(Spare(1, "d"), ranks=2), ["b"]) is None
