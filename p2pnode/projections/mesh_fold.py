"""The log's fold over `MeshState`, whole or a part of it: newer code rebuilds only the parts it changed.

Each part of the state is folded from the record alone and never from another part, so a part of a snapshot
is as good as the code that wrote it, whatever became of its neighbours. Source: specs/08-log.md#rebuilding
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final, NoReturn

import msgspec

from p2pnode.errors import StateRebuilding
from p2pnode.events.codec import Record
from p2pnode.projections.state import (
    TABLE,
    VERSIONS,
    MeshState,
    all_projections,
    apply,
    initial,
    restore,
    snapshot,
)

SHOWN_ONLY: Final = frozenset({"usage"})
"""Parts that nobody decides by: they may be behind while they are rebuilt. Everything else must be exact first."""

_PART_TYPES: Final[dict[str, Any]] = {
    field.name: field.type for field in msgspec.structs.fields(MeshState) if field.name != "size"
}


class _Hidden:
    """Stands where a part will be: a decision that looks at it does not happen."""

    def __init__(self, part: str) -> None:
        object.__setattr__(self, "part", part)

    def __getattr__(self, name: str) -> NoReturn:
        raise StateRebuilding(f"what is known of {object.__getattribute__(self, 'part')} is being rebuilt")


class MeshFold:
    """`apply` changes the state it is given and returns it. Implements `PartedFold`."""

    version: Final = ", ".join(f"{part} {number}" for part, number in VERSIONS.items())
    parts: Final = frozenset(all_projections())
    deciding: Final = frozenset(all_projections()) - SHOWN_ONLY

    def initial(self) -> MeshState:
        return initial()

    def apply(self, state: MeshState, record: Record) -> MeshState:
        return apply(state, record)

    def dump(self, state: MeshState) -> bytes:
        return snapshot(state)

    def load(self, raw: bytes) -> MeshState:
        return restore(raw)

    # --- in parts ------------------------------------------------------------------------------------
    def stale(self, version: str) -> frozenset[str]:
        written = set(version.split(", "))
        return frozenset(part for part, number in VERSIONS.items() if f"{part} {number}" not in written)

    def revive(self, raw: bytes) -> tuple[MeshState, frozenset[str]]:
        state = initial()
        try:
            found = msgspec.msgpack.decode(raw, type=dict[str, msgspec.Raw])
        except msgspec.MsgspecError:
            return state, self.parts
        with suppress(KeyError, msgspec.MsgspecError):
            state.size = msgspec.msgpack.decode(found["size"], type=int)
        unreadable = set()
        for part, kind in _PART_TYPES.items():
            try:
                setattr(state, part, msgspec.msgpack.decode(found[part], type=kind))
            except (KeyError, msgspec.MsgspecError, ValueError, TypeError):
                unreadable.add(part)
        return state, frozenset(unreadable)

    def only(self, parts: frozenset[str]) -> MeshFold:
        return _Only(parts)

    def hide(self, state: MeshState, parts: frozenset[str]) -> None:
        for part in parts:
            setattr(state, part, _Hidden(part))

    def join(self, state: MeshState, rebuilt: MeshState, parts: frozenset[str]) -> None:
        for part in parts:
            setattr(state, part, getattr(rebuilt, part))
        state.size = rebuilt.size


class _Only(MeshFold):
    """Folds some parts and leaves the others as they are; whoever gives it the events keeps their order."""

    def __init__(self, parts: frozenset[str]) -> None:
        self._table = {kind: tuple(row for row in rows if row[0] in parts) for kind, rows in TABLE.items()}

    def apply(self, state: MeshState, record: Record) -> MeshState:
        event = record.event
        for part, handler in self._table[type(event)]:
            handler(getattr(state, part), record, event)
        state.size = record.index + 1
        return state
