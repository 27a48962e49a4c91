"""This node: its name in the mesh, whether it runs and takes work, its engine and its API keys."""

from __future__ import annotations

from typing import Final

import msgspec

from p2pnode import limits
from p2pnode.events import types as facts
from p2pnode.events.codec import Record
from p2pnode.projections.fold import Handlers, JsonObject, forget_oldest, in_order


class ApiKey(msgspec.Struct, array_like=True):
    index: int
    label: str
    scopes: tuple[str, ...]
    created_ms: int
    revoked: bool = False


class Node(msgspec.Struct):
    peer: str = ""
    origin: str = ""
    key_generation: int = 0
    mesh_id: str = ""
    mesh_name: str = ""
    role: str = ""
    device_name: str = ""
    version: str = ""
    running: bool = False
    started_ms: int = 0
    starts: int = 0
    crashes: int = 0
    """Starts that no clean stop preceded."""
    work: str = "taking"
    """taking, paused or drained."""
    work_by: str = ""
    """Who brought it there: the record's actor, `local` for the owner; empty when nothing ever did."""
    work_ms: int = 0
    engine_deaths: int = 0
    engine_restarts: int = 0
    engine_down: dict[str, str] = {}
    """Model to the reason its engine is not running."""
    api_keys: dict[str, ApiKey] = {}

    def __post_init__(self) -> None:
        self.api_keys = in_order(self.api_keys)


def initial() -> Node:
    return Node()


def _node_started(state: Node, record: Record, event: facts.NodeStarted) -> None:
    if state.running:
        state.crashes += 1
    state.running, state.started_ms = True, record.wall_ms
    state.starts += 1
    state.version, state.device_name = event.version, event.device_name
    state.engine_down = {}


def _node_stopped(state: Node, record: Record, event: facts.NodeStopped) -> None:
    state.running = False


def _keys_bound(state: Node, record: Record, event: facts.KeysBound) -> None:
    state.peer, state.origin, state.key_generation = event.peer, event.origin, event.generation


def _mesh_created(state: Node, record: Record, event: facts.MeshCreated) -> None:
    state.mesh_id, state.mesh_name, state.role = event.mesh_id, event.mesh_name, "owner"


def _mesh_joined(state: Node, record: Record, event: facts.MeshJoined) -> None:
    state.mesh_id, state.mesh_name, state.role = event.mesh_id, event.mesh_name, event.role


def _work(state: Node, record: Record, work: str) -> None:
    state.work, state.work_by, state.work_ms = work, record.actor, record.wall_ms


def _device_paused(state: Node, record: Record, event: facts.DevicePaused) -> None:
    _work(state, record, "paused")


def _device_resumed(state: Node, record: Record, event: facts.DeviceResumed) -> None:
    _work(state, record, "taking")


def _device_drained(state: Node, record: Record, event: facts.DeviceDrained) -> None:
    _work(state, record, "drained")


def _engine_died(state: Node, record: Record, event: facts.EngineDied) -> None:
    state.engine_deaths += 1
    state.engine_down[event.model] = event.reason
    forget_oldest(state.engine_down, limits.MODELS_KEPT_MAX)


def _engine_restarted(state: Node, record: Record, event: facts.EngineRestarted) -> None:
    state.engine_restarts += 1
    state.engine_down.pop(event.model, None)


def _api_key_created(state: Node, record: Record, event: facts.ApiKeyCreated) -> None:
    state.api_keys[event.key_id] = ApiKey(record.index, event.label, event.scopes, record.wall_ms)
    forget_oldest(state.api_keys, limits.API_KEYS_KEPT_MAX)


def _api_key_revoked(state: Node, record: Record, event: facts.ApiKeyRevoked) -> None:
    key = state.api_keys.get(event.key_id)
    if key is not None:
        key.revoked = True


def view(state: Node, now_ms: int) -> JsonObject:
    """{"peer_id", "mesh_id", "mesh_name", "name", "role", "version", "running", "work", "uptime_ms",
    "starts", "crashes", "engine": {"deaths", "restarts", "down": {model: reason}}, "api_keys":
    [{"key_id", "label", "scopes", "created_ms", "revoked"}]}
    """
    return {
        "peer_id": state.peer,
        "mesh_id": state.mesh_id,
        "mesh_name": state.mesh_name,
        "name": state.device_name,
        "role": state.role,
        "version": state.version,
        "running": state.running,
        "work": state.work,
        "uptime_ms": max(now_ms - state.started_ms, 0) if state.running else 0,
        "starts": state.starts,
        "crashes": state.crashes,
        "log_origin": state.origin,
        "engine": {
            "deaths": state.engine_deaths,
            "restarts": state.engine_restarts,
            "down": dict(state.engine_down),
        },
        "api_keys": [
            {
                "key_id": key_id,
                "label": key.label,
                "scopes": list(key.scopes),
                "created_ms": key.created_ms,
                "revoked": key.revoked,
            }
            for key_id, key in state.api_keys.items()
        ],
    }


HANDLERS: Final[Handlers] = {
    facts.NodeStarted: _node_started,
    facts.NodeStopped: _node_stopped,
    facts.KeysBound: _keys_bound,
    facts.MeshCreated: _mesh_created,
    facts.MeshJoined: _mesh_joined,
    facts.DevicePaused: _device_paused,
    facts.DeviceResumed: _device_resumed,
    facts.DeviceDrained: _device_drained,
    facts.EngineDied: _engine_died,
    facts.EngineRestarted: _engine_restarted,
    facts.ApiKeyCreated: _api_key_created,
    facts.ApiKeyRevoked: _api_key_revoked,
}
