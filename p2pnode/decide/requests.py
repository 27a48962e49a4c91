"""Requests: hold credit before, settle after, give back on failure; each hold ends exactly once."""

from __future__ import annotations

from typing import Final

from p2pnode import limits
from p2pnode.commands import ExpireHolds, FailRequest, FinishRequest, ServeRequest, SettleUnit, Shares
from p2pnode.decide.outcome import Answer, Deciders, between, decision, label, nothing, reason
from p2pnode.decide.price import divide, price_microunits
from p2pnode.errors import (
    Busy,
    CreditEnded,
    HoldResolved,
    IdempotencyConflict,
    InsufficientCredit,
    NotFound,
    QuotaExceeded,
    Unauthorized,
)
from p2pnode.events import types as facts
from p2pnode.events.log import LOCAL, Decision
from p2pnode.network import FREE_PATHS
from p2pnode.projections import MeshState, billing
from p2pnode.projections.billing import Billing, Hold, Resolution
from p2pnode.projections.sessions import Request
from p2pnode.units import MICRO_PER_UNIT

TOKENS_MAX: Final = 2**31 - 1
_UNPAID_ENDS: Final = frozenset({"cancelled", "error"})


def serve_request(state: MeshState, command: ServeRequest, now_ms: int) -> Decision:
    """RequestAccepted and CreditHeld, after WelcomeGranted where it is due.

    Raises: Busy, CreditEnded, Unauthorized, QuotaExceeded, InsufficientCredit, IdempotencyConflict.
    """
    request_id, caller = label(command.request_id, "request_id"), label(command.caller, "caller")
    between(command.max_tokens, 1, TOKENS_MAX, "max_tokens")
    between(command.hold_ms, 1, limits.HOLD_MS_MAX, "hold_ms")
    before = state.sessions.requests.get(request_id)
    if before is not None:
        return _served_before(state, command, before)
    if request_id in state.billing.holds or request_id in state.billing.resolved:
        raise IdempotencyConflict(f"request {request_id} was served before", hint="use a new request id")
    _may_ask(state, command)
    free = caller == LOCAL or command.path in FREE_PATHS
    quoted = price_microunits(command.max_tokens)
    _check_quota(state.billing, caller, quoted, now_ms)
    welcome = () if free else _welcome(state.billing, command, quoted, now_ms)
    held = 0 if free else quoted
    return decision(
        *welcome,
        facts.RequestAccepted(
            request_id=request_id,
            caller=caller,
            model=command.model,
            mode=command.mode,
            plan_id=command.plan_id,
            prompt_commitment=command.prompt_commitment,
            prompt_tokens=command.prompt_tokens,
            max_tokens=command.max_tokens,
            seed=command.seed,
            parameters_commitment=command.parameters_commitment,
        ),
        facts.CreditHeld(
            hold_id=request_id,
            payer=caller,
            request_id=request_id,
            amount_microunits=held,
            expires_ms=now_ms + command.hold_ms,
            free=free,
            quoted_microunits=quoted,
        ),
        answer=_served(request_id, held, free),
    )


def _served(request_id: str, held: int, free: bool) -> Answer:
    return {"request_id": request_id, "held_microunits": held, "free": free}


def _served_before(state: MeshState, command: ServeRequest, before: Request) -> Decision:
    same = (before.caller, before.model, before.max_tokens) == (
        command.caller,
        command.model,
        command.max_tokens,
    )
    hold = state.billing.holds.get(command.request_id)
    if not same or hold is None:
        raise IdempotencyConflict(
            f"request {command.request_id} was served before", hint="use a new request id"
        )
    return decision(answer=_served(command.request_id, hold.amount + hold.settled, hold.free))


def _may_ask(state: MeshState, command: ServeRequest) -> None:
    """Whether this node takes this caller's work at all, whatever it pays."""
    caller = command.caller
    if caller != LOCAL and state.node.work != "taking":
        raise Busy(f"this device is {state.node.work}", hint="ask another device of the mesh")
    key = state.node.api_keys.get(caller.removeprefix("key:"))
    if key is not None and key.revoked:
        raise Unauthorized("this API key was revoked")
    entry = state.billing.accounts.get(caller)
    if entry is None:
        return
    if entry.ended:
        raise CreditEnded(f"{caller} gets no credit any more: {entry.ended}")
    if entry.holds_open >= limits.HOLDS_OPEN_PER_ACCOUNT_MAX:
        raise Busy(f"{caller} has {entry.holds_open} requests open already")


