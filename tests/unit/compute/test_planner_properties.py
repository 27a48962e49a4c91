"""What holds of every plan for every mesh and every model."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import limits
from p2pnode.compute import cost
from p2pnode.compute.builder import Builder
from p2pnode.compute.cost import Group, Mesh, ModelShape
from p2pnode.compute.plan import Plan, from_dict
from p2pnode.compute.planner import Wish, plan
from p2pnode.compute.search import Search, Unit
from p2pnode.errors import NoPlan, PlanError
from tests.kit.meshes import GIB, meshes, shapes
from tests.kit.planning import ALL, HEAD, reasons


@given(meshes(), shapes(), st.sampled_from(["auto", *sorted(ALL - {"tensor_rpc"}), "disaggregated"]))
def test_a_plan_can_always_be_carried_out(found: Mesh, model: ModelShape, mode: str) -> None:
    """Layers exactly once, nobody over its memory, cuts on boundaries, and it reads back as itself."""
    try:
        made = plan(Wish(HEAD, mode=mode, auto_modes=ALL), model, found).plan  # type: ignore[arg-type]
    except NoPlan as error:
        refused = bool(error.details["rejections"] and error.hint)
        assert refused, "a refusal has reasons and a way on"
        return
    ends = [0]
    for stage in made.stages:
        assert stage.layer_first == ends[-1]
        ends.append(stage.layer_end)
    assert ends[-1] == model.layer_count
    assert all(end % model.boundary == 0 for end in ends[:-1])
    for peer in made.peers:
        assert made.memory_of(peer) <= found.devices[peer].memory_free_bytes
    assert from_dict(json.loads(json.dumps(made.as_dict()))) == made


@given(meshes(), shapes())
def test_never_clearly_slower_than_the_best_single_device_by_its_own_prediction(
    found: Mesh, model: ModelShape
) -> None:
    """Local is kept where another device alone is faster by less than predictions err."""
    wish = Wish(HEAD, auto_modes=ALL)
    builder = Builder(wish, model, found)
    single = [builder.build("pipeline", (Group(0, model.layer_count, (peer,)),)) for peer in found.devices]
    fitting = [one.prediction.decode_s for one in single if isinstance(one, Plan)]
    if fitting:
        made = plan(wish, model, found).plan
        assert made.prediction.decode_s <= min(fitting) * limits.PLAN_GAIN_MIN * (1 + 1e-9)


@given(meshes(devices_max=3), shapes())
def test_the_search_finds_what_trying_everything_finds(found: Mesh, model: ModelShape) -> None:
    """Every order of every subset with every cut."""
    wish = Wish(HEAD)
    search = Search(wish, model, found, [Unit((peer,)) for peer in found.devices])
    best = search._best(None, fixed_order=False)
    builder = Builder(wish, model, found)
    seen: list[float] = []
    inner = range(model.boundary, model.layer_count, model.boundary)
    for count in range(1, len(found.devices) + 1):
        for peers in itertools.permutations(found.devices, count):
            for middle in itertools.combinations(inner, count - 1):
                ends = [0, *middle, model.layer_count]
                groups = [
                    Group(a, b, (p,)) for p, (a, b) in zip(peers, itertools.pairwise(ends), strict=True)
                ]
                made = builder.build("pipeline", groups)
                if isinstance(made, Plan):
                    seen.append(made.prediction.decode_s)
    if best is None:
        assert not seen
    else:
        head = found.devices[HEAD]
        made_s = best.seconds + cost.output_decode_s(model, head) + head.step_overhead_s
        assert made_s == pytest.approx(min(seen))


@given(meshes(), shapes(), st.integers(1, 4))
def test_an_exact_number_of_stages_is_obeyed(found: Mesh, model: ModelShape, stages: int) -> None:
    try:
        made = plan(Wish(HEAD, mode="pipeline", stages=stages), model, found).plan
    except PlanError:
        return
    assert len(made.stages) == stages


@given(meshes(), shapes(), st.sampled_from([0.2, 0.5, 1.0]))
def test_caps_are_obeyed(found: Mesh, model: ModelShape, gib: float) -> None:
    caps = {name: int(gib * GIB) for name in ("n0", "n1") if f"peer-{name}" in found.devices}
    try:
        made = plan(Wish(HEAD, memory_max_bytes=caps), model, found).plan
    except NoPlan:
        return
    for name, cap in caps.items():
        assert made.memory_of(f"peer-{name}") <= cap


@given(meshes(), shapes())
def test_excluded_devices_get_nothing(found: Mesh, model: ModelShape) -> None:
    if len(found.devices) < 2:
        return
    try:
        planned = plan(Wish(HEAD, auto_modes=ALL, excluded=frozenset({"n1"})), model, found)
    except NoPlan:
        return
    assert "peer-n1" not in planned.plan.peers
    assert "peer-n1" not in {spare.peer for spare in planned.plan.spares}
    assert reasons(planned)["n1"] == "you excluded it"


@given(meshes(), shapes())
def test_spares_could_take_over(found: Mesh, model: ModelShape) -> None:
    try:
        made = plan(Wish(HEAD, mode="pipeline"), model, found).plan
    except NoPlan:
        return
    for spare in made.spares:
        stage = made.stages[spare.stage]
        assert spare.peer not in stage.peers
        free = found.devices[spare.peer].memory_free_bytes - made.memory_of(spare.peer)
        assert free >= stage.ranks[0].memory_bytes
