"""Billing: what each fact does to accounts, holds, quotas and receipts; a record that cannot be is refused.

Rules: specs/09-billing.md. Accounts and what may be asked of them: `accounts`.
"""

from __future__ import annotations

from typing import Final

from p2pnode import limits
from p2pnode.errors import CorruptRecord
from p2pnode.events import types as facts
from p2pnode.events.codec import Record
from p2pnode.projections.accounts import (
    DAY_MS,
    DUE,
    HELD,
    HOUR_MS,
    MAY_BE_NEGATIVE,
    MINT_TOPUP,
    MINT_WELCOME,
    Account,
    Billing,
    Channel,
    Hold,
    Postings,
    Resolution,
    TopUpMade,
    available,
    balances,
    exposure,
    held,
    is_system,
    postings_earned,
    postings_held,
    postings_minted,
    postings_released,
    postings_settled,
    postings_unit,
    quota_left,
)
from p2pnode.projections.channels import Read, agree, follow, read_all, require
from p2pnode.projections.fold import Handlers, forget_oldest, plus

__all__ = [
    "DAY_MS",
    "DUE",
    "HANDLERS",
    "HELD",
    "HOUR_MS",
    "MINT_TOPUP",
    "MINT_WELCOME",
    "Billing",
    "Channel",
    "Hold",
    "Postings",
    "Resolution",
    "available",
    "balances",
    "exposure",
    "held",
    "initial",
    "postings_earned",
    "postings_held",
    "postings_minted",
    "postings_released",
    "postings_settled",
    "postings_unit",
    "quota_left",
]


def initial() -> Billing:
    return Billing()


def _post(state: Billing, record: Record, postings: Postings) -> None:
    """The one place where balances change."""
    table = state.balances
    total = 0
    for account, amount in postings:
        total += amount
        balance = table.get(account, 0) + amount
        if balance:
            table[account] = balance
        else:
            table.pop(account, None)
    require(total == 0, record, "its postings do not sum to zero")
    for account, _ in postings:
        balance = table.get(account, 0)
        if balance < 0 and not account.startswith(MAY_BE_NEGATIVE):
            raise CorruptRecord(f"event {record.index} overdraws {account}", index=record.index)
        require(abs(balance) <= limits.BALANCE_MICROUNITS_MAX, record, "there is not that much credit")


def _account(state: Billing, record: Record, account: str) -> Account:
    entry = state.accounts.get(account)
    if entry is None:
        require(not is_system(account), record, f"{account} is not an account of anybody")
        entry = state.accounts[account] = Account(record.index, record.wall_ms)
    return entry


# --- facts -----------------------------------------------------------------------------------------
def _keys_bound(state: Billing, record: Record, event: facts.KeysBound) -> None:
    state.own_account = event.peer


def _welcome_granted(state: Billing, record: Record, event: facts.WelcomeGranted) -> None:
    entry = _account(state, record, event.account)
    require(not entry.welcomed, record, f"{event.account} was welcomed before")
    entry.welcomed = True
    entry.granted = plus(entry.granted, event.amount_microunits)
    hour, day = record.wall_ms // HOUR_MS, record.wall_ms // DAY_MS
    if hour > state.welcome_hour:
        state.welcome_hour, state.welcomes_in_hour = hour, 0
    if day > state.welcome_day:
        state.welcome_day, state.welcomes_by_network = day, {}
    state.welcomes_in_hour += 1
    if event.network:
        state.welcomes_by_network[event.network] = state.welcomes_by_network.get(event.network, 0) + 1
    _post(state, record, postings_minted(MINT_WELCOME, event.account, event.amount_microunits))


def _credit_topped_up(state: Billing, record: Record, event: facts.CreditToppedUp) -> None:
    entry = _account(state, record, event.account)
    entry.topped_up = plus(entry.topped_up, event.amount_microunits)
    if record.idempotency_key is not None:
        state.topups[record.idempotency_key] = TopUpMade(record.index, event.account, event.amount_microunits)
        forget_oldest(state.topups, limits.TOPUPS_KEPT_MAX)
    _post(state, record, postings_minted(MINT_TOPUP, event.account, event.amount_microunits))


