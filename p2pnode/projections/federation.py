"""Other meshes whose guest this node is: whom it may ask for whole answers."""

from __future__ import annotations

from typing import Final

import msgspec

from p2pnode.events import types as facts
from p2pnode.events.codec import Record
from p2pnode.projections.fold import Handlers, in_order


class OtherMesh(msgspec.Struct, array_like=True):
    index: int
    mesh_name: str
    """What it calls itself."""
    name: str
    """What people here call it."""
    gateway: str
    grant: bytes
    since_ms: int


class Federation(msgspec.Struct):
    meshes: dict[str, OtherMesh] = {}
    """By mesh id."""

    def __post_init__(self) -> None:
        self.meshes = in_order(self.meshes)


def initial() -> Federation:
    return Federation()


def called(state: Federation, name: str) -> str | None:
    """The id of the mesh that people here call so."""
    return next((mesh_id for mesh_id, entry in state.meshes.items() if entry.name == name), None)


def _federated(state: Federation, record: Record, event: facts.MeshFederated) -> None:
    before = state.meshes.pop(event.mesh_id, None)
    state.meshes[event.mesh_id] = OtherMesh(
        record.index,
        event.mesh_name,
        event.name,
        event.gateway,
        event.grant,
        record.wall_ms if before is None else before.since_ms,
    )


def _ended(state: Federation, record: Record, event: facts.MeshFederationEnded) -> None:
    state.meshes.pop(event.mesh_id, None)


HANDLERS: Final[Handlers] = {facts.MeshFederated: _federated, facts.MeshFederationEnded: _ended}
