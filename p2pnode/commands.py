"""What a node can be asked to decide: frozen values in the imperative, answered by `decide`.

Ids and commitments are made by whoever asks, so that a repeated command is the same command. Facts that
leave nothing to decide go through `RecordFact`.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pnode.events import types as facts
from p2pnode.events.receipt import Signed
from p2pnode.limits import HOLD_MS_MAX
from p2pnode.network import Path

Shares = tuple[tuple[str, int], ...]
LayerRanges = tuple[tuple[str, int, int], ...]


# --- node and mesh ---------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class StartNode:
    """Begin to run; what a crash left open is closed."""

    version: str
    platform: str
    device_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopNode:
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateMesh:
    mesh_id: str
    mesh_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinMesh:
    mesh_id: str
    mesh_name: str
    admitted_by: str
    grant: bytes
    role: str = "member"


@dataclass(frozen=True, slots=True, kw_only=True)
class Federate:
    """Be a guest of another mesh, under a name that people here give it; again for a newer grant or name."""

    mesh_id: str
    mesh_name: str
    name: str
    gateway: str
    grant: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EndFederation:
    mesh_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateInvite:
    """Make a ticket; its secret stays with whoever holds the ticket."""

    invite_id: str
    uses: int
    expires_ms: int
    role: str = "worker"
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeInvite:
    invite_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmitPeer:
    """Let a peer in whose ticket was checked (or, without `invite_id`, whom the owner approved)."""

    peer: str
    device_name: str
    grant: bytes
    admitted_by: str
    invite_id: str = ""
    role: str = ""
    """Empty: the invite's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokePeer:
    peer: str
    reason: str
    revocation: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetPeer:
    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordPeerSeen:
    peer: str
    device_name: str
    path: Path
    address_commitment: bytes | None = None
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordPeerLost:
    peer: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordMeasurement:
    """What a peer can do; recorded only when it changed much."""

    measured: facts.PeerMeasured


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseDevice:
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeDevice:
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainDevice:
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeSetting:
    key: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateApiKey:
    key_id: str
    label: str
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeApiKey:
    key_id: str


# --- models and plans ------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class AddModel:
    model: facts.ModelAdded


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveModel:
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreShard:
    shard: facts.ShardStored


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposePlan:
    plan: facts.PlanProposed


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivatePlan:
    plan_id: str
    duration_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectPlan:
    plan_id: str
    peer: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AbandonPlan:
    plan_id: str
    reason: str


# --- requests --------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class ServeRequest:
    """Admit a request and set its price aside."""

    request_id: str
    caller: str
    path: Path
    model: str
    mode: str
    plan_id: str
    prompt_commitment: bytes
    prompt_tokens: int
    max_tokens: int
    network: str = ""
    """Salted tag of `network_bucket(address)`; welcomes are counted by it."""
    hold_ms: int = HOLD_MS_MAX
    seed: int | None = None
    parameters_commitment: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishRequest:
    """End a request with an answer and pay those who worked for it."""

    request_id: str
    reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    answer_commitment: bytes
    prefill_ms: int
    decode_ms: int
    stages: LayerRanges = ()
    work: Shares = ()
    """(peer, layer-tokens it computed); this node included. Since the last settled unit, if there was one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleUnit:
    """Pay a unit that a request has delivered and that is receipted before the next begins."""

    request_id: str
    unit: int
    """From 1, without gaps."""
    work: Shares


@dataclass(frozen=True, slots=True, kw_only=True)
class FailRequest:
    request_id: str
    code: str
    message: str
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpireHolds:
    """Give back what outlived its time; at most HOLDS_EXPIRED_PER_DECISION_MAX at once."""


# --- credit ----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class TopUp:
    account: str
    amount_microunits: int
    idempotency_key: str
    """Give the same to the log's `submit`."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetQuota:
    account: str
    limit_microunits: int
    period_ms: int
    unlimited: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveReceipts:
    """Provider: record what this node signed for one consumer and request, and once more when the consumer agreed."""

    receipts: tuple[Signed, ...]
    """In order; all with countersignatures, or none."""
    provider_key: bytes
    consumer_key: bytes | None = None
    """Which made the countersignatures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedReceipt:
    """A provider's receipt that this node countersigned, and what it would have signed for at most."""

    signed: Signed
    provider_keys: facts.KeysBound
    """The keys for which the provider's identity vouches: a lie is proved with them."""
    layer_tokens_max: int
    """What this node saw the provider do for this receipt."""
    microunits_max: int
    """The provider's share by this node's settlement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptReceipts:
    """Consumer: record receipts of several providers, those of one in order; each stands or falls by itself."""

    offers: tuple[OfferedReceipt, ...]
    consumer_key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFraud:
    """A peer signed two things that cannot both be true; ends its credit."""

    fraud: facts.PeerEquivocated


# --- facts without a choice ------------------------------------------------------------------------
RecordableFact = (
    facts.BlobRefused
    | facts.StageLost
    | facts.StageRecovered
    | facts.EngineDied
    | facts.EngineRestarted
    | facts.ConsoleCommandRun
    | facts.ToolCalled
    | facts.RequestForwarded
    | facts.ForwardedRequestEnded
    | facts.RequestFailed
    | facts.CheckpointWitnessed
    | facts.WitnessReceived
    | facts.SubjectForgotten
    | facts.IdentityDuplicated
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFact:
    fact: RecordableFact


Command = (
    StartNode | StopNode | CreateMesh | JoinMesh | Federate | EndFederation
    | CreateInvite | RevokeInvite | AdmitPeer | RevokePeer
    | ForgetPeer | RecordPeerSeen | RecordPeerLost | RecordMeasurement | PauseDevice | ResumeDevice
    | DrainDevice | ChangeSetting | CreateApiKey | RevokeApiKey | AddModel | RemoveModel | StoreShard
    | ProposePlan | ActivatePlan | RejectPlan | AbandonPlan | ServeRequest | SettleUnit | FinishRequest
    | FailRequest
    | ExpireHolds | TopUp | SetQuota | GiveReceipts | AcceptReceipts | ReportFraud | RecordFact
)  # fmt: skip
