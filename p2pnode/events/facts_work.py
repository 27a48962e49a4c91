"""Facts about work: models, plans and requests."""

from __future__ import annotations

from dataclasses import dataclass

from p2pnode.events.fields import Count, Hash, Label, LayerRanges, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAdded:
    """A model became known to this node."""

    model: Label
    name: Label
    architecture: Label
    quantisation: Label
    size_bytes: Count
    layer_count: Count
    source: Reason
    context_length: Count = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRemoved:
    """A model was deleted here."""

    model: Label
    name: Label


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardStored:
    """Part of a model arrived and its bytes matched their content ids."""

    model: Label
    content: Label
    layer_first: Count
    layer_end: Count
    size_bytes: Count
    source: Label
    duration_ms: Count = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRefused:
    """A peer sent bytes that are not what was asked for."""

    content: Label
    peer: Label
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanProposed:
    """The planner found a way to run a model."""

    plan_id: Label
    model: Label
    mode: Label
    stages: LayerRanges
    tokens_per_s_milli: Count
    """Estimated rate in thousandths."""
    why: Reason = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanActivated:
    """Every device of a plan is ready to serve it."""

    plan_id: Label
    duration_ms: Count = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRejected:
    """A device refused its part of a plan, or no plan was possible (then `peer` is empty)."""

    plan_id: Label
    peer: Label
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAbandoned:
    """A plan is not used any more."""

    plan_id: Label
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestAccepted:
    """A request was admitted to run."""

    request_id: Label
    caller: Label
    model: Label
    mode: Label
    plan_id: Label
    prompt_commitment: Hash
    prompt_tokens: Count
    max_tokens: Count
    seed: Count | None = None
    parameters_commitment: Hash | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFinished:
    """A request ended with an answer."""

    request_id: Label
    reason: Label
    prompt_tokens: Count
    completion_tokens: Count
    cached_tokens: Count
    answer_commitment: Hash
    prefill_ms: Count
    decode_ms: Count
    stages: LayerRanges = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFailed:
    """A request ended with an error; `completion_tokens` had gone out before."""

    request_id: Label
    code: Label
    message: Reason
    completion_tokens: Count = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestForwarded:
    """A request was handed whole to a member of this or another mesh, which decides about it and records it itself."""

    request_id: Label
    caller: Label
    model: Label
    peer: Label
    prompt_commitment: Hash
    max_tokens: Count
    seed: Count | None = None
    mesh: Label = ""
    """Id of the mesh that member is of; empty for this node's own. Since version 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardedRequestEnded:
    """An answer came back whole from the member that served it, or the caller went away; errors are `RequestFailed`."""

    request_id: Label
    peer: Label
    served_as: Label
    """The request's id in that member's record; empty when it was not heard."""
    reason: Label
    prompt_tokens: Count
    completion_tokens: Count
    answer_commitment: Hash
    cost_microunits: Count
    """What that member says it took from this device's account there."""
    duration_ms: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLost:
    """A device fell out of a running request."""

    request_id: Label
    plan_id: Label
    peer: Label
    layer_first: Count
    layer_end: Count
    position: Count
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecovered:
    """A running request went on without the lost device; times count from the loss."""

    request_id: Label
    plan_id: Label
    detected_ms: Count
    replanned_ms: Count
    refilled_ms: Count
    resumed_ms: Count
    refilled_tokens: Count
    spare: bool = False
