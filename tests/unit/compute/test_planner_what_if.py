"""Questions about meshes that are not there, corrections from measurements, and the auto decision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode import limits
from p2pnode.compute import what_if
from p2pnode.compute.auto import Current, Option, decide
from p2pnode.compute.builder import Builder
from p2pnode.compute.calibration import Calibration, Measured, comparison
from p2pnode.compute.cost import Mesh
from p2pnode.compute.gguf import open_model
from p2pnode.compute.plan import Plan
from p2pnode.compute.planner import Wish, plan
from p2pnode.compute.shape import shape_of
from p2pnode.errors import BadModelFile, PlanError
from tests.kit.meshes import GIB, MIB, device, mesh, shape
from tests.kit.toy_models import Toy, write_model

HEAD = "peer-n0"
MESH = mesh(device("n0"), device("n1"), rtt_ms=2)
PIPELINE = plan(Wish(HEAD, mode="pipeline", stages=2), shape(), MESH).plan


# --- what if -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("+desk:16GiB,2,3ms", what_if.AddDevice("desk", 16 * GIB, 2.0, 0.003)),
        (" +desk: 500M, 0.5x, 80us ", what_if.AddDevice("desk", 500 * MIB, 0.5, 0.00008)),
        ("+desk:1T,1,0.1s", what_if.AddDevice("desk", 1024 * GIB, 1.0, 0.1)),
        ("-n1", what_if.RemoveDevice("n1")),
        ("context=8192", what_if.SetContext(8192)),
        ("ctx = 64", what_if.SetContext(64)),
        ("quant=q8_0", what_if.SetQuantisation("Q8_0")),
    ],
)
def test_changes_are_read(text: str, change: what_if.Change) -> None:
    assert what_if.parse(text) == change


@pytest.mark.parametrize(
    "text",
    [
        "",
        "desk",
        "+desk",
        "+desk:1,2",
        "+desk:x,1,1ms",
        "+desk:1G,0,1ms",
        "+desk:1G,1,1",
        "context=x",
        "--a=b",
    ],
)
def test_anything_else_is_refused_with_the_grammar(text: str) -> None:
    with pytest.raises(PlanError) as caught:
        what_if.parse(text)
    assert "context=" in caught.value.hint


def test_a_faster_device_would_take_over() -> None:
    wish, model, found = what_if.apply([what_if.parse("+desk:16GiB,10,1ms")], Wish(HEAD), shape(), MESH)
    made = plan(wish, model, found).plan
    assert made.stages[0].peer == "what-if:desk"
    assert found.link("what-if:desk", "peer-n1").rtt_s == 0.001


def test_without_a_device_with_more_context_in_another_quantisation() -> None:
    changes = [what_if.parse(text) for text in ("-n1", "context=4096", "quant=F16")]
    wish, model, found = what_if.apply(changes, Wish(HEAD), shape(), MESH)
    assert list(found.devices) == [HEAD]
    assert wish.n_ctx == 4096
    assert model.layer_bytes[0] == pytest.approx(100 * MIB * 16 / 4.85, rel=1e-6)
    assert model.name == "toy (F16)"
    again = what_if.apply([what_if.parse("quant=Q4_K_M")], wish, model, found)[1]
    assert again.layer_bytes[0] == pytest.approx(100 * MIB, rel=1e-6)


def test_changes_that_make_no_sense_are_refused() -> None:
    for change in (what_if.RemoveDevice("n0"), what_if.RemoveDevice("n9"), what_if.SetQuantisation("Q99")):
        with pytest.raises(PlanError):
            what_if.apply([change], Wish(HEAD), shape(), MESH)
    with pytest.raises(PlanError, match="already"):
        what_if.apply([what_if.parse("+n1:1G,1,1ms")], Wish(HEAD), shape(), MESH)
    with pytest.raises(PlanError):
        what_if.apply([what_if.SetQuantisation("F16")], Wish(HEAD), shape(bits_per_weight=None), MESH)


def test_a_lonely_device_assumes_its_link() -> None:
    alone = mesh(device("n0"))
    found = what_if.apply([what_if.parse("+desk:1G,1,1ms")], Wish(HEAD), shape(), alone)[2]
    assert found.link(HEAD, "what-if:desk").bytes_per_s == limits.LINK_ASSUMED_BYTES_PER_S


# --- calibration -------------------------------------------------------------------------------------
def _measured(factor: float, **changes: object) -> Measured:
    decode_s = PIPELINE.prediction.network_s + factor * PIPELINE.prediction.compute_s
    return replace(Measured(0.5, decode_s, 100), **changes)  # type: ignore[arg-type]


TOY = PIPELINE.content_id


def believed(known: Calibration) -> Mesh:
    return Mesh({peer: known.applied(d, TOY) for peer, d in MESH.devices.items()}, MESH.links)


@settings(max_examples=15)
@given(st.floats(0.2, 5.0))
def test_factors_move_to_what_is_measured(factor: float) -> None:
    """A plan that stands while many requests run on it: predicted again each time, this ends at the truth."""
    known = Calibration()
    wish = Wish(HEAD, mode="pipeline", stages=2)
    true_s = PIPELINE.prediction.network_s + factor * PIPELINE.prediction.compute_s
    for _ in range(60):
        now = Builder(wish, shape(), believed(known)).again(PIPELINE, limits.CONTEXT_ASSUMED_TOKENS)
        known = known.updated(now, Measured(0.1, true_s, 50), MESH.devices)
    last = plan(wish, shape(), believed(known)).plan
    assert last.prediction.compute_s == pytest.approx(factor * PIPELINE.prediction.compute_s, rel=0.05)


def test_each_device_learns_from_its_own_stage() -> None:
    times = tuple(stage.decode_s * factor for stage, factor in zip(PIPELINE.stages, (1.0, 1.8), strict=True))
    known = Calibration().updated(PIPELINE, _measured(1.4, stage_s=times), MESH.devices)
    quick, slow = (MESH.devices[stage.peer] for stage in PIPELINE.stages)
    assert known.factor(quick, TOY) == pytest.approx(1.0)
    assert known.factor(slow, TOY) == pytest.approx(1 + limits.CALIBRATION_WEIGHT * 0.8)
    assert known.applied(slow, TOY).decode_bytes_per_s < slow.decode_bytes_per_s
    assert known.applied(slow, "another model") == slow


def test_a_factor_ends_with_the_rate_it_was_learned_over() -> None:
    """A device that was timed in a busy moment and again in a quiet one is not corrected twice."""
    known = Calibration().updated(PIPELINE, _measured(0.5), MESH.devices)
    before = MESH.devices[HEAD]
    assert known.factor(before, TOY) < 1
    for rate, is_kept in ((before.decode_bytes_per_s * 1.1, True), (before.decode_bytes_per_s * 20, False)):
        now = replace(before, decode_bytes_per_s=rate)
        assert (known.factor(now, TOY) != 1.0) is is_kept
    assert known.factor(replace(before, decode_bytes_per_s=0.0), TOY) == 1.0


def test_one_strange_request_does_not_turn_everything_over() -> None:
    known = Calibration().updated(PIPELINE, _measured(1000.0), MESH.devices)
    assert max(factor.value for _, factor in known.factors) < 1.4
    for _ in range(100):
        known = known.updated(PIPELINE, _measured(1000.0), MESH.devices)
    assert max(factor.value for _, factor in known.factors) <= limits.CALIBRATION_FACTOR_MAX


def test_the_oldest_factors_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CALIBRATION_KEPT_MAX", 3)
    known = Calibration()
    for model in "abc":
        known = known.updated(replace(PIPELINE, content_id=model), _measured(2.0), MESH.devices)
    assert [key[1] for key, _ in known.factors] == ["b", "c", "c"]


def test_what_is_predicted_now_is_of_this_place_in_the_context() -> None:
    """Keys and values that a token is compared with take time, as the device measured it."""
    context = {peer: replace(d, context_bytes_per_s=1e9) for peer, d in MESH.devices.items()}
    builder = Builder(Wish(HEAD, mode="pipeline", stages=2), shape(), Mesh(context, MESH.links))
    near, far = (builder.again(PIPELINE, position) for position in (0, 1000))
    assert near.prediction.compute_s == pytest.approx(PIPELINE.prediction.compute_s)
    more_s = 1000 * sum(shape().kv_bytes_per_token) / 1e9
    assert far.prediction.compute_s == pytest.approx(near.prediction.compute_s + more_s)
    assert sum(s.decode_s for s in far.stages) == pytest.approx(sum(s.decode_s for s in near.stages) + more_s)


def test_short_requests_teach_nothing() -> None:
    assert Calibration().updated(PIPELINE, _measured(2.0, token_count=3), MESH.devices) == Calibration()


def test_prediction_beside_measurement() -> None:
    shown = comparison(PIPELINE, _measured(1.0))
    assert shown["error"] == pytest.approx(0.0, abs=1e-3)
    assert shown["token_count"] == 100
    now = replace(PIPELINE.prediction, decode_s=PIPELINE.prediction.decode_s * 2)
    assert comparison(PIPELINE, _measured(1.0), now)["error"] == pytest.approx(1.0, abs=1e-3)
    nothing = replace(PIPELINE, prediction=replace(PIPELINE.prediction, decode_s=0.0))
    assert comparison(nothing, _measured(1.0, decode_s=0.0))["error"] is None


# --- auto --------------------------------------------------------------------------------------------
def _plan(model: str, tokens_per_s: float, plan_id: str = "p") -> Plan:
    return replace(
        PIPELINE,
        model=model,
        content_id=model,
        plan_id=f"{plan_id}-{model}",
        prediction=replace(PIPELINE.prediction, decode_s=1 / tokens_per_s),
    )


SMALL = Option(_plan("small", 50), quality=1)
LARGE = Option(_plan("large", 10), quality=8)
HUGE = Option(_plan("huge", 0.5), quality=70)


def test_a_fresh_mesh_gets_the_best_model_that_is_quick_enough() -> None:
    assert decide(None, [SMALL, LARGE, HUGE], now_s=0).plan == LARGE.plan
    assert decide(None, [HUGE], now_s=0).plan == HUGE.plan
    assert decide(None, [LARGE, replace(SMALL, is_default=True)], now_s=0).plan == SMALL.plan
    assert decide(None, [], now_s=0).action == "none"


def test_a_broken_plan_is_replaced_at_once() -> None:
    broken = Current(LARGE.plan, 8, since_s=0, is_broken=True, is_busy=True, was_asked_for=True)
    assert decide(broken, [SMALL], now_s=1).plan == SMALL.plan
    assert decide(broken, [], now_s=1).action == "none"


@pytest.mark.parametrize(
    ("current", "reason"),
    [
        (Current(SMALL.plan, 1, since_s=0, was_asked_for=True), "asked for by name"),
        (Current(SMALL.plan, 1, since_s=0, is_busy=True), "under way"),
        (Current(SMALL.plan, 1, since_s=950), "less than"),
    ],
)
def test_what_runs_is_left_alone_with_a_reason(current: Current, reason: str) -> None:
    decision = decide(current, [LARGE], now_s=1000)
    assert (decision.action, decision.plan) == ("keep", SMALL.plan)
    assert reason in decision.reason


def test_a_clearly_better_model_is_taken_and_a_near_equal_one_is_not() -> None:
    current = Current(SMALL.plan, 1, since_s=0)
    assert decide(current, [SMALL, LARGE], now_s=1000).plan == LARGE.plan
    near = Option(_plan("near", 60), quality=1.1)
    assert decide(current, [SMALL, near], now_s=1000).action == "keep"
    assert decide(current, [near], now_s=1000).action == "keep"
    assert decide(current, [], now_s=1000).action == "keep"
    assert decide(current, [SMALL, replace(near, is_default=True)], now_s=1000).plan == near.plan


def test_speed_alone_must_gain_a_lot() -> None:
    current = Current(SMALL.plan, 1, since_s=0)
    for rate, action in ((50, "keep"), (60, "keep"), (65, "activate"), (5, "keep")):
        option = Option(_plan("small", rate, plan_id="q"), quality=1)
        assert decide(current, [option], now_s=1000).action == action
    assert decide(current, [SMALL], now_s=1000).reason == "it is still the best plan"


@given(st.lists(st.floats(20, 100), min_size=2, max_size=2))
def test_two_plans_never_take_turns(rates: list[float]) -> None:
    """From whatever it goes over to, it does not go back."""
    options = [Option(_plan("small", rate, plan_id=str(at)), quality=1) for at, rate in enumerate(rates)]
    current, changes = Current(options[0].plan, 1, since_s=0), 0
    for step in range(5):
        decision = decide(current, options, now_s=1000.0 * (step + 1))
        assert decision.plan is not None
        changes += decision.action == "activate"
        current = Current(decision.plan, 1, since_s=0)
    assert changes <= 1


# --- shapes of real files ----------------------------------------------------------------------------
def test_a_shape_comes_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "toy.gguf"
    write_model(path, Toy("llama", layers=3))
    index, _ = open_model(path)
    found = shape_of(index, name="toy", content_id="bafk")
    assert (found.layer_count, found.width, found.shard_units, found.boundary) == (3, 64, 4, 1)
    assert found.total_bytes == index.tensor_bytes
    assert found.kv_bytes_per_token == (2 * (16 + 16) * 2,) * 3
    assert found.bits_per_weight == 32
    assert found.cut_refusal is None
    assert found.shard_refusal is None


def test_experts_are_counted_as_used(tmp_path: Path) -> None:
    path = tmp_path / "toy.gguf"
    write_model(path, Toy("qwen3moe", tied=True))
    found = shape_of(open_model(path)[0], name="toy", content_id="bafk")
    assert found.active_bytes[0] < found.layer_bytes[0]
    assert found.is_tied


def test_what_cannot_be_cut_says_so(tmp_path: Path) -> None:
    path = tmp_path / "toy.gguf"
    write_model(path, Toy("phi3"))
    found = shape_of(open_model(path)[0], name="toy", content_id="bafk")
    assert "cannot be cut by heads" in str(found.shard_refusal)
    write_model(path, Toy("gemma2", layers=46, width=32, ff=32))
    found = shape_of(open_model(path)[0], name="toy", content_id="bafk")
    assert "layer count 46" in str(found.cut_refusal)
    assert found.cut_refusal == found.shard_refusal


def test_heads_may_differ_by_layer(tmp_path: Path) -> None:
    """Recurrent layers have no keys and values."""
    path = tmp_path / "toy.gguf"
    write_model(path, Toy("lfm2"))
    found = shape_of(open_model(path)[0], name="toy", content_id="bafk")
    assert 0 in found.kv_bytes_per_token
    assert max(found.kv_bytes_per_token) > 0


def test_a_head_count_that_is_no_number_is_a_bad_file(tmp_path: Path) -> None:
    path = tmp_path / "toy.gguf"
    write_model(path, Toy("llama", parameters={"attention.head_count_kv": "two"}))
    with pytest.raises(BadModelFile):
        shape_of(open_model(path)[0], name="toy", content_id="bafk")


def test_layers_that_only_predict_further_tokens_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "toy.gguf"
    write_model(path, Toy("llama", layers=3, parameters={"nextn_predict_layers": 1}))
    assert shape_of(open_model(path)[0], name="toy", content_id="bafk").layer_count == 2
