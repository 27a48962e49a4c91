"""A plan: which device computes which layers of a model. Plain values, the same on the wire and in events."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast, get_args

from p2pnode import limits
from p2pnode.errors import LayerGap, PlanError

PlanMode = Literal["local", "pipeline", "tensor", "tensor_rpc", "hybrid", "streamed", "disaggregated"]
Role = Literal["whole", "head", "middle", "tail"]
_ID_HEX = 16


@dataclass(frozen=True, slots=True)
class Rank:
    """One device of a stage; `share` is its weight among the ranks of a tensor group."""

    peer: str
    share: int = 1
    memory_bytes: int = 0
    """Weights, KV cache and buffers of this device's unit."""
    fetch_bytes: int = 0
    """Weights this device does not hold yet."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Layers [layer_first, layer_end) on one device, or on a tensor group of several."""

    layer_first: int
    layer_end: int
    ranks: tuple[Rank, ...]
    role: Role
    decode_s: float = 0.0
    """Predicted compute for one token, without the network."""

    @property
    def peer(self) -> str:
        """The device that is spoken to: rank 0 leads its group."""
        return self.ranks[0].peer

    @property
    def peers(self) -> tuple[str, ...]:
        return tuple(rank.peer for rank in self.ranks)

    @property
    def layer_count(self) -> int:
        return self.layer_end - self.layer_first

    @property
    def shares(self) -> tuple[int, ...]:
        return tuple(rank.share for rank in self.ranks)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the planner expects; measured values are put beside it later."""

    first_token_s: float
    decode_s: float
    """Seconds from one token to the next, one request at a time."""
    compute_s: float
    """The part of `decode_s` that is computing."""
    network_s: float
    fetch_bytes: int
    fetch_s: float

    @property
    def tokens_per_s(self) -> float:
        return 1.0 / self.decode_s if self.decode_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Spare:
    """A device that could take over a stage at once."""

    stage: int
    peer: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Stages in order; the head embeds tokens or sends them on, and always samples.

    The head also holds the output matrix: in its last stage, or as a unit of its own without layers.
    """

    plan_id: str
    model: str
    content_id: str
    mode: PlanMode
    head: str
    stages: tuple[StagePlan, ...]
    layer_count: int
    n_ctx: int
    parallel: int
    prediction: Prediction
    reasons: tuple[str, ...] = ()
    spares: tuple[Spare, ...] = ()
    output_memory_bytes: int = 0
    """Of the head's separate output unit, 0 when its last stage has the output; with all layers when disaggregated."""
    engine: str = ""
    """Engine options that differ from the defaults (compute/engine_options.py), alike on every device."""

    @property
    def peers(self) -> tuple[str, ...]:
        """Everyone who works in it, the head first, each once."""
        return tuple(dict.fromkeys((self.head, *(peer for stage in self.stages for peer in stage.peers))))

    @property
    def output_in_last_stage(self) -> bool:
        """True when the head's last stage samples; otherwise the head needs an output-only unit."""
        last = self.stages[-1]
        return last.peers == (self.head,)

    def stages_of(self, peer: str) -> tuple[StagePlan, ...]:
        return tuple(stage for stage in self.stages if peer in stage.peers)

    def memory_of(self, peer: str) -> int:
        own = sum(rank.memory_bytes for stage in self.stages for rank in stage.ranks if rank.peer == peer)
        return own + (self.output_memory_bytes if peer == self.head else 0)

    def check(self) -> Plan:
        """Itself, if it can be carried out at all; LayerGap or PlanError otherwise."""
        check_layers([(stage.layer_first, stage.layer_end) for stage in self.stages], self.layer_count)
        if len(self.peers) > limits.PLAN_DEVICES_MAX:
            raise PlanError(
                f"a plan for {len(self.peers)} devices, at most {limits.PLAN_DEVICES_MAX} are possible"
            )
        for stage in self.stages:
            if not stage.ranks or min(stage.shares) < 1 or len(set(stage.peers)) != len(stage.ranks):
                raise PlanError(
                    f"the devices of layers [{stage.layer_first}, {stage.layer_end}) are not a group"
                )
        if self.mode == "disaggregated" and any(s.peer == self.head or len(s.ranks) > 1 for s in self.stages):
            raise PlanError("in a disaggregated plan other devices compute the prompt, each its layers alone")
        if self.mode in ("local", "streamed") and self.peers != (self.head,):
            raise PlanError(f"a {self.mode} plan runs on its head alone")
        return self

    def with_id(self) -> Plan:
        """The same plan under an id made from its content."""
        bare = replace(self, plan_id="", prediction=_NOTHING, reasons=())
        text = json.dumps(bare.as_dict(), sort_keys=True, separators=(",", ":"))
        return replace(self, plan_id=hashlib.sha256(text.encode()).hexdigest()[:_ID_HEX])

    def with_engine(self, text: str) -> Plan:
        """The same devices and layers, loaded with these engine options."""
        return self if text == self.engine else replace(self, engine=text).with_id()

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON-able form; `from_dict` reads it."""
        return {
            **{
                key: value
                for key, value in asdict(self).items()
                if key not in ("stages", "reasons", "spares") and (key != "engine" or value)
            },
            "stages": [
                {**asdict(stage), "ranks": [asdict(rank) for rank in stage.ranks]} for stage in self.stages
            ],
            "reasons": list(self.reasons),
            "spares": [asdict(spare) for spare in self.spares],
        }


_NOTHING = Prediction(0.0, 0.0, 0.0, 0.0, 0, 0.0)


def check_layers(ranges: Sequence[tuple[int, int]], layer_count: int) -> None:
    """LayerGap unless the half-open ranges are exactly [0, layer_count), in order."""
    expected = 0
    for first, end in ranges:
        if first != expected or end <= first:
            if end <= first:
                wrong = f"a part begins with layer {first} and ends before layer {end}: it has none"
            elif first > expected:
                wrong = f"layers [{expected}, {first}) are on no device"
            else:
                wrong = f"layers [{first}, {min(end, expected)}) are given twice"
            raise LayerGap(
                f"{wrong}; every layer must be computed once, in order",
                hint=f"the model has layers [0, {layer_count}); in a map file layers = [first, end] ends before `end`",
                layers=[expected, first],
            )
        expected = end
    if expected != layer_count:
        is_short = expected < layer_count
        first, end = sorted((expected, layer_count))
        raise LayerGap(
            f"layers [{first}, {end}) are {'on no device' if is_short else 'not in this model'}",
            hint="give them to the last device of the map" if is_short else f"it has {layer_count} layers",
            layers=[expected, layer_count],
        )


def role_of(first: int, end: int, layer_count: int) -> Role:
    """head computes layer 0, tail the last one, whole both."""
    if first == 0:
        return "whole" if end == layer_count else "head"
    return "tail" if end == layer_count else "middle"


def from_dict(data: Mapping[str, Any]) -> Plan:
    """Read a plan from a peer or the log; PlanError for anything that is not one."""
    try:
        stages = data["stages"]
        if not 0 < len(stages) <= limits.PLAN_DEVICES_MAX:
            raise PlanError(f"a plan of {len(stages)} stages, at most {limits.PLAN_DEVICES_MAX} are possible")
        plan = Plan(
            plan_id=_text(data["plan_id"]),
            model=_text(data["model"]),
            content_id=_text(data["content_id"]),
            mode=cast(PlanMode, _one_of(data["mode"], get_args(PlanMode))),
            head=_text(data["head"]),
            stages=tuple(_stage(stage) for stage in stages),
            layer_count=_count(data["layer_count"]),
            n_ctx=_count(data["n_ctx"]),
            parallel=_count(data["parallel"]),
            prediction=_prediction(data["prediction"]),
            reasons=tuple(_text(reason) for reason in data["reasons"][: limits.PLAN_REASONS_MAX]),
            spares=tuple(Spare(_count(spare["stage"]), _text(spare["peer"])) for spare in data["spares"]),
            output_memory_bytes=_count(data["output_memory_bytes"]),
            engine=_text(data.get("engine", "")),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise PlanError(f"this is not a plan: {error}") from error
    return plan.check()


def _stage(data: Mapping[str, Any]) -> StagePlan:
    ranks = data["ranks"]
    if not 0 < len(ranks) <= limits.PLAN_DEVICES_MAX:
        raise PlanError(f"a stage of {len(ranks)} devices")
    return StagePlan(
        layer_first=_count(data["layer_first"]),
        layer_end=_count(data["layer_end"]),
        ranks=tuple(
            Rank(_text(r["peer"]), _count(r["share"]), _count(r["memory_bytes"]), _count(r["fetch_bytes"]))
            for r in ranks
        ),
        role=cast(Role, _one_of(data["role"], get_args(Role))),
        decode_s=_seconds(data["decode_s"]),
    )


def _prediction(data: Mapping[str, Any]) -> Prediction:
    return Prediction(
        first_token_s=_seconds(data["first_token_s"]),
        decode_s=_seconds(data["decode_s"]),
        compute_s=_seconds(data["compute_s"]),
        network_s=_seconds(data["network_s"]),
        fetch_bytes=_count(data["fetch_bytes"]),
        fetch_s=_seconds(data["fetch_s"]),
    )


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > limits.PLAN_TEXT_CHARS_MAX:
        raise PlanError("a text of this plan is none, or too long")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**62:
        raise PlanError(f"{str(value)[:40]} is no count")
    return value


def _seconds(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise PlanError(f"{str(value)[:40]} is no duration")
    return float(value)


def _one_of(value: object, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise PlanError(f"{str(value)[:40]!r} is none of {', '.join(allowed)}")
    return value
