"""Frames without rows: a condition on its way to the head, the end of a session on its way along the stages."""

from __future__ import annotations

from p2pnode.errors import ComputeError, P2PNodeError, StageLost
from p2pnode.frame import DType, Frame, Kind

_GONE = ("stage_lost", "engine_unavailable", "connection_lost", "peer_unreachable", "stream_reset")


def error_frame(of: Frame, error: P2PNodeError) -> Frame:
    """What travels instead of rows when a stage could not compute; it says which condition it was."""
    meta = {"code": error.code, "message": error.message[:400], "hint": error.hint[:200]}
    return Frame(
        kind=Kind.ERROR, dtype=DType.F32, rows=0, columns=0, session=of.session, epoch=of.epoch,
        position_first=of.position_first, sequence=of.sequence, request=of.request, meta=meta,
    )  # fmt: skip


def free_frame(session: int, epoch: int) -> Frame:
    """Tells every stage, in order with the frames before it, that a session is over."""
    return Frame(kind=Kind.FREE, dtype=DType.F32, rows=0, columns=0, session=session, epoch=epoch)


def condition_of(frame: Frame) -> P2PNodeError:
    """What an error frame says, as the head takes it: a stage that is gone can be replaced, others cannot."""
    code = str(frame.meta.get("code", ""))
    message = str(frame.meta.get("message", "a stage failed without saying why"))
    if code in _GONE:
        return StageLost(message, **{"peer": frame.meta.get("peer", "")})
    return ComputeError(message, hint=str(frame.meta.get("hint", "")))