def _credit_held(state: Billing, record: Record, event: facts.CreditHeld) -> None:
    hold_id = event.hold_id
    require(hold_id not in state.holds and hold_id not in state.resolved, record, "a hold is made once")
    entry = _account(state, record, event.payer)
    entry.holds_open += 1
    state.holds[hold_id] = Hold(
        record.index,
        event.payer,
        event.request_id,
        event.amount_microunits,
        event.quoted_microunits,
        event.expires_ms,
        event.free,
        _use_quota(entry, record.wall_ms, event.quoted_microunits),
    )
    if event.amount_microunits:
        _post(state, record, postings_held(event))


def _use_quota(entry: Account, now_ms: int, quoted: int) -> int:
    if entry.quota is None:
        return -1
    window = now_ms // entry.quota_period_ms
    if window > entry.quota_window:
        entry.quota_window, entry.quota_used = window, 0
    entry.quota_used = plus(entry.quota_used, quoted)
    return entry.quota_window


def _give_back_quota(entry: Account, hold: Hold, quoted: int) -> None:
    """Only within the period it was taken from: a hold across midnight does not lengthen tomorrow."""
    if entry.quota is not None and hold.quota_window == entry.quota_window:
        entry.quota_used = max(entry.quota_used - max(hold.quoted - quoted, 0), 0)


def _resolve(state: Billing, record: Record, hold_id: str, payer: str) -> tuple[Hold, Account]:
    hold = state.holds.pop(hold_id, None)
    if hold is None or hold.payer != payer:
        raise CorruptRecord(f"event {record.index} resolves a hold that is not open", index=record.index)
    entry = state.accounts[payer]
    entry.holds_open -= 1
    return hold, entry


def _remember(state: Billing, hold_id: str, resolution: Resolution) -> None:
    state.resolved[hold_id] = resolution
    forget_oldest(state.resolved, limits.HOLDS_RESOLVED_KEPT_MAX)


def _credit_settled(state: Billing, record: Record, event: facts.CreditSettled) -> None:
    hold, entry = _resolve(state, record, event.hold_id, event.payer)
    amount = event.amount_microunits
    require(amount <= hold.amount, record, "it settles more than was held")
    entry.requests += 1
    entry.spent = plus(entry.spent, amount)
    _give_back_quota(entry, hold, event.quoted_microunits)
    if hold.amount:
        for account, share in event.shares:
            _earn(state, record, account, share)
        _post(state, record, postings_settled(event, hold.amount))
    else:
        require(not event.shares, record, "it shares out credit that nobody held")
    _remember(
        state,
        event.hold_id,
        Resolution(
            record.index,
            "settled",
            event.payer,
            event.request_id,
            hold.settled + amount,
            _all_shares(hold, event.shares),
        ),
    )


def _unit_settled(state: Billing, record: Record, event: facts.UnitSettled) -> None:
    hold = state.holds.get(event.hold_id)
    if hold is None or hold.payer != event.payer:
        raise CorruptRecord(f"event {record.index} settles a unit of no open hold", index=record.index)
    amount = event.amount_microunits
    require(event.unit == hold.units + 1, record, "its unit is out of order")
    require(0 < amount <= hold.amount, record, "it settles more than is held")
    entry = state.accounts[event.payer]
    entry.spent = plus(entry.spent, amount)
    for account, share in event.shares:
        _earn(state, record, account, share)
        hold.shares[account] = hold.shares.get(account, 0) + share
    hold.units, hold.amount, hold.settled = event.unit, hold.amount - amount, hold.settled + amount
    _post(state, record, postings_unit(event))


