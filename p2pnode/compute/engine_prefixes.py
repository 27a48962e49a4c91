"""Beginnings of finished sessions, kept beside the cells of a unit as the states llama.cpp gives out.

Outside of the cells they cost running sessions nothing and leave no trace in what these compute: llama.cpp sums over
cells in tiles, so a session behind kept cells rounds differently (specs/decisions/0022-prefixes-outside-the-cells.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pnode.compute import kv_state
from p2pnode.compute.engine_step import Session
from p2pnode.compute.llama_context import Context
from p2pnode.compute.llama_model import Model
from p2pnode.errors import ContextFull, P2PNodeError, SessionLost, ShapeMismatch
from p2pnode.heap import own_pages


@dataclass(frozen=True, slots=True)
class _Kept:
    blob: memoryview
    positions: int
    """In the blob; a frame that was under way may have added one that nobody confirmed."""
    count: int


class Prefixes:
    """A bounded table; the head decides what goes when."""

    def __init__(self, model: Model, context: Context, bytes_max: int) -> None:
        self._model = model
        self._context = context
        self._bytes_max = bytes_max
        self._bytes = 0
        self._kept: dict[int, _Kept] = {}

    def keep(self, prefix_id: int, session: Session, count: int) -> int:
        if not 0 < count <= session.length:
            raise SessionLost(f"a session of {session.length} positions cannot be kept up to {count}")
        if self._model.recurrent and count != session.length:
            raise SessionLost("a recurrent model can only keep a whole session")
        self.forget(prefix_id)
        blob = self._context.state(session.sequence)
        if self._bytes + len(blob) > self._bytes_max:
            raise ContextFull(
                f"prefixes of {self._bytes + len(blob)} bytes, this unit keeps {self._bytes_max} at most"
            )
        self._kept[prefix_id] = _Kept(blob, session.length, count)
        self._bytes += len(blob)
        return self._bytes

    def check(self, prefix_id: int, count: int) -> None:
        """SessionLost when that many positions of it are not here."""
        kept = self._kept.get(prefix_id)
        if kept is None or not 0 < count <= kept.count:
            raise SessionLost(f"{count} positions of prefix {prefix_id} are not kept here")
        if self._model.recurrent and count != kept.positions:
            raise SessionLost("a recurrent model can only use a whole prefix")

    def restore(self, prefix_id: int, session: Session, count: int) -> None:
        """Into a session that holds nothing; SessionLost when there is no room for it."""
        kept = self._kept[prefix_id]
        try:
            self._context.set_state(session.sequence, _shortened(kept, count))
            fits = self._context.length(session.sequence) >= count
            if fits and self._context.length(session.sequence) > count:
                fits = self._context.drop_from(session.sequence, count)
        except P2PNodeError:
            fits = False
        if not fits:
            self._context.drop(session.sequence)
            raise SessionLost(f"prefix {prefix_id} could not be used")
        session.length = count

    def forget(self, prefix_id: int) -> None:
        kept = self._kept.pop(prefix_id, None)
        if kept is not None:
            self._bytes -= len(kept.blob)

    def clear(self) -> None:
        self._kept.clear()
        self._bytes = 0


def _shortened(kept: _Kept, count: int) -> memoryview:
    """Only what is wanted where the layout is known, so that no more cells are needed on the way; else all of it."""
    if count == kept.positions:
        return kept.blob
    try:
        pieces = list(kv_state.take_apart(kept.blob).positions(count).pieces())
    except ShapeMismatch:
        return kept.blob
    shorter, at = own_pages(sum(map(len, pieces))), 0
    for piece in pieces:
        shorter[at : at + len(piece)] = piece
        at += len(piece)
    return shorter
