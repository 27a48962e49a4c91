"""Which plans embed: those whose devices are all near, for an embedding leaves no receipts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from p2pnode.compute.local_route import LocalRoute
from p2pnode.compute.pipeline_route import PipelineRoute
from p2pnode.errors import Forbidden
from p2pnode.network import Path
from p2pnode.node.pooling import Pooling
from p2pnode.units import PeerId
from tests.kit.fake_engine import FakeEngine

ME, NEAR, FAR = PeerId("me"), PeerId("near"), PeerId("far")
PATHS: dict[PeerId, Path] = {NEAR: "lan", FAR: "wan"}
RING = PipelineRoute(FakeEngine(), first_unit=None, output_unit=1, send=None)


def pooling(active: Any, *, spread: bool = True, causal: bool | None = None, fits: bool = True) -> Pooling:
    async def choose(_: Any) -> Any:
        return active

    async def with_others(_: Any) -> Any:
        return None if fits else active

    async def slim_index(_: Any) -> Any:
        return SimpleNamespace(parameter=lambda name: causal if name == "attention.causal" else None)

    parts: Any = {
        "bringing": SimpleNamespace(slim_index=slim_index),
        "choosing": SimpleNamespace(may_be_spread=lambda _: spread, choose=choose, with_others=with_others),
        "failover": None,
        "loads": None,
        "new_session": None,
        "new_id": None,
    }
    return Pooling(me=ME, path=PATHS.__getitem__, **parts)


def plan(*peers: PeerId, route: Any = RING, complete: bool = True) -> Any:
    model = SimpleNamespace(name="toy", is_complete_here=complete)
    return SimpleNamespace(route=route, model=model, stages=[{"peer": peer} for peer in peers])


async def test_a_plan_of_near_devices_embeds() -> None:
    active = plan(ME, NEAR)
    assert await pooling(active).plan_of(active.model) is active


@pytest.mark.parametrize("wish", [{"spread": False}, {"causal": False}])
async def test_what_no_plan_can_do_is_for_this_device(wish: dict[str, bool]) -> None:
    """Nothing is chosen then, so nothing is loaded in vain."""
    active = plan(ME, NEAR)
    assert await pooling(active, **wish).plan_of(active.model) is None


async def test_what_has_no_room_here_is_planned_with_others() -> None:
    active = plan(ME, NEAR)
    small = pooling(active, spread=False, fits=False)
    assert await small.plan_of(active.model) is active
    assert await small.plan_of(active.model, is_loaded=True) is None, "it is here whole: nothing is gained"
    assert await pooling(active, spread=False, fits=False, causal=False).plan_of(active.model) is None


async def test_a_route_without_rows_is_for_this_device() -> None:
    active = plan(ME, route=LocalRoute(FakeEngine(), 1))
    assert await pooling(active).plan_of(active.model) is None


async def test_devices_from_outside_do_not_embed() -> None:
    """This device does it alone if it has the model, else it says why nobody does."""
    active = plan(ME, FAR)
    assert await pooling(active).plan_of(active.model) is None
    active = plan(ME, NEAR, FAR, complete=False)
    with pytest.raises(Forbidden, match="no receipts"):
        await pooling(active).plan_of(active.model)