def _all_shares(hold: Hold, last: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    """Of every unit together."""
    if not hold.shares:
        return last
    total = dict(hold.shares)
    for account, share in last:
        total[account] = total.get(account, 0) + share
    return tuple(sorted(total.items()))


def _earn(state: Billing, record: Record, account: str, amount: int) -> None:
    entry = _account(state, record, account)
    entry.earned = plus(entry.earned, amount)


def _release(state: Billing, record: Record, hold_id: str, payer: str, kind: str) -> None:
    hold, entry = _resolve(state, record, hold_id, payer)
    _give_back_quota(entry, hold, hold.settled)
    if hold.amount:
        _post(state, record, postings_released(payer, hold.amount))
    shares = _all_shares(hold, ())
    _remember(state, hold_id, Resolution(record.index, kind, payer, hold.request_id, hold.amount, shares))


def _credit_voided(state: Billing, record: Record, event: facts.CreditVoided) -> None:
    _release(state, record, event.hold_id, event.payer, "voided")


def _credit_expired(state: Billing, record: Record, event: facts.CreditExpired) -> None:
    _release(state, record, event.hold_id, event.payer, "expired")


def _quota_set(state: Billing, record: Record, event: facts.QuotaSet) -> None:
    entry = _account(state, record, event.account)
    if event.unlimited:
        entry.quota, entry.quota_period_ms, entry.quota_window, entry.quota_used = None, 0, 0, 0
        return
    require(event.period_ms > 0, record, "a quota needs a period")
    if event.period_ms != entry.quota_period_ms:  # holds of another period must not count as this one's
        for hold in state.holds.values():
            if hold.payer == event.account:
                hold.quota_window = -1
        entry.quota_window, entry.quota_used = record.wall_ms // event.period_ms, 0
    entry.quota, entry.quota_period_ms = event.limit_microunits, event.period_ms


def _receipt_given(state: Billing, record: Record, event: facts.ReceiptGiven) -> None:
    """Given, agreed to, or both at once; what was agreed to is earned."""
    read = read_all(record, event)
    require(all(r.consumer == event.peer for r, _, _, _ in read), record, "its receipts are another peer's")
    postings = postings_earned(state, event)
    channel = state.given.get(event.peer)
    if channel is None:
        channel = state.given[event.peer] = Channel(record.index, event.peer)
    given = [one for one in read if one[0].sequence > channel.sequence]
    for receipt, raw, _, _ in read[: len(read) - len(given)]:
        known = channel.numbered(receipt.sequence)
        require(known is not None and known[0] == raw, record, "one sequence has two receipts")
    if given:
        require(not channel.waiting, record, "the receipts before are not signed")
        follow(channel, record, given)
    for receipt, _, _, countersignature in read:
        if countersignature is not None:
            agree(channel, record, receipt)
    if postings:
        own, earned = postings[1]
        _earn(state, record, own, earned)
        _post(state, record, postings)


def _receipt_received(state: Billing, record: Record, event: facts.ReceiptReceived) -> None:
    by_provider: dict[str, list[Read]] = {}
    for one in read_all(record, event):
        by_provider.setdefault(one[0].provider, []).append(one)
    for provider, received in by_provider.items():
        channel = state.received.get(provider)
        if channel is None:
            channel = state.received[provider] = Channel(record.index, provider)
        follow(channel, record, received)
        for receipt, _, _, _ in received:
            agree(channel, record, receipt)
    for provider, keys in event.keys:
        require(provider in by_provider, record, "it has keys of who gave no receipt")
        state.received[provider].keys = keys


def _peer_equivocated(state: Billing, record: Record, event: facts.PeerEquivocated) -> None:
    _account(state, record, event.peer).ended = "equivocated"


HANDLERS: Final[Handlers] = {
    facts.KeysBound: _keys_bound,
    facts.WelcomeGranted: _welcome_granted,
    facts.CreditToppedUp: _credit_topped_up,
    facts.CreditHeld: _credit_held,
    facts.CreditSettled: _credit_settled,
    facts.UnitSettled: _unit_settled,
    facts.CreditVoided: _credit_voided,
    facts.CreditExpired: _credit_expired,
    facts.QuotaSet: _quota_set,
    facts.ReceiptGiven: _receipt_given,
    facts.ReceiptReceived: _receipt_received,
    facts.PeerEquivocated: _peer_equivocated,
}
