"""Accounts: double entry in whole micro-units; a balance is the sum of its postings and nothing else.

Accounts that hold credit (`local`, API keys, peers) are never negative. Two kinds may be, because they
say where credit came from: `mint/...` (given by the owner), and `due/<peer>` (earned at a peer, who owes
it). `held/<account>` is credit set aside for running requests. Rules: specs/09-billing.md
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from p2pnode.events import receipt as receipts
from p2pnode.events import types as facts
from p2pnode.projections.fold import in_order

MINT_WELCOME: Final = "mint/welcome"
MINT_TOPUP: Final = "mint/topup"
HELD: Final = "held/"
DUE: Final = "due/"
MAY_BE_NEGATIVE: Final = ("mint/", DUE)
SYSTEM: Final = ("mint/", HELD, DUE)

Postings = tuple[tuple[str, int], ...]
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS


class Account(msgspec.Struct, array_like=True):
    """What is known of an account beside its balance."""

    index: int
    opened_ms: int
    granted: int = 0
    topped_up: int = 0
    spent: int = 0
    earned: int = 0
    requests: int = 0
    holds_open: int = 0
    welcomed: bool = False
    ended: str = ""
    """Why this account gets no credit any more; empty while it does."""
    quota: int | None = None
    quota_period_ms: int = 0
    quota_window: int = 0
    """Number of the period that `quota_used` counts."""
    quota_used: int = 0


class Hold(msgspec.Struct, array_like=True):
    index: int
    payer: str
    request_id: str
    amount: int
    quoted: int
    expires_ms: int
    free: bool
    quota_window: int = -1
    """The period whose quota it uses; -1 for none."""
    settled: int = 0
    """Paid already for units that were delivered; `amount` is what is left."""
    units: int = 0
    shares: dict[str, int] = {}
    """Who earned what of `settled`."""


class Resolution(msgspec.Struct, array_like=True):
    """How a hold ended: `settled`, `voided` or `expired`."""

    index: int
    kind: str
    payer: str
    request_id: str
    amount: int
    shares: tuple[tuple[str, int], ...] = ()


class TopUpMade(msgspec.Struct, array_like=True):
    index: int
    account: str
    amount: int


class Channel(msgspec.Struct, array_like=True):
    """Receipts between this node and one peer, one direction."""

    index: int
    peer: str
    sequence: int = 0
    """Of the newest receipt signed by the provider; the first is 1."""
    receipts: tuple[tuple[bytes, bytes], ...] = ()
    """(bytes, provider's signature) of the newest fact's receipts in order; what waits to be signed is among them."""
    layer_tokens: int = 0
    microunits: int = 0
    agreed_sequence: int = 0
    """Of the newest receipt that both signed."""
    agreed_layer_tokens: int = 0
    agreed_microunits: int = 0
    keys: bytes = b""
    """The provider's encoded `KeysBound` under which this node took its receipts; empty where none was recorded."""

    @property
    def receipt(self) -> bytes:
        """The newest; nothing before the first."""
        return self.receipts[-1][0] if self.receipts else b""

    @property
    def waiting(self) -> tuple[tuple[bytes, bytes], ...]:
        """Those the consumer has not signed, oldest first."""
        count = self.sequence - self.agreed_sequence
        return self.receipts[len(self.receipts) - count :]

    def numbered(self, sequence: int) -> tuple[bytes, bytes] | None:
        """A receipt of the newest fact by its number."""
        at = len(self.receipts) - 1 - (self.sequence - sequence)
        return self.receipts[at] if 0 <= at < len(self.receipts) else None


class Billing(msgspec.Struct):
    own_account: str = ""
    """This node's peer id, from KeysBound."""
    balances: dict[str, int] = {}
    accounts: dict[str, Account] = {}
    holds: dict[str, Hold] = {}
    resolved: dict[str, Resolution] = {}
    topups: dict[str, TopUpMade] = {}
    """Idempotency key to what it did."""
    given: dict[str, Channel] = {}
    """Consumer to the channel of receipts this node gave it."""
    received: dict[str, Channel] = {}
    """Provider to the channel of receipts this node signed."""
    welcome_hour: int = 0
    welcomes_in_hour: int = 0
    welcome_day: int = 0
    welcomes_by_network: dict[str, int] = {}

    def __post_init__(self) -> None:
        self.holds = in_order(self.holds)
        self.resolved = in_order(self.resolved)
        self.topups = in_order(self.topups)


def is_system(account: str) -> bool:
    return account.startswith(SYSTEM)


def available(state: Billing, account: str) -> int:
    """Credit that is neither spent nor held."""
    return state.balances.get(account, 0)


def held(state: Billing, account: str) -> int:
    return state.balances.get(HELD + account, 0)


def balances(state: Billing) -> Mapping[str, int]:
    """Read-only: every account with a balance; the sum is 0."""
    return MappingProxyType(state.balances)


def quota_left(state: Billing, account: str, now_ms: int) -> int | None:
    """Micro-units the account may still use in this period by list price; None without a quota."""
    entry = state.accounts.get(account)
    if entry is None or entry.quota is None:
        return None
    used = entry.quota_used if now_ms // entry.quota_period_ms <= entry.quota_window else 0
    return max(entry.quota - used, 0)


def exposure(state: Billing, consumer: str) -> int:
    """Micro-units this node signed a receipt for that `consumer` has not signed yet."""
    channel = state.given.get(consumer)
    return 0 if channel is None else channel.microunits - channel.agreed_microunits


# --- postings --------------------------------------------------------------------------------------
def postings_held(event: facts.CreditHeld) -> Postings:
    return ((event.payer, -event.amount_microunits), (HELD + event.payer, event.amount_microunits))


def postings_settled(event: facts.CreditSettled, held_microunits: int) -> Postings:
    return (
        (HELD + event.payer, -held_microunits),
        (event.payer, held_microunits - event.amount_microunits),
        *event.shares,
    )


def postings_unit(event: facts.UnitSettled) -> Postings:
    return ((HELD + event.payer, -event.amount_microunits), *event.shares)


def postings_released(payer: str, held_microunits: int) -> Postings:
    return ((HELD + payer, -held_microunits), (payer, held_microunits))


def postings_minted(mint: str, account: str, amount_microunits: int) -> Postings:
    return ((mint, -amount_microunits), (account, amount_microunits))


def postings_earned(state: Billing, event: facts.ReceiptGiven) -> Postings:
    """Receipts that both signed: the difference to the sum agreed before is due from the consumer."""
    agreed = [raw for raw, _, countersignature in event.receipts if countersignature is not None]
    if not agreed:
        return ()
    channel = state.given.get(event.peer)
    before = 0 if channel is None else channel.agreed_microunits
    earned = receipts.read(agreed[-1]).cumulative_microunits - before
    return ((DUE + event.peer, -earned), (state.own_account, earned)) if earned else ()
