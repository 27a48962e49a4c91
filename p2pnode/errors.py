"""The whole error taxonomy, one screen.

A bug is an assertion and stops the node; a condition is a type here. Every condition has a stable
`code`, the HTTP status it maps to, whether trying again can help, what happened and what to do.
The same object becomes an OpenAI error envelope, a red line in a terminal, a close code or a metric.
"""

from __future__ import annotations

from typing import Any, ClassVar


class P2PNodeError(Exception):
    """Root of all conditions; never raised itself."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    hint_default: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str | None = None, **details: Any) -> None:
        assert type(self).code != "internal", "raise a named condition"
        super().__init__(message)
        self.message = message
        self.hint = self.hint_default if hint is None else hint
        self.details = details

    def as_dict(self) -> dict[str, Any]:
        """The envelope's inside: the same words on every face."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "details": self.details}


# --- configuration and machine ---------------------------------------------------------------------
class ConfigError(P2PNodeError):
    code, http_status = "config", 400


class DataDirError(P2PNodeError):
    """The data folder cannot be used: read-only, full, or held by another process."""

    code, http_status = "data_dir", 500


class FolderInUse(DataDirError):
    code, http_status = "folder_in_use", 500
    hint_default = "stop it first, or choose another folder with --data"


class DiskFull(DataDirError):
    code, http_status, retryable = "disk_full", 507, True
    hint_default = "free some space or choose another folder with --data"


class PortTaken(P2PNodeError):
    code, http_status = "port_taken", 500
    hint_default = "another program uses this port; choose another with --listen or --api"


class NodeNotRunning(P2PNodeError):
    code, http_status = "node_not_running", 503
    hint_default = "start one with: p2pnode join"


# --- protocol --------------------------------------------------------------------------------------
class ProtocolError(P2PNodeError):
    code, http_status = "protocol", 502


class LocalProtocolError(ProtocolError):
    """We were about to break the rules."""

    code, http_status = "protocol_local", 500


class RemoteProtocolError(ProtocolError):
    """The peer broke the rules."""

    code, http_status = "protocol_remote", 502


# --- transport -------------------------------------------------------------------------------------
class TransportError(P2PNodeError):
    code, http_status, retryable = "transport", 502, True
    hint_default = "ask again; p2pnode doctor shows every device and each address tried"


class PeerUnreachable(TransportError):
    """Details: `tried`, a list of [address, reason]."""

    code, http_status = "peer_unreachable", 504
    hint_default = (
        "check that the device is on and that UDP is not blocked; p2pnode doctor shows every address tried"
    )


class HandshakeRefused(TransportError):
    code, http_status, retryable = "handshake_refused", 502, False
    hint_default = "it may be another version, or no p2pnode: compare p2pnode version on both devices"


class StreamReset(TransportError):
    code = "stream_reset"


class ConnectionLost(TransportError):
    code = "connection_lost"


class PeerTimeout(TransportError):
    code, http_status = "peer_timeout", 504


# --- admission -------------------------------------------------------------------------------------
class AdmissionError(P2PNodeError):
    code, http_status = "admission", 403


class TicketInvalid(AdmissionError):
    code, http_status = "ticket_invalid", 400
    hint_default = "copy the whole ticket as printed by: p2pnode invite"


class InviteExpired(AdmissionError):
    code = "invite_expired"
    hint_default = "make a new one on a member device with: p2pnode invite"


class InviteUsed(AdmissionError):
    code = "invite_used"
    hint_default = "make a new one on a member device with: p2pnode invite --uses N"


class InviteRevoked(AdmissionError):
    code = "invite_revoked"
    hint_default = "ask who gave it; a new one is made on a member device with: p2pnode invite"


class NotAdmitted(AdmissionError):
    code = "not_admitted"
    hint_default = "join with a ticket from a member device: p2pnode join TICKET"


class IdentityMismatch(AdmissionError):
    code = "identity_mismatch"
    hint_default = "another device answers at this address: ask for a new ticket, made where the mesh is now"


class DuplicateIdentity(AdmissionError):
    code = "duplicate_identity"
    hint_default = (
        "run it on one device only; on the other, stop it and start with an empty data folder, and a ticket"
    )


class WrongMesh(AdmissionError):
    code = "wrong_mesh"


class ApprovalPending(AdmissionError):
    code, http_status, retryable = "approval_pending", 202, True
    hint_default = "on a member device: p2pnode approve CODE, or the panel's Devices page"


# --- log -------------------------------------------------------------------------------------------
class LogError(P2PNodeError):
    code, http_status = "log", 500


class NonCanonical(LogError):
    code, http_status = "non_canonical", 400


class CorruptRecord(LogError):
    """Details: `index`, the first event that cannot be what was sealed."""

    code = "corrupt_record"
    hint_default = (
        "keep the folder as it is; p2pnode log verify names the first event that is not what was sealed"
    )


class BadCheckpoint(LogError):
    code = "bad_checkpoint"


class BadPolicy(LogError):
    """A trust policy that cannot be read, or wants what cannot be."""

    code = "bad_policy"


class RollbackRefused(LogError):
    """The log is shorter than what this node already published: signing it would be a fork."""

    code = "rollback_refused"


class IdempotencyConflict(LogError):
    code, http_status = "idempotency_conflict", 409


class LogFailed(LogError):
    """The log could not be written: what is in memory may be ahead of the disk, so the node starts again."""

    code, http_status = "log_failed", 503
    hint_default = "look at the disk, then start the node again; nothing that was confirmed is lost"


class LogBusy(LogError):
    code, http_status, retryable = "log_busy", 503, True
    hint_default = "ask again in a moment"


