"""What faces see, by name: plain JSON-able dicts, built anew at each call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from p2pnode.projections import (
    audit,
    billing_view,
    invites,
    metrics,
    models,
    node,
    peers,
    plans,
    sessions,
    settings,
    usage,
)
from p2pnode.projections.fold import JsonObject
from p2pnode.projections.state import MeshState

DEFAULT_MODEL_SETTING: Final = "model.default"
DEFAULT_MODEL: Final = "p2pnode-demo"


def names(state: MeshState) -> dict[str, str]:
    """Peer id to device name, for those that have one."""
    return {peer: entry.name for peer, entry in state.peers.peers.items() if entry.name}


def model_facts(state: MeshState) -> dict[str, tuple[str, int, int]]:
    """Content id to (name, size_bytes, layers)."""
    return {
        model: (entry.name, entry.size_bytes, entry.layers) for model, entry in state.models.models.items()
    }


def default_model(state: MeshState) -> str:
    """What is used where no model is named."""
    return settings.value_of(state.settings, DEFAULT_MODEL_SETTING, DEFAULT_MODEL)


def _plans(state: MeshState, now_ms: int) -> JsonObject:
    return plans.view(state.plans, now_ms, names=names(state), models=model_facts(state))


def _sessions(state: MeshState, now_ms: int) -> JsonObject:
    meshes = {mesh_id: entry.name for mesh_id, entry in state.federation.meshes.items()}
    return sessions.view(state.sessions, now_ms, names=names(state), models=model_facts(state), meshes=meshes)


def _models(state: MeshState, now_ms: int) -> JsonObject:
    return models.view(state.models, now_ms, default=default_model(state))


VIEWS: Final[dict[str, Callable[[MeshState, int], JsonObject]]] = {
    "audit": lambda state, now_ms: {"size": state.size, **audit.view(state.audit, now_ms)},
    "billing": lambda state, now_ms: billing_view.view(state.billing, now_ms, names=names(state)),
    "invites": lambda state, now_ms: invites.view(state.invites, now_ms),
    "metrics": metrics.view,
    "models": _models,
    "node": lambda state, now_ms: node.view(state.node, now_ms),
    "peers": lambda state, now_ms: peers.view(state.peers, now_ms),
    "plans": _plans,
    "sessions": _sessions,
    "settings": lambda state, now_ms: settings.view(state.settings, now_ms),
    "usage": lambda state, now_ms: usage.view(state.usage, now_ms, models=model_facts(state)),
}


PARTS_SHOWN: Final[dict[str, frozenset[str]]] = {
    **{name: frozenset({name}) for name in VIEWS},
    "billing": frozenset({"billing", "peers"}),
    "metrics": frozenset({"audit", "billing", "models", "node", "peers", "plans", "sessions", "usage"}),
    "models": frozenset({"models", "settings"}),
    "plans": frozenset({"plans", "peers", "models"}),
    "sessions": frozenset({"sessions", "peers", "models", "federation"}),
    "usage": frozenset({"usage", "models"}),
}
"""What each view looks at: while a part of it is rebuilt, the view is as old as that part."""


def view(state: MeshState, name: str, now_ms: int) -> JsonObject:
    """One of `VIEWS`; their keys are in the docstring of each projection's `view`."""
    return VIEWS[name](state, now_ms)