def _check_quota(state: Billing, caller: str, quoted: int, now_ms: int) -> None:
    if len(state.holds) >= limits.HOLDS_OPEN_MAX:
        raise Busy(f"{len(state.holds)} requests are open already")
    left = billing.quota_left(state, caller, now_ms)
    if left is not None and left < quoted:
        raise QuotaExceeded(
            f"the quota of {caller} has {left} micro-units left in this period; this may take {quoted}",
            hint="ask for fewer tokens or wait for the next period",
            needed=quoted,
            left=left,
        )


def _welcome(
    state: Billing, command: ServeRequest, needed: int, now_ms: int
) -> tuple[facts.WelcomeGranted, ...]:
    """The welcome credit if this caller needs it and may have it; raises when credit does not suffice."""
    caller = command.caller
    available = billing.available(state, caller)
    entry = state.accounts.get(caller)
    if entry is not None and entry.welcomed:
        _enough(available, needed)
        return ()
    if _may_welcome(state, command.network, now_ms):
        _enough(available + limits.WELCOME_MICROUNITS, needed)
        return (
            facts.WelcomeGranted(
                account=caller, amount_microunits=limits.WELCOME_MICROUNITS, network=command.network
            ),
        )
    _enough(available, needed, "; no welcome credit for new callers right now")
    return ()


def _may_welcome(state: Billing, network: str, now_ms: int) -> bool:
    hour, day = now_ms // billing.HOUR_MS, now_ms // billing.DAY_MS
    in_hour = state.welcomes_in_hour if hour <= state.welcome_hour else 0
    in_network = state.welcomes_by_network.get(network, 0) if day <= state.welcome_day else 0
    return in_hour < limits.WELCOMES_PER_HOUR_MAX and in_network < limits.WELCOMES_PER_NETWORK_PER_DAY_MAX


def _enough(available: int, needed: int, why: str = "") -> None:
    if available < needed:
        raise InsufficientCredit(
            f"{needed} micro-units are needed, {available} are there{why}",
            hint="ask the owner of this node for a top-up, or for fewer tokens",
            needed=needed,
            available=available,
        )


def finish_request(state: MeshState, command: FinishRequest, now_ms: int) -> Decision:
    """RequestFinished and CreditSettled; CreditVoided when nothing came out of it.

    A hold that expired meanwhile stays expired: the answer is recorded and costs nothing.
    Raises: NotFound, HoldResolved (the request ended otherwise).
    """
    request_id = command.request_id
    between(command.completion_tokens, 0, TOKENS_MAX, "completion_tokens")
    entry, hold = state.sessions.requests.get(request_id), state.billing.holds.get(request_id)
    if entry is not None and entry.state != "running":
        return _finished_before(state, command, entry)
    if entry is None and hold is None:
        raise NotFound(f"no request {request_id} is running")
    finished = facts.RequestFinished(
        request_id=request_id,
        reason=command.reason,
        prompt_tokens=command.prompt_tokens,
        completion_tokens=command.completion_tokens,
        cached_tokens=command.cached_tokens,
        answer_commitment=command.answer_commitment,
        prefill_ms=command.prefill_ms,
        decode_ms=command.decode_ms,
        stages=command.stages,
    )
    if hold is None:
        paid = state.billing.resolved.get(request_id)
        return decision(finished, answer=_settled(*((0, ()) if paid is None else _paid(paid)), True))
    if command.completion_tokens == 0 and command.reason in _UNPAID_ENDS:
        voided = facts.CreditVoided(hold_id=request_id, payer=hold.payer, reason=command.reason)
        return decision(finished, voided, answer=_settled(0, (), hold.free))
    settled = _settlement(state, command, hold)
    answer = _settled(hold.settled + settled.amount_microunits, _together(hold, settled.shares), hold.free)
    return decision(finished, settled, answer=answer)


def _paid(resolution: Resolution) -> tuple[int, Shares]:
    """What a hold that ended was charged for, and who earned it: units, and the last part if it was settled."""
    return sum(share for _, share in resolution.shares), resolution.shares


def _together(hold: Hold, last: Shares) -> Shares:
    total = dict(hold.shares)
    for account, share in last:
        total[account] = total.get(account, 0) + share
    return tuple(sorted(total.items()))


