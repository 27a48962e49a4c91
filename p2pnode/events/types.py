"""Every fact a node may record, in the past tense: the docstrings are the catalogue of specs/07-events.md.

Rules: whole numbers only, bounded fields, only ever add. Prompts, answers, network addresses and typed
commands appear as salted commitments and counts. To add a fact: write its class in the `facts_*` module it
belongs to, then name it here (import, `__all__`, `Event`). Other fields of an existing fact need an
upcaster in `upcasters.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, get_args

from p2pnode.events.facts_credit import (
    CreditExpired,
    CreditHeld,
    CreditSettled,
    CreditToppedUp,
    CreditVoided,
    QuotaSet,
    ReceiptGiven,
    ReceiptReceived,
    UnitSettled,
    WelcomeGranted,
)
from p2pnode.events.facts_mesh import (
    IdentityDuplicated,
    InviteCreated,
    InviteRevoked,
    InviteUsed,
    MeshCreated,
    MeshFederated,
    MeshFederationEnded,
    MeshJoined,
    PeerAdmitted,
    PeerForgotten,
    PeerLost,
    PeerMeasured,
    PeerRevoked,
    PeerSeen,
)
from p2pnode.events.facts_node import (
    ApiKeyCreated,
    ApiKeyRevoked,
    CheckpointWitnessed,
    ConsoleCommandRun,
    DeviceDrained,
    DevicePaused,
    DeviceResumed,
    EngineDied,
    EngineRestarted,
    KeysBound,
    NodeStarted,
    NodeStopped,
    PeerEquivocated,
    SettingChanged,
    SubjectForgotten,
    ToolCalled,
    WitnessReceived,
)
from p2pnode.events.facts_work import (
    BlobRefused,
    ForwardedRequestEnded,
    ModelAdded,
    ModelRemoved,
    PlanAbandoned,
    PlanActivated,
    PlanProposed,
    PlanRejected,
    RequestAccepted,
    RequestFailed,
    RequestFinished,
    RequestForwarded,
    ShardStored,
    StageLost,
    StageRecovered,
)
from p2pnode.events.fields import Count, Label

__all__ = [
    "EVENT_TYPES",
    "ApiKeyCreated",
    "ApiKeyRevoked",
    "BlobRefused",
    "CheckpointWitnessed",
    "ConsoleCommandRun",
    "CreditExpired",
    "CreditHeld",
    "CreditSettled",
    "CreditToppedUp",
    "CreditVoided",
    "DeviceDrained",
    "DevicePaused",
    "DeviceResumed",
    "EngineDied",
    "EngineRestarted",
    "Event",
    "EventT",
    "ForwardedRequestEnded",
    "IdentityDuplicated",
    "InviteCreated",
    "InviteRevoked",
    "InviteUsed",
    "KeysBound",
    "MeshCreated",
    "MeshFederated",
    "MeshFederationEnded",
    "MeshJoined",
    "ModelAdded",
    "ModelRemoved",
    "NodeStarted",
    "NodeStopped",
    "PeerAdmitted",
    "PeerEquivocated",
    "PeerForgotten",
    "PeerLost",
    "PeerMeasured",
    "PeerRevoked",
    "PeerSeen",
    "PlanAbandoned",
    "PlanActivated",
    "PlanProposed",
    "PlanRejected",
    "QuotaSet",
    "ReceiptGiven",
    "ReceiptReceived",
    "RequestAccepted",
    "RequestFailed",
    "RequestFinished",
    "RequestForwarded",
    "SettingChanged",
    "ShardStored",
    "StageLost",
    "StageRecovered",
    "SubjectForgotten",
    "ToolCalled",
    "UnitSettled",
    "UnknownEvent",
    "WelcomeGranted",
    "WitnessReceived",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownEvent:
    """A fact of a newer version: kept, proved and counted, its bytes untouched; never written by this one."""

    type_name: Label
    schema_version: Count
    data: bytes


Event = (
    NodeStarted | NodeStopped | KeysBound | SettingChanged | ConsoleCommandRun | ToolCalled | ApiKeyCreated
    | ApiKeyRevoked
    | MeshCreated | MeshJoined | InviteCreated | InviteRevoked | InviteUsed
    | PeerAdmitted | PeerRevoked | PeerSeen | PeerLost | PeerForgotten | PeerMeasured
    | IdentityDuplicated | MeshFederated | MeshFederationEnded
    | ModelAdded | ModelRemoved | ShardStored | BlobRefused
    | PlanProposed | PlanActivated | PlanRejected | PlanAbandoned
    | RequestAccepted | RequestFinished | RequestFailed | StageLost | StageRecovered
    | RequestForwarded | ForwardedRequestEnded
    | ReceiptGiven | ReceiptReceived
    | WelcomeGranted | CreditToppedUp | CreditHeld | CreditSettled | CreditVoided | CreditExpired | QuotaSet
    | UnitSettled
    | CheckpointWitnessed | WitnessReceived | PeerEquivocated | SubjectForgotten
    | EngineDied | EngineRestarted | DevicePaused | DeviceResumed | DeviceDrained
    | UnknownEvent
)  # fmt: skip

EventT = TypeVar("EventT", bound=Event)

EVENT_TYPES: dict[str, type[Event]] = {
    cls.__name__: cls for cls in get_args(Event) if cls is not UnknownEvent
}
"""Wire name to class: the class name is the wire name, so renaming a class would change history."""
