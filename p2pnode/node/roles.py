"""What each role may use: members everything, guests whole answers, strangers only what lets them in."""

from __future__ import annotations

ADMIT = "/p2pnode/admit/1"
INFER = "/p2pnode/infer/1"
"""Whole answers: `node.federation`."""
OPEN_PROTOCOLS = frozenset({ADMIT, "/ipfs/ping/1.0.0", "/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0"})
"""What a stranger may use."""
GUEST = "guest"
GUEST_PROTOCOLS = frozenset({*OPEN_PROTOCOLS, INFER})
"""What the node of another mesh may use: whole answers, no stage, no weights, nothing that members tell each other."""


def is_member(role: str) -> bool:
    """Guests, which belong to another mesh, are none; strangers have no role."""
    return role not in ("", GUEST)


def may_use(role: str, protocol: str) -> bool:
    if role == GUEST:
        return protocol in GUEST_PROTOCOLS
    return protocol in OPEN_PROTOCOLS or is_member(role)
