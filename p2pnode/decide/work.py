"""Models, plans, settings, keys and the device's own state of work."""

from __future__ import annotations

from typing import Final

from p2pnode.commands import (
    AbandonPlan,
    ActivatePlan,
    AddModel,
    ChangeSetting,
    CreateApiKey,
    DrainDevice,
    PauseDevice,
    ProposePlan,
    RecordFact,
    RejectPlan,
    RemoveModel,
    ResumeDevice,
    RevokeApiKey,
    StoreShard,
)
from p2pnode.decide.outcome import REASON_CHARACTERS_MAX, Deciders, between, decision, label, nothing, reason
from p2pnode.errors import ModelUnknown, NoPlan, NotFound, PlanError, RequestError
from p2pnode.events import types as facts
from p2pnode.events.log import Decision
from p2pnode.projections import MeshState, models, peers, sessions, settings
from p2pnode.projections.plans import Plan

SCOPES: Final = ("use", "admin")


# --- models ----------------------------------------------------------------------------------------
def add_model(state: MeshState, command: AddModel, now_ms: int) -> Decision:
    """ModelAdded unless it is known under this name."""
    known = state.models.models.get(label(command.model.model, "model"))
    if known is not None and known.name == command.model.name:
        return nothing()
    return decision(command.model)


def remove_model(state: MeshState, command: RemoveModel, now_ms: int) -> Decision:
    found = models.find(state.models, command.model)
    if found is None:
        raise ModelUnknown(f"no model {command.model} here")
    model, entry = found
    return decision(facts.ModelRemoved(model=model, name=entry.name))


def store_shard(state: MeshState, command: StoreShard, now_ms: int) -> Decision:
    """ShardStored unless the same content is kept already."""
    shard = command.shard
    between(shard.layer_end - shard.layer_first, 0, 2**31, "layers")
    if shard.content in state.models.shards.get(shard.model, {}):
        return nothing()
    return decision(shard)


def _is_member(state: MeshState, peer: str) -> bool:
    """The founder holds no grant, and so was never recorded as admitted: the mesh's id is its own."""
    return peer == state.node.mesh_id or peers.is_member(state.peers, peer)


# --- plans -----------------------------------------------------------------------------------------
def propose_plan(state: MeshState, command: ProposePlan, now_ms: int) -> Decision:
    """PlanProposed, also of one that ended and shall stand again.

    Raises: PlanError (it is proposed or active), NoPlan (a stage on a device that is no member).
    """
    plan = command.plan
    known = state.plans.plans.get(label(plan.plan_id, "plan_id"))
    if known is not None and not known.has_ended:
        raise PlanError(f"plan {plan.plan_id} exists already")
    strangers = [peer for peer, _, _ in plan.stages if not _is_member(state, peer)]
    if strangers:
        raise NoPlan(
            f"{strangers[0]} is not a member of this mesh",
            rejections=[f"{peer} is no member" for peer in strangers],
        )
    return decision(plan)


def activate_plan(state: MeshState, command: ActivatePlan, now_ms: int) -> Decision:
    plan = _plan(state, command.plan_id)
    if plan.state == "active":
        return nothing()
    if plan.state != "proposed":
        raise PlanError(f"plan {command.plan_id} was {plan.state}: {plan.reason}", hint="make a new plan")
    return decision(facts.PlanActivated(plan_id=command.plan_id, duration_ms=command.duration_ms))


def reject_plan(state: MeshState, command: RejectPlan, now_ms: int) -> Decision:
    plan = _plan(state, command.plan_id)
    if plan.state == "rejected":
        return nothing()
    if plan.state != "proposed":
        raise PlanError(f"plan {command.plan_id} is {plan.state}")
    return decision(
        facts.PlanRejected(plan_id=command.plan_id, peer=command.peer, reason=reason(command.reason))
    )


def abandon_plan(state: MeshState, command: AbandonPlan, now_ms: int) -> Decision:
    if _plan(state, command.plan_id).has_ended:
        return nothing()
    return decision(facts.PlanAbandoned(plan_id=command.plan_id, reason=reason(command.reason)))


def _plan(state: MeshState, plan_id: str) -> Plan:
    plan = state.plans.plans.get(plan_id)
    if plan is None:
        raise NotFound(f"there is no plan {plan_id}")
    return plan


# --- the device ------------------------------------------------------------------------------------
def pause_device(state: MeshState, command: PauseDevice, now_ms: int) -> Decision:
    if state.node.work == "paused":
        return nothing()
    return decision(facts.DevicePaused(reason=reason(command.reason)))


def resume_device(state: MeshState, command: ResumeDevice, now_ms: int) -> Decision:
    if state.node.work == "taking":
        return nothing()
    return decision(facts.DeviceResumed(reason=reason(command.reason)))


def drain_device(state: MeshState, command: DrainDevice, now_ms: int) -> Decision:
    if state.node.work == "drained":
        return nothing()
    left = len(sessions.running(state.sessions))
    return decision(facts.DeviceDrained(reason=reason(command.reason), requests_left=left))


def change_setting(state: MeshState, command: ChangeSetting, now_ms: int) -> Decision:
    """SettingChanged unless it has this value; the caller masks secrets."""
    key = label(command.key, "key")
    if len(command.value) > REASON_CHARACTERS_MAX:
        raise RequestError(f"a setting has at most {REASON_CHARACTERS_MAX} characters", field="value")
    previous = settings.value_of(state.settings, key)
    if key in state.settings.settings and previous == command.value:
        return nothing()
    event = facts.SettingChanged(key=key, value=command.value, previous=previous)
    return decision(event, answer={"key": key, "value": command.value, "previous": previous})


# --- API keys --------------------------------------------------------------------------------------
def create_api_key(state: MeshState, command: CreateApiKey, now_ms: int) -> Decision:
    key_id = label(command.key_id, "key_id")
    if not command.scopes or any(scope not in SCOPES for scope in command.scopes):
        raise RequestError(f"scopes are one or more of {', '.join(SCOPES)}", field="scopes")
    if key_id in state.node.api_keys:
        raise RequestError(f"API key {key_id} exists already", field="key_id")
    scopes = tuple(sorted(set(command.scopes)))
    event = facts.ApiKeyCreated(key_id=key_id, label=command.label[:128], scopes=scopes)
    return decision(event, answer={"key_id": key_id, "scopes": list(scopes)})


def revoke_api_key(state: MeshState, command: RevokeApiKey, now_ms: int) -> Decision:
    key = state.node.api_keys.get(command.key_id)
    if key is None:
        raise NotFound(f"there is no API key {command.key_id}")
    if key.revoked:
        return nothing()
    return decision(facts.ApiKeyRevoked(key_id=command.key_id))


def record_fact(state: MeshState, command: RecordFact, now_ms: int) -> Decision:
    """The fact as it is."""
    return decision(command.fact)


DECIDERS: Final[Deciders] = {
    AddModel: add_model,
    RemoveModel: remove_model,
    StoreShard: store_shard,
    ProposePlan: propose_plan,
    ActivatePlan: activate_plan,
    RejectPlan: reject_plan,
    AbandonPlan: abandon_plan,
    PauseDevice: pause_device,
    ResumeDevice: resume_device,
    DrainDevice: drain_device,
    ChangeSetting: change_setting,
    CreateApiKey: create_api_key,
    RevokeApiKey: revoke_api_key,
    RecordFact: record_fact,
}
