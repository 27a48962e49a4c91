"""Frames without rows: conditions on their way to the head, ends and beginnings of sessions along the stages."""

from __future__ import annotations

from p2pnode.errors import ComputeError, P2PNodeError, SessionLost, StageLost
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


def _notice(kind: Kind, session: int, count: int = 0, prefix: int = 0) -> Frame:
    return Frame(
        kind=kind, dtype=DType.F32, rows=0, columns=0, session=session, position_first=count, request=prefix
    )


def keep_frame(session: int, count: int) -> Frame:
    """Tells every stage to lay a session's first positions aside as the prefix of its number."""
    return _notice(Kind.KEEP, session, count)


def reuse_frame(session: int, prefix: int, count: int) -> Frame:
    """Tells every stage, before the first rows of a session, with which positions it begins."""
    return _notice(Kind.REUSE, session, count, prefix)


def forget_frame(prefix: int) -> Frame:
    return _notice(Kind.FORGET, prefix)


def condition_of(frame: Frame) -> P2PNodeError:
    """What an error frame says, as the head takes it: a stage that is gone can be replaced, others cannot."""
    code = str(frame.meta.get("code", ""))
    message = str(frame.meta.get("message", "a stage failed without saying why"))
    if code in _GONE:
        return StageLost(message, **{"peer": frame.meta.get("peer", "")})
    if code == SessionLost.code:
        return SessionLost(message)
    return ComputeError(message, hint=str(frame.meta.get("hint", "")))
