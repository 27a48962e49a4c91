"""Credit by decree: top-ups, quotas, and its end."""

from __future__ import annotations

from typing import Final

from p2pnode import limits
from p2pnode.commands import ReportFraud, SetQuota, TopUp
from p2pnode.decide.outcome import Answer, Deciders, between, decision, label, nothing, reason
from p2pnode.errors import IdempotencyConflict
from p2pnode.events import types as facts
from p2pnode.events.log import Decision
from p2pnode.projections import MeshState, billing


def top_up(state: MeshState, command: TopUp, now_ms: int) -> Decision:
    """CreditToppedUp, once for each key. Raises: RequestError, IdempotencyConflict."""
    account, amount = label(command.account, "account"), command.amount_microunits
    between(amount, 1, limits.TOPUP_MICROUNITS_MAX, "amount_microunits")
    key = label(command.idempotency_key, "idempotency_key")
    before = state.billing.topups.get(key)
    if before is not None:
        if (before.account, before.amount) != (account, amount):
            raise IdempotencyConflict(
                f"the idempotency key {key!r} was used for another top-up", hint="use a new key"
            )
        return decision(answer=_balance(state, account, 0))
    given_out = -billing.balances(state.billing).get(billing.MINT_TOPUP, 0)
    between(given_out + amount, 0, limits.ACCOUNT_MICROUNITS_MAX, "the credit given out")
    event = facts.CreditToppedUp(account=account, amount_microunits=amount, note=reason(command.note))
    return decision(event, answer=_balance(state, account, amount))


def _balance(state: MeshState, account: str, added: int) -> Answer:
    return {"account": account, "available_microunits": billing.available(state.billing, account) + added}


def set_quota(state: MeshState, command: SetQuota, now_ms: int) -> Decision:
    """QuotaSet unless it is so already."""
    account = label(command.account, "account")
    entry = state.billing.accounts.get(account)
    if command.unlimited:
        if entry is None or entry.quota is None:
            return nothing()
        return decision(facts.QuotaSet(account=account, limit_microunits=0, period_ms=0, unlimited=True))
    limit = between(command.limit_microunits, 0, limits.ACCOUNT_MICROUNITS_MAX, "limit_microunits")
    period = between(command.period_ms, 1, limits.QUOTA_PERIOD_MS_MAX, "period_ms")
    if entry is not None and (entry.quota, entry.quota_period_ms) == (limit, period):
        return nothing()
    return decision(facts.QuotaSet(account=account, limit_microunits=limit, period_ms=period))


def report_fraud(state: MeshState, command: ReportFraud, now_ms: int) -> Decision:
    """PeerEquivocated, once for each log or channel; from then on the peer has no credit here."""
    known = state.audit.frauds.get(command.fraud.origin)
    if known is not None and known.peer == command.fraud.peer:
        return nothing()
    return decision(command.fraud)


DECIDERS: Final[Deciders] = {TopUp: top_up, SetQuota: set_quota, ReportFraud: report_fraud}