def settle_unit(state: MeshState, command: SettleUnit, now_ms: int) -> Decision:
    """UnitSettled: what was delivered is paid for, whatever becomes of the rest.

    Answer: {"shares": [[account, micro-units], ...]}. Raises: NotFound (nothing is held any more), HoldResolved.
    """
    request_id = command.request_id
    hold = state.billing.holds.get(request_id)
    if hold is None or not hold.amount:
        raise NotFound(f"no credit is held for request {request_id}")
    if command.unit != hold.units + 1 or hold.amount < MICRO_PER_UNIT:
        raise HoldResolved(
            f"request {request_id} has {hold.units} units settled; {command.unit} is not the next"
        )
    shares = shares_of(state.billing, MICRO_PER_UNIT, command.work)
    event = facts.UnitSettled(
        hold_id=request_id,
        payer=hold.payer,
        request_id=request_id,
        unit=command.unit,
        amount_microunits=MICRO_PER_UNIT,
        shares=shares,
    )
    return decision(event, answer={"shares": [list(share) for share in shares]})


def _settlement(state: MeshState, command: FinishRequest, hold: Hold) -> facts.CreditSettled:
    """The price by tokens that units have not paid yet, never more than is held, shared out by layer-tokens."""
    quoted = min(price_microunits(command.completion_tokens), hold.quoted)
    amount = min(max(quoted - hold.settled, 0), hold.amount)
    shares = shares_of(state.billing, amount, command.work)
    return facts.CreditSettled(
        hold_id=command.request_id,
        payer=hold.payer,
        request_id=command.request_id,
        amount_microunits=amount,
        shares=shares,
        quoted_microunits=quoted,
    )


def shares_of(state: Billing, amount: int, work: Shares) -> Shares:
    """Who earns how much; accounts without credit earn nothing, and what nobody earns is this node's."""
    shares = divide(amount, [(peer, done) for peer, done in work if not _has_ended(state, peer)])
    return shares or (((state.own_account, amount),) if amount else ())


def _has_ended(state: Billing, account: str) -> bool:
    entry = state.accounts.get(account)
    return entry is not None and bool(entry.ended)


def _settled(cost: int, shares: tuple[tuple[str, int], ...], free: bool) -> Answer:
    return {"cost_microunits": cost, "shares": [list(share) for share in shares], "free": free}


def _finished_before(state: MeshState, command: FinishRequest, entry: Request) -> Decision:
    same = entry.state == "finished" and entry.completion_tokens == command.completion_tokens
    if not same:
        raise HoldResolved(f"request {command.request_id} has {entry.state} already")
    resolution = state.billing.resolved.get(command.request_id)
    if resolution is None or resolution.kind != "settled":
        return decision(answer=_settled(0, (), True))
    free = resolution.amount == 0
    return decision(answer=_settled(resolution.amount, resolution.shares, free))


def fail_request(state: MeshState, command: FailRequest, now_ms: int) -> Decision:
    """RequestFailed, and what is still held back: what the caller got of an unsettled unit is free."""
    entry = state.sessions.requests.get(command.request_id)
    hold = state.billing.holds.get(command.request_id)
    if entry is not None and entry.state == "failed":
        return nothing()
    if entry is not None and entry.state == "finished":
        raise HoldResolved(f"request {command.request_id} has finished already")
    if entry is None and hold is None:
        raise NotFound(f"no request {command.request_id} is running")
    return decision(
        *failure(state, command.request_id, command.code, command.message, command.completion_tokens)
    )


def failure(
    state: MeshState, request_id: str, code: str, message: str, completion_tokens: int = 0
) -> list[facts.Event]:
    """What ends a running request badly."""
    failed = facts.RequestFailed(
        request_id=request_id, code=code, message=reason(message), completion_tokens=completion_tokens
    )
    hold = state.billing.holds.get(request_id)
    if hold is None:
        return [failed]
    return [failed, facts.CreditVoided(hold_id=request_id, payer=hold.payer, reason=code)]


def expire_holds(state: MeshState, command: ExpireHolds, now_ms: int) -> Decision:
    """CreditExpired for the longest overdue; answers how many there were and whether more wait."""
    overdue = sorted(
        (h.expires_ms, hold_id) for hold_id, h in state.billing.holds.items() if h.expires_ms <= now_ms
    )
    due = overdue[: limits.HOLDS_EXPIRED_PER_DECISION_MAX]
    events = [
        facts.CreditExpired(hold_id=hold_id, payer=state.billing.holds[hold_id].payer) for _, hold_id in due
    ]
    return decision(*events, answer={"expired": len(due), "left": len(overdue) - len(due)})


DECIDERS: Final[Deciders] = {
    ServeRequest: serve_request,
    SettleUnit: settle_unit,
    FinishRequest: finish_request,
    FailRequest: fail_request,
    ExpireHolds: expire_holds,
}
