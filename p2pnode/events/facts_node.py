"""Facts about this node: its life, its keys, its engine, its settings and its witnesses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from p2pnode.events.fields import Count, Document, Hash, Label, Labels, Reason, Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStarted:
    """The node began to run."""

    version: Label
    platform: Label
    device_name: Label


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStopped:
    """The node ended on purpose; a start without this before it followed a crash or a power cut."""

    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysBound:
    """The identity key vouched for this log's signing keys; always event 0, and again at each rotation."""

    peer: Label
    identity_key: Hash
    origin: Label
    generation: Count
    log_key: Hash
    witness_key: Hash
    receipt_key: Hash
    previous_origin: Label = ""
    """The log this one continues after a rollback was refused; empty for the first."""
    signature: Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingChanged:
    """Somebody changed a setting; secrets are recorded as `***`."""

    key: Label
    value: Reason
    previous: Reason = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleCommandRun:
    """A command was given in the panel's console or terminal."""

    verb: Label
    """The program that the command begins with; `shell` for whatever else it begins with."""
    command_commitment: Hash
    exit_code: int
    duration_ms: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCalled:
    """A model's agent used a tool of another program; what it asked for is committed to, not told."""

    server: Label
    tool: Label
    request_id: Label
    arguments_commitment: Hash
    outcome: Label
    """`ok`, `error` when the tool said so, or the code of what kept it from answering."""
    reason: Reason = ""
    duration_ms: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyCreated:
    """A key for the HTTP API was made; only its public id is recorded."""

    key_id: Label
    label: Label
    scopes: Labels = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyRevoked:
    """A key for the HTTP API stopped working."""

    key_id: Label


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDied:
    """The process that computes ended by itself."""

    model: Label
    exit_code: int
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRestarted:
    """The process that computes was started again."""

    model: Label
    attempt: Count
    duration_ms: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePaused:
    """The owner took this device out of the mesh's work for a while."""

    reason: Reason = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceResumed:
    """The device takes part again."""

    reason: Reason = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceDrained:
    """The device finished what it had and takes nothing new."""

    reason: Reason = ""
    requests_left: Count = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointWitnessed:
    """This node cosigned a peer's checkpoint."""

    peer: Label
    origin: Label
    size: Count
    root: Hash


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessReceived:
    """A peer cosigned this node's checkpoint."""

    peer: Label
    size: Count
    root: Hash
    cosignature: Reason
    """The signature line of the note, without its newline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerEquivocated:
    """A peer signed two checkpoints that cannot both be true; the proof convinces anybody."""

    peer: Label
    origin: Label
    size_first: Count
    size_second: Count
    proof: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectForgotten:
    """The salts behind commitments were deleted: what they stood for can not be shown any more."""

    subject: Label
    commitments: Annotated[tuple[Hash, ...], Meta(max_length=1024)]
