"""Plans: what is asked for is obeyed or refused in words, what is chosen is the fastest that fits."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import limits
from p2pnode.compute import cost, layout
from p2pnode.compute.builder import Builder
from p2pnode.compute.cost import Group, Mesh, ModelShape
from p2pnode.compute.plan import Plan, from_dict
from p2pnode.compute.planner import Planned, Rejection, Wish, label_of, plan
from p2pnode.compute.search import Search, Unit
from p2pnode.compute.wish import size_text
from p2pnode.errors import LayerGap, NoPlan, PlanError
from tests.kit.meshes import GIB, MIB, device, mesh, meshes, shape, shapes

ALL = frozenset({"local", "pipeline", "tensor", "hybrid", "streamed", "tensor_rpc"})
HEAD = "peer-n0"


def cuts(made: Plan) -> list[tuple[str, int, int]]:
    return [
        ("+".join(p.removeprefix("peer-") for p in s.peers), s.layer_first, s.layer_end) for s in made.stages
    ]


def reasons(planned: Planned) -> dict[str, str]:
    return {r.candidate: r.reason for r in planned.rejections}


# --- properties --------------------------------------------------------------------------------------
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
    assert label_of(made, found) == made.reasons[0].split(":")[0]


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


# --- choices -----------------------------------------------------------------------------------------
def test_one_device_plans_locally() -> None:
    made = plan(Wish(HEAD), shape(), mesh(device("n0"))).plan
    assert (made.mode, cuts(made)) == ("local", [("n0", 0, 8)])
    assert made.output_in_last_stage
    assert made.output_memory_bytes == 0
    assert made.spares == ()


def test_a_far_away_helper_is_left_out_with_numbers() -> None:
    planned = plan(Wish(HEAD), shape(), mesh(device("n0"), device("n1", gb_per_s=20), rtt_ms=200))
    assert planned.plan.mode == "local"
    assert "ms of network" in reasons(planned)["n1"]


def test_a_much_faster_device_gets_it_all_and_the_head_samples() -> None:
    made = plan(Wish(HEAD), shape(), mesh(device("n0"), device("n1", gb_per_s=100))).plan
    assert (made.mode, cuts(made)) == ("pipeline", [("n1", 0, 8)])
    assert not made.output_in_last_stage
    assert made.output_memory_bytes > 50 * MIB


def test_a_slight_gain_is_not_worth_a_second_device() -> None:
    planned = plan(
        Wish(HEAD), shape(layer_mib=1000), mesh(device("n0", 16), device("n1", 16, 10.5), rtt_ms=0.1)
    )
    assert planned.plan.mode == "local"
    assert any("predictions err" in reason for reason in reasons(planned).values())


def test_what_does_not_fit_one_is_cut() -> None:
    planned = plan(Wish(HEAD), shape(), mesh(device("n0", 0.45), device("n1", 0.45), device("n2", 0.45)))
    assert [c[0] for c in cuts(planned.plan)] == ["n0", "n1", "n2"]
    assert "has 460.8 MiB of memory free" in reasons(planned)["local n0 [0, 8)"]


def test_equal_devices_get_equal_stages() -> None:
    """One stream would not care; prompts do."""
    made = plan(
        Wish(HEAD, mode="pipeline", stages=4), shape(), mesh(*(device(f"n{i}") for i in range(4)))
    ).plan
    assert [b - a for _, a, b in cuts(made)] == [2, 2, 2, 2]
    assert cuts(made)[0][0] == "n0"


def test_devices_are_used_in_the_order_given() -> None:
    found = mesh(device("n0"), device("n1"), device("n2"))
    made = plan(Wish(HEAD, mode="pipeline", devices=("n2", "n1")), shape(), found).plan
    assert [c[0] for c in cuts(made)] == ["n2", "n1"]
    made = plan(Wish(HEAD, devices=("n0",)), shape(), found).plan
    assert made.mode == "local"


def test_pins_are_obeyed() -> None:
    found = mesh(device("n0"), device("n1", gb_per_s=1), device("n2", gb_per_s=100))
    made = plan(Wish(HEAD, pins={"n1": (2, 5)}), shape(), found).plan
    first, end = next((a, b) for name, a, b in cuts(made) if name == "n1")
    assert (first, end) == (2, 5)


def test_architectures_are_cut_where_they_may_be() -> None:
    made = plan(
        Wish(HEAD, mode="pipeline", stages=2), shape(boundary=4), mesh(device("n0"), device("n1", gb_per_s=3))
    ).plan
    assert [c[1:] for c in cuts(made)] == [(0, 4), (4, 8)]


def test_an_architecture_with_too_few_places_to_cut_says_so() -> None:
    with pytest.raises(NoPlan, match="pipeline of 2"):
        plan(Wish(HEAD, mode="pipeline", stages=2), shape(3, boundary=4), mesh(device("n0"), device("n1")))


def test_who_asks_for_a_pipeline_gets_one() -> None:
    """And is told that one device would be faster."""
    planned = plan(Wish(HEAD, mode="pipeline"), shape(), mesh(device("n0"), device("n1"), rtt_ms=20))
    assert [c[0] for c in cuts(planned.plan)] == ["n0", "n1"]
    assert "a pipeline was asked for" in reasons(planned)["local n0 [0, 8)"]
    assert plan(Wish(HEAD, mode="pipeline"), shape(), mesh(device("n0"))).plan.mode == "local"


def test_the_memory_strategy_is_the_seeds_rule() -> None:
    """floor(share x layers), the remainder to the largest."""
    found = mesh(device("n0", 2), device("n1", 5), device("n2", 3))
    made = plan(Wish(HEAD, mode="pipeline", strategy="memory", stages=3), shape(11), found).plan
    assert sorted((name, b - a) for name, a, b in cuts(made)) == [("n0", 2), ("n1", 6), ("n2", 3)]
    assert {s.role for s in made.stages} == {"head", "middle", "tail"}
    assert len(plan(Wish(HEAD, strategy="memory"), shape(), found).plan.stages) == 3
    assert plan(Wish(HEAD, strategy="memory"), shape(), mesh(device("n0"))).plan.mode == "local"
    assert plan(Wish(HEAD, mode="local", strategy="memory"), shape(), found).plan.mode == "local"
    with pytest.raises(NoPlan, match="worth a layer"):
        plan(
            Wish(HEAD, mode="pipeline", strategy="memory", stages=2),
            shape(4),
            mesh(device("n0", 9), device("n1", 0.5)),
        )
    with pytest.raises(NoPlan, match="3 devices are ready"):
        plan(Wish(HEAD, mode="pipeline", strategy="memory", stages=4), shape(), found)
    made = plan(Wish(HEAD, mode="pipeline", strategy="memory", devices=("n2", "n0")), shape(), found).plan
    assert [c[0] for c in cuts(made)] == ["n2", "n0"]


def test_near_devices_form_a_tensor_group() -> None:
    found = mesh(device("n0", 8), device("n1", 8), rtt_ms=0.05)
    planned = plan(Wish(HEAD, auto_modes=ALL), shape(layer_mib=500), found)
    assert (planned.plan.mode, cuts(planned.plan)) == ("tensor", [("n0+n1", 0, 8)])
    assert planned.plan.stages[0].shares == (2, 2)
    assert planned.plan.output_memory_bytes > 0
    assert (
        planned.plan.prediction.decode_s
        < plan(Wish(HEAD, mode="local"), shape(layer_mib=500), found).plan.prediction.decode_s
    )


def test_a_crowd_of_near_devices_makes_several_groups() -> None:
    """Four heads: groups of four at most, and far ones apart."""
    names = [f"n{i}" for i in range(7)]
    far = {(name, "n6"): 30.0 for name in names[:6]}
    found = mesh(*(device(name, 1) for name in names), rtt_ms=0.05, rtts=far)
    made = plan(Wish(HEAD, mode="hybrid"), shape(24, 150), found).plan
    assert max(len(stage.peers) for stage in made.stages) == 4
    assert "peer-n6" not in {peer for stage in made.stages for peer in stage.peers if len(stage.peers) > 1}


def test_shares_are_heads_in_proportion_to_speed() -> None:
    found = mesh(device("n0", gb_per_s=30), device("n1"), rtt_ms=0.05)
    assert plan(Wish(HEAD, mode="tensor"), shape(), found).plan.stages[0].shares == (3, 1)
    assert plan(Wish(HEAD, mode="tensor", devices=("n0", "n1")), shape(), found).plan.stages[0].shares == (
        3,
        1,
    )


def test_far_or_untimed_devices_are_no_tensor_group() -> None:
    with pytest.raises(NoPlan) as caught:
        plan(Wish(HEAD, mode="tensor"), shape(), mesh(device("n0"), device("n1"), rtt_ms=5))
    assert "5.0 ms round trip" in caught.value.message
    with pytest.raises(NoPlan, match="not been timed"):
        plan(Wish(HEAD, mode="tensor"), shape(), Mesh({d.peer: d for d in (device("n0"), device("n1"))}))
    far = mesh(device("n0"), device("n1"), device("n2"), rtt_ms=0.1, rtts={("n0", "n2"): 9, ("n1", "n2"): 9})
    with pytest.raises(NoPlan, match="2 of the 3 named devices"):
        plan(Wish(HEAD, mode="tensor", devices=("n0", "n1", "n2")), shape(), far)
    with pytest.raises(NoPlan, match="one tensor"):
        plan(Wish(HEAD, mode="tensor"), shape(shard_refusal="its tensors are one tensor"), mesh(device("n0")))


def test_a_hybrid_has_groups_and_hops() -> None:
    names = ["n0", "n1", "n2", "n3"]
    near = {("n0", "n1"): 0.05, ("n2", "n3"): 0.05}
    found = mesh(*(device(name, 1.2) for name in names), rtt_ms=10, rtts=near)
    planned = plan(Wish(HEAD, mode="hybrid"), shape(layer_mib=400), found)
    assert planned.plan.mode == "hybrid"
    assert [c[0] for c in cuts(planned.plan)] == ["n0+n1", "n2+n3"]
    found = mesh(*(device(name, 1.2) for name in names), rtt_ms=10)
    with pytest.raises(NoPlan):
        plan(Wish(HEAD, mode="hybrid"), shape(layer_mib=400), found)
    found = mesh(device("n0", 8), device("n1", 8), rtt_ms=0.05)
    assert plan(Wish(HEAD, mode="hybrid"), shape(), found).plan.mode == "tensor"
    found = mesh(*(device(name, 0.6) for name in names), rtt_ms=10, rtts=near)
    with pytest.raises(NoPlan) as caught:
        plan(Wish(HEAD, mode="hybrid"), shape(layer_mib=400), found)
    assert "parts that fit the groups" in str(caught.value.details["rejections"])


def test_a_group_is_at_most_as_large_as_there_are_heads() -> None:
    found = mesh(*(device(f"n{i}") for i in range(6)), rtt_ms=0.05)
    made = plan(
        Wish(HEAD, mode="tensor"),
        shape(layer_mib=900),
        mesh(*(device(f"n{i}", 8) for i in range(6)), rtt_ms=0.05),
    )
    assert len(made.plan.peers) <= 4
    assert found


def test_near_devices_form_as_many_groups_as_stages_are_asked_for() -> None:
    found = mesh(*(device(f"n{i}", 8) for i in range(4)), rtt_ms=0.05)
    made = plan(Wish(HEAD, mode="hybrid", stages=2), shape(), found).plan
    assert (made.mode, [len(stage.peers) for stage in made.stages]) == ("hybrid", [2, 2])
    three = mesh(*(device(f"n{i}", 8) for i in range(3)), rtt_ms=0.05)
    made = plan(Wish(HEAD, mode="hybrid", stages=2), shape(), three).plan
    assert sorted(len(stage.peers) for stage in made.stages) == [1, 2]
    with pytest.raises(NoPlan):
        plan(Wish(HEAD, mode="hybrid", stages=4), shape(), three)


def test_streaming_is_the_last_resort() -> None:
    planned = plan(Wish(HEAD, auto_modes=ALL), shape(), mesh(device("n0", 0.5)))
    assert planned.plan.mode == "streamed"
    assert planned.plan.prediction.tokens_per_s < 1
    assert plan(Wish(HEAD, mode="streamed"), shape(), mesh(device("n0", 4))).plan.mode == "streamed"
    with pytest.raises(NoPlan):
        plan(Wish(HEAD, mode="streamed"), shape(), mesh(device("n0", 0.1)))


def test_prompts_go_to_who_reads_them_fastest() -> None:
    """The head decodes, so only the time to the first token decides; moving keys and values is part of it."""
    found = mesh(
        device("n0", 8), device("n1", 8, prefill_bytes_per_s=4e12), device("n2", 8, prefill_bytes_per_s=1e12)
    )
    planned = plan(Wish(HEAD, mode="disaggregated"), shape(), found)
    made = planned.plan
    assert (made.mode, [stage.peer for stage in made.stages]) == ("disaggregated", ["peer-n1"])
    local = plan(Wish(HEAD, mode="local"), shape(), found).plan
    assert made.prediction.network_s == 0
    assert made.prediction.first_token_s < local.prediction.first_token_s
    assert made.memory_of(HEAD) >= local.memory_of(HEAD) * 0.9, "the head has all layers too"
    assert from_dict(json.loads(json.dumps(made.as_dict()))) == made
    ring = plan(Wish(HEAD, mode="disaggregated", devices=("n1", "n2")), shape(), found).plan
    assert [stage.peer for stage in ring.stages] == ["peer-n1", "peer-n2"]
    with pytest.raises(NoPlan, match="no other device"):
        plan(Wish(HEAD, mode="disaggregated"), shape(), mesh(device("n0", 8)))
    with pytest.raises(NoPlan, match="memory"):
        plan(Wish(HEAD, mode="disaggregated"), shape(), mesh(device("n0", 0.2), device("n1", 8)))
    one = plan(Wish(HEAD, mode="disaggregated", stages=1), shape(), found).plan
    assert [stage.peer for stage in one.stages] == ["peer-n1"]
    with pytest.raises(NoPlan, match="memory"):
        plan(Wish(HEAD, mode="disaggregated"), shape(), mesh(device("n0", 8), device("n1", 0.01)))
    with pytest.raises(PlanError, match="other devices compute the prompt"):
        replace(made, stages=local.stages).check()


def test_rpc_needs_equal_builds() -> None:
    able = {"can_rpc": True, "build": "b1"}
    found = mesh(
        device("n0", **able), device("n1", **able), device("n2"), device("n3", can_rpc=True, build="b2")
    )
    planned = plan(Wish(HEAD, mode="tensor_rpc"), shape(), found)
    assert (planned.plan.mode, [c[0] for c in cuts(planned.plan)]) == ("tensor_rpc", ["n0", "n1"])
    assert "without RPC" in reasons(planned)["tensor_rpc with n2"]
    assert "is b2, the head's is b1" in reasons(planned)["tensor_rpc with n3"]
    with pytest.raises(NoPlan):
        plan(Wish(HEAD, mode="tensor_rpc", stages=3), shape(), found)


def test_sixty_four_devices_are_planned_in_time() -> None:
    """Time of this process alone: the machine is shared."""
    found = mesh(*(device(f"n{i}", 1 + i % 4, 5 + i % 7) for i in range(64)), rtt_ms=2)
    started = time.process_time()
    made = plan(Wish(HEAD, auto_modes=ALL), shape(80, 400), found).plan
    assert time.process_time() - started < 1.0
    assert len(made.peers) > 8


def test_more_devices_than_can_be_planned_are_left_out() -> None:
    found = mesh(*(device(f"n{i}") for i in range(limits.PLAN_DEVICES_MAX + 2)))
    assert "more than 64 devices" in reasons(plan(Wish(HEAD), shape(), found)).values()


# --- maps by hand ------------------------------------------------------------------------------------
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
    "blocks",
    [
        (("n0", 0, 3), ("n1", 4, 8)),
        (("n0", 0, 5), ("n1", 4, 8)),
        (("n0", 0, 7),),
        (("n0", 0, 9),),
        (("n0", 3, 3),),
    ],
)
def test_a_map_with_a_gap_is_refused(blocks: tuple[tuple[str, int, int], ...]) -> None:
    with pytest.raises(LayerGap):
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


# --- refusals ----------------------------------------------------------------------------------------
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


def test_devices_that_cannot_help_say_why() -> None:
    found = mesh(device("n0"), device("n1", is_paused=True), device("n2", gb_per_s=0))
    planned = plan(Wish(HEAD), shape(), found)
    assert reasons(planned) == {"n1": "it is paused", "n2": "its speed is not measured yet"}
    assert planned.rejections[0].as_dict() == Rejection("n1", "it is paused").as_dict()


def test_a_metered_device_is_made_to_fetch_only_by_name() -> None:
    small = device("n0", gib=0.6)
    dear = replace(device("n1"), is_metered=True)
    with pytest.raises(
        NoPlan, match="n1: its traffic costs money, and it would have to fetch: it lacks 8 of 8"
    ):
        plan(Wish(HEAD), shape(), mesh(small, dear))
    assert cuts(plan(Wish(HEAD, devices=("n0", "n1")), shape(), mesh(small, dear)).plan)
    holder = replace(dear, held_layers=frozenset(range(8)))
    assert "n1" in {name for name, *_ in cuts(plan(Wish(HEAD), shape(), mesh(small, holder)).plan)}


def test_devices_may_be_named_by_the_end_of_their_id() -> None:
    made = plan(Wish(HEAD, devices=("peer-n1",)), shape(), mesh(device("n0"), device("n1"))).plan
    assert cuts(made)[0][0] == "n1"
    long = replace(device("x"), peer="12D3KooWabcdef", name="y")
    made = plan(Wish(HEAD, devices=("abcdef",)), shape(), mesh(device("n0"), long)).plan
    assert made.stages[0].peer == long.peer


# --- predictions -------------------------------------------------------------------------------------
def test_time_follows_the_law() -> None:
    model, found = shape(), mesh(device("n0"), device("n1"), rtt_ms=4)
    made = plan(Wish(HEAD, mode="pipeline", stages=2), model, found).plan
    weights_s = (8 * 100 + 50) * MIB / 10e9
    assert made.prediction.compute_s == pytest.approx(weights_s + 3 * limits.STEP_OVERHEAD_S)
    hops_s = 2 * (0.002 + 4096 / 1e9 + limits.HOP_PROCESSING_S)
    assert made.prediction.network_s == pytest.approx(hops_s)
    assert made.prediction.tokens_per_s == pytest.approx(1 / (made.prediction.compute_s + hops_s))


def test_long_prompts_keep_all_stages_busy() -> None:
    found = mesh(device("n0"), device("n1"))
    long = plan(Wish(HEAD, mode="pipeline", stages=2, prompt_tokens=4096), shape(), found).plan.prediction
    alone = plan(Wish(HEAD, mode="local", prompt_tokens=4096), shape(), found).plan.prediction
    assert long.first_token_s < 0.7 * alone.first_token_s


def test_fetching_takes_the_best_link() -> None:
    found = mesh(device("n0", held_layers=frozenset(range(8)), holds_ends=True), device("n1"), rate=50e6)
    made = plan(Wish(HEAD, mode="pipeline", devices=("n0", "n1")), shape(), found).plan
    assert made.prediction.fetch_bytes == 400 * MIB
    assert made.prediction.fetch_s == pytest.approx(400 * MIB / 50e6)
    alone = plan(Wish(HEAD), shape(), mesh(device("n0"))).plan
    assert alone.prediction.fetch_s == pytest.approx(900 * MIB / limits.LINK_ASSUMED_BYTES_PER_S)


def test_experts_count_only_when_used() -> None:
    dense, sparse = shape(), shape(active_bytes=(25 * MIB,) * 8)
    found = mesh(device("n0"))
    assert (
        plan(Wish(HEAD), sparse, found).plan.prediction.decode_s
        < plan(Wish(HEAD), dense, found).plan.prediction.decode_s / 2
    )
    assert plan(Wish(HEAD), sparse, found).plan.memory_of(HEAD) == plan(
        Wish(HEAD), dense, found
    ).plan.memory_of(HEAD)


@pytest.mark.parametrize(
    ("size", "text"),
    [(5, "5 B"), (2048, "2 KiB"), (3 * MIB, "3.0 MiB"), (5 * GIB, "5.0 GiB"), (2048 * GIB, "2.0 TiB")],
)
def test_sizes_are_written_for_people(size: int, text: str) -> None:
    assert size_text(size) == text


# --- layouts -----------------------------------------------------------------------------------------
@given(st.integers(1, 100), st.lists(st.floats(0.1, 100), min_size=1, max_size=8))
def test_splits_give_every_layer_once(layers: int, weights: list[float]) -> None:
    assert sum(layout.floor_split(layers, weights)) == layers
    if layers >= len(weights):
        counts = layout.proportional_split(layers, weights)
        assert sum(counts) == layers
        assert min(counts) >= 1


def test_aligned_cuts() -> None:
    assert layout.aligned([3, 3, 2], 1) == [3, 3, 2]
    assert layout.aligned([3, 3, 2], 4) == [0, 4, 4]
    assert [g.peers for g in layout.to_groups([0, 4, 4], ["a", "b", "c"])] == [("b",), ("c",)]
    assert sum(layout.shares_by_speed([device("a"), device("b", gb_per_s=30)])) == 1000


def test_devices_that_are_too_small_are_named_for_the_stages_asked_for() -> None:
    """No cut fits, so the one that speeds would give is shown, with what each device lacks."""
    with pytest.raises(NoPlan) as found:
        plan(Wish(HEAD, mode="pipeline", stages=2), shape(), mesh(device("n0", 0.05), device("n1", 0.05)))
    assert "n0" in str(found.value.details["rejections"])


# --- GPUs --------------------------------------------------------------------------------------------
def test_layers_follow_the_memory_of_gpus_whose_owners_use_them() -> None:
    """A model of 900 MiB: what counts is the memory that computes."""
    model = shape()
    poor = device("n0", 0.5)
    assert plan(Wish(HEAD), model, mesh(replace(poor, memory_free_bytes=4 * GIB))).plan.mode == "local"
    rich = replace(poor, gpu_memory_free_bytes=4 * GIB, gpu_layers=100_000)
    assert plan(Wish(HEAD), model, mesh(rich)).plan.mode == "local"
    some = replace(poor, gpu_memory_free_bytes=4 * GIB, gpu_layers=6)
    assert plan(Wish(HEAD), model, mesh(some)).plan.mode == "local", "six layers there, two here"
    for without in (
        replace(rich, gpu_layers=0),
        replace(some, gpu_layers=1),
        replace(rich, gpu_memory_free_bytes=0),
    ):
        with pytest.raises(NoPlan, match="memory free"):
            plan(Wish(HEAD, mode="local"), model, mesh(without))


def test_a_small_gpu_that_is_to_have_all_layers_gets_few() -> None:
    big, small = (
        device("n0", 8),
        replace(device("n1", 8), gpu_memory_free_bytes=300 * MIB, gpu_layers=100_000),
    )
    made = plan(Wish(HEAD, mode="pipeline", devices=("n0", "n1")), shape(), mesh(big, small)).plan
    assert made.memory_of("peer-n1") <= 300 * MIB
    equal = plan(
        Wish(HEAD, mode="pipeline", devices=("n0", "n1")), shape(), mesh(big, replace(small, gpu_layers=0))
    ).plan
    layers = [sum(s.layer_count for s in one.stages_of("peer-n1")) for one in (made, equal)]
    assert layers[0] < layers[1]


def test_a_cap_is_a_cap_on_the_memory_of_a_gpu_too() -> None:
    rich = replace(device("n0", 0.5), gpu_memory_free_bytes=4 * GIB, gpu_layers=100_000)
    with pytest.raises(NoPlan):
        plan(Wish(HEAD, mode="local", memory_max_bytes={"n0": GIB // 2}), shape(), mesh(rich))