class StateRebuilding(LogError):
    """What is known is folded from the record anew, by newer code. Details: `folded`, `size`."""

    code, http_status, retryable = "rebuilding", 503, True
    hint_default = "ask again in some seconds; p2pnode status shows how far it is"


# --- billing ---------------------------------------------------------------------------------------
class BillingError(P2PNodeError):
    code, http_status = "billing", 402


class InsufficientCredit(BillingError):
    code, http_status = "insufficient_quota", 429
    hint_default = "p2pnode topup adds credit, p2pnode statement shows where it went"


class QuotaExceeded(BillingError):
    code, http_status = "quota_exceeded", 429
    hint_default = "p2pnode quota shows what is left and when it begins anew"


class CreditEnded(BillingError):
    """The account's owner signed two things that cannot both be true: no credit any more."""

    code, http_status = "credit_ended", 403


class HoldResolved(BillingError):
    """A hold is settled, voided or expired exactly once."""

    code, http_status = "hold_resolved", 409


class ReceiptOwed(BillingError):
    """The consumer has to sign for earlier work before more is done for it."""

    code, http_status, retryable = "receipt_owed", 402, True


class BadReceipt(BillingError):
    """Not a receipt, wrongly signed, out of order, or about other work than was done."""

    code, http_status = "bad_receipt", 400


# --- models ----------------------------------------------------------------------------------------
class ModelError(P2PNodeError):
    code, http_status = "model", 400


class ModelUnknown(ModelError):
    code, http_status = "model_not_found", 404
    hint_default = "p2pnode models lists what this mesh has"


class BadModelFile(ModelError):
    """Not a GGUF, truncated, or with values that cannot be."""

    code = "bad_model_file"
    hint_default = "fetch the file again, or choose another .gguf file"


class ArchitectureUnsupported(ModelError):
    code = "architecture_unsupported"
    hint_default = "specs/21-surgery.md lists what can be run, and how it can be cut"


class ModelIncomplete(ModelError):
    code, http_status = "model_incomplete", 409
    hint_default = (
        "p2pnode show MODEL says what is missing: start the device that has it, or p2pnode pull it whole"
    )


class BlobMismatch(ModelError):
    """Bytes that do not have the content id they were asked by."""

    code, http_status = "blob_mismatch", 502


# --- plans -----------------------------------------------------------------------------------------
class PlanError(P2PNodeError):
    code, http_status = "plan", 409


class NoPlan(PlanError):
    """Details: `rejections`, one reason per candidate."""

    code = "no_plan"


class LayerGap(PlanError):
    code = "layer_gap"


# --- compute ---------------------------------------------------------------------------------------
class ComputeError(P2PNodeError):
    code, http_status = "compute", 500


class EngineUnavailable(ComputeError):
    code, http_status, retryable = "engine_unavailable", 503, True
    hint_default = "ask again; p2pnode log tail shows why the engine ended"


class EngineIncompatible(ComputeError):
    """llama.cpp is not the build whose layout we know."""

    code = "engine_incompatible"


class ShapeMismatch(ComputeError):
    code, http_status = "shape_mismatch", 400


class OutOfMemory(ComputeError):
    """Details: `needed_bytes`, `free_bytes`."""

    code, http_status = "out_of_memory", 507
    hint_default = "choose a smaller model or context, or more devices: p2pnode plan MODEL --why"


class StageLost(ComputeError):
    """Details: `peer`, `layers`."""

    code, http_status, retryable = "stage_lost", 503, True
    hint_default = "ask again: what is left of the mesh is planned with"


class SessionLost(ComputeError):
    """This engine does not hold the session up to the position asked for: replay it from the start."""

    code, http_status, retryable = "session_lost", 503, True
    hint_default = "ask again from the start"


class StaleEpoch(ComputeError):
    """A frame of an older plan of its session."""

    code, http_status = "stale_epoch", 409


class ContextFull(ComputeError):
    code, http_status = "context_length_exceeded", 400
    hint_default = (
        "shorten the conversation, or give the model a longer context: p2pnode set engine.MODEL context=N"
    )


class ModelLoading(ComputeError):
    """The model is not in memory yet; `loading` in the details says how far it is."""

    code, http_status, retryable = "model_loading", 503, True
    hint_default = "ask again in as many seconds as Retry-After says"


class Busy(ComputeError):
    code, http_status, retryable = "busy", 503, True
    hint_default = "ask again in a moment"


# --- api -------------------------------------------------------------------------------------------
class RequestError(P2PNodeError):
    code, http_status = "invalid_request", 400


class Unauthorized(P2PNodeError):
    code, http_status = "unauthorized", 401
    hint_default = "p2pnode keys create makes a key; send it as Authorization: Bearer KEY"


class Forbidden(P2PNodeError):
    code, http_status = "forbidden", 403


class RateLimited(P2PNodeError):
    code, http_status, retryable = "rate_limited", 429, True
    hint_default = "wait as many seconds as Retry-After says"


class NotFound(P2PNodeError):
    code, http_status = "not_found", 404


class MethodNotAllowed(P2PNodeError):
    code, http_status = "method_not_allowed", 405


class BodyTooLarge(P2PNodeError):
    code, http_status = "body_too_large", 413
    hint_default = "send less at once"


class ToolFailed(P2PNodeError):
    """A tool server of the operator did not do what was asked of it."""

    code, http_status, retryable = "tool_failed", 502, True
    hint_default = "look at the tool server's own output"


class BodyTimeout(P2PNodeError):
    code, http_status = "body_timeout", 408
    hint_default = "send the body without long pauses"


class TemplateError(RequestError):
    """A model's chat template refused the conversation or broke a bound."""

    code = "chat_template"


class Cancelled(P2PNodeError):
    code, http_status = "cancelled", 499
