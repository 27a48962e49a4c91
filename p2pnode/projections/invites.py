"""Invites: which tickets are out, how often each may still be used, until when."""

from __future__ import annotations

from typing import Final

import msgspec

from p2pnode import limits
from p2pnode.events import types as facts
from p2pnode.events.codec import Record
from p2pnode.projections.fold import Handlers, JsonObject, forget_oldest, in_order


class Invite(msgspec.Struct, array_like=True):
    index: int
    label: str
    role: str
    uses: int
    uses_left: int
    created_ms: int
    expires_ms: int
    revoked: bool = False
    peers: tuple[str, ...] = ()
    """Who came with it, newest last; at most 64."""


PEERS_PER_INVITE: Final = 64


class Invites(msgspec.Struct):
    invites: dict[str, Invite] = {}

    def __post_init__(self) -> None:
        self.invites = in_order(self.invites)


def initial() -> Invites:
    return Invites()


def state_of(invite: Invite, now_ms: int) -> str:
    """open, revoked, used or expired."""
    if invite.revoked:
        return "revoked"
    if invite.uses_left <= 0:
        return "used"
    return "expired" if now_ms >= invite.expires_ms else "open"


def _invite_created(state: Invites, record: Record, event: facts.InviteCreated) -> None:
    state.invites[event.invite_id] = Invite(
        record.index,
        event.label,
        event.role,
        event.uses,
        event.uses,
        record.wall_ms,
        event.expires_ms,
    )
    forget_oldest(state.invites, limits.INVITES_KEPT_MAX)


def _invite_revoked(state: Invites, record: Record, event: facts.InviteRevoked) -> None:
    invite = state.invites.get(event.invite_id)
    if invite is not None:
        invite.revoked = True


def _invite_used(state: Invites, record: Record, event: facts.InviteUsed) -> None:
    invite = state.invites.get(event.invite_id)
    if invite is not None:
        invite.uses_left = event.uses_left
        invite.peers = (*invite.peers, event.peer)[-PEERS_PER_INVITE:]


def view(state: Invites, now_ms: int) -> JsonObject:
    """{"invites": [{"invite_id", "label", "role", "uses", "uses_left", "created_ms", "expires_ms",
    "state", "peers"}]}, newest first
    """
    return {
        "invites": [
            {
                "invite_id": invite_id,
                "label": invite.label,
                "role": invite.role,
                "uses": invite.uses,
                "uses_left": invite.uses_left,
                "created_ms": invite.created_ms,
                "expires_ms": invite.expires_ms,
                "state": state_of(invite, now_ms),
                "peers": list(invite.peers),
            }
            for invite_id, invite in reversed(state.invites.items())
        ]
    }


HANDLERS: Final[Handlers] = {
    facts.InviteCreated: _invite_created,
    facts.InviteRevoked: _invite_revoked,
    facts.InviteUsed: _invite_used,
}
