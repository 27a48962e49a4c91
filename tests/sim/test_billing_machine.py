"""Credit under any order of commands, retries, crashes and restores, beside a model of a few lines."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2pnode import limits, projections
from p2pnode.commands import Command, ExpireHolds, FailRequest, ServeRequest, SettleUnit, StartNode, TopUp
from p2pnode.decide import price_microunits
from p2pnode.errors import HoldResolved, IdempotencyConflict, InsufficientCredit, NotFound
from p2pnode.projections import billing
from p2pnode.units import MICRO_PER_UNIT
from tests.kit.story import SELF, Story, finish, folded, serve

PAYERS = ("alice", "bob", "carol")
WORKERS = ("w1", "w2", SELF)
TOKENS = st.sampled_from((0, 1, 999, 1000, 1001, 2500, 5000))


class BillingMachine(RuleBasedStateMachine):
    """`free` credit, open `holds` and how each ended: what the ledger must agree with at every step."""

    @initialize()
    def begin(self) -> None:
        self.story = Story()
        self.free: dict[str, int] = {}
        self.holds: dict[str, tuple[str, int, int]] = {}
        """Payer, what is still held, when it expires."""
        self.units: dict[str, tuple[int, int]] = {}
        """Settled units of an open hold, and what the whole may cost."""
        self.ended: dict[str, str] = {}
        self.welcomed: set[str] = set()
        self.minted = 0
        self.count = 0
        self.once: list[Command] = []
        """What is refused when it comes again."""
        self.done: list[tuple[Command, str | None, dict[str, Any]]] = []
        self.saved: list[bytes] = [projections.snapshot(self.story.state)]

    # --- commands -----------------------------------------------------------------------------------
    @rule(payer=st.sampled_from(PAYERS), amount=st.integers(1, 6_000_000))
    def top_up(self, payer: str, amount: int) -> None:
        key = self.fresh("t")
        command = TopUp(account=payer, amount_microunits=amount, idempotency_key=key)
        self.remember(command, key, self.story.do(command, key=key))
        self.free[payer] = self.free.get(payer, 0) + amount
        self.minted += amount

    @rule(payer=st.sampled_from(PAYERS), tokens=TOKENS.filter(bool), minutes=st.integers(1, 30))
    def reserve(self, payer: str, tokens: int, minutes: int) -> None:
        request_id, needed = self.fresh("r"), price_microunits(tokens)
        command = serve(request_id, caller=payer, network=payer, max_tokens=tokens, hold_ms=minutes * 60_000)
        welcome = 0 if payer in self.welcomed else limits.WELCOME_MICROUNITS
        if self.free.get(payer, 0) + welcome < needed:
            with pytest.raises(InsufficientCredit):
                self.story.do(command)
            return
        self.remember(command, None, self.story.do(command))
        self.welcomed.add(payer)
        self.minted += welcome
        self.free[payer] = self.free.get(payer, 0) + welcome - needed
        self.holds[request_id] = (payer, needed, self.story.now_ms + minutes * 60_000)
        self.units[request_id] = (0, needed)

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), weights=st.lists(st.integers(0, 9), min_size=3, max_size=3), skip=st.integers(0, 1))
    def settle_unit(self, data: st.DataObject, weights: list[int], skip: int) -> None:
        """A delivered unit is paid at once, in order, and never more than is held."""
        request_id = data.draw(st.sampled_from(sorted(self.holds)))
        payer, held, expires = self.holds[request_id]
        units, whole = self.units[request_id]
        work = tuple(zip(WORKERS, weights, strict=True))
        command = SettleUnit(request_id=request_id, unit=units + 1 + skip, work=work)
        if skip or held < MICRO_PER_UNIT:
            with pytest.raises((HoldResolved, NotFound)):
                self.story.do(command)
            return
        answer = self.story.do(command)
        self.once.append(command)
        assert sum(share for _, share in answer["shares"]) == MICRO_PER_UNIT
        for worker, share in answer["shares"]:
            self.free[worker] = self.free.get(worker, 0) + share
        self.holds[request_id] = (payer, held - MICRO_PER_UNIT, expires)
        self.units[request_id] = (units + 1, whole)

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), tokens=TOKENS, weights=st.lists(st.integers(0, 9), min_size=3, max_size=3))
    def settle(self, data: st.DataObject, tokens: int, weights: list[int]) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.holds)))
        command = finish(request_id, completion_tokens=tokens, work=tuple(zip(WORKERS, weights, strict=True)))
        answer = self.story.do(command)
        self.remember(command, None, answer)
        payer, held, _ = self.holds.pop(request_id)
        units, whole = self.units.pop(request_id)
        paid = units * MICRO_PER_UNIT
        last = min(max(min(price_microunits(tokens), whole) - paid, 0), held)
        assert answer["cost_microunits"] == paid + last == sum(share for _, share in answer["shares"])
        self.free[payer] += held - last
        for worker, share in self.story.records[-1].event.shares:  # type: ignore[union-attr]  # a CreditSettled
            self.free[worker] = self.free.get(worker, 0) + share
        self.end(request_id, "settled")

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def void(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.holds)))
        command = FailRequest(request_id=request_id, code="stage_lost", message="gone")
        self.remember(command, None, self.story.do(command))
        self.give_back(request_id, "voided")

    @rule(minutes=st.integers(1, 20))
    def expire(self, minutes: int) -> None:
        self.story.now_ms += minutes * 60_000
        overdue = [hold for hold, (_, _, expires) in self.holds.items() if expires <= self.story.now_ms]
        assert self.story.do(ExpireHolds()) == {"expired": len(overdue), "left": 0}
        for request_id in overdue:
            self.give_back(request_id, "expired")

    # --- trouble ------------------------------------------------------------------------------------
    @precondition(lambda self: self.done)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        """Any command again, whatever happened since: the first answer or a refusal, and no fact."""
        command, key, answer = data.draw(st.sampled_from(self.done))
        before = projections.snapshot(self.story.state)
        try:
            again = self.story.do(command, key=key)
        except (HoldResolved, IdempotencyConflict, NotFound):
            assert not isinstance(command, TopUp)
        else:
            assert {**again, "available_microunits": 0} == {**answer, "available_microunits": 0}
        assert projections.snapshot(self.story.state) == before

    @precondition(lambda self: self.once)
    @rule(data=st.data())
    def retry_unit(self, data: st.DataObject) -> None:
        before = projections.snapshot(self.story.state)
        with pytest.raises((HoldResolved, NotFound)):
            self.story.do(data.draw(st.sampled_from(self.once)))
        assert projections.snapshot(self.story.state) == before

    @precondition(lambda self: self.ended)
    @rule(data=st.data(), tokens=TOKENS)
    def end_twice(self, data: st.DataObject, tokens: int) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.ended)))
        before = projections.snapshot(self.story.state)
        for command in (
            finish(request_id, completion_tokens=tokens + 7),
            FailRequest(request_id=request_id, code="x", message=""),
            serve(request_id, caller="mallory", network="m"),
        ):
            if self.ended[request_id] == "expired" and not isinstance(command, ServeRequest):
                continue  # the answer may still be recorded, at no cost
            if isinstance(command, FailRequest) and self.ended[request_id] == "voided":
                assert self.story.events_of(command) == []
                continue
            with pytest.raises((HoldResolved, IdempotencyConflict)):
                self.story.do(command)
        assert projections.snapshot(self.story.state) == before

    @rule()
    def save(self) -> None:
        self.saved.append(projections.snapshot(self.story.state))

    @rule(data=st.data())
    def crash_and_restore(self, data: st.DataObject) -> None:
        """Memory is gone; any older snapshot and the log behind it give back the same."""
        expected = projections.snapshot(self.story.state)
        state = projections.restore(data.draw(st.sampled_from(self.saved)))
        for record in self.story.records[state.size :]:
            projections.apply(state, record)
        assert projections.snapshot(state) == expected
        self.story.state = state

    @rule()
    def crash_and_start(self) -> None:
        """What was open when the node died is given back."""
        self.story.do(StartNode(version="1", platform="linux", device_name="desk"))
        for request_id in list(self.holds):
            self.give_back(request_id, "voided")

    # --- invariants ---------------------------------------------------------------------------------
    @invariant()
    def postings_sum_to_zero(self) -> None:
        balances = billing.balances(self.story.state.billing)
        assert sum(balances.values()) == 0
        assert -sum(v for k, v in balances.items() if k.startswith("mint/")) == self.minted

    @invariant()
    def nobody_spends_what_it_has_not(self) -> None:
        ledger = self.story.state.billing
        for account in (*PAYERS, *WORKERS):
            assert billing.available(ledger, account) == self.free.get(account, 0) >= 0
            held = sum(amount for payer, amount, _ in self.holds.values() if payer == account)
            assert billing.held(ledger, account) == held

    @invariant()
    def each_hold_ends_once(self) -> None:
        ledger = self.story.state.billing
        assert set(ledger.holds) == set(self.holds)
        assert {hold: entry.kind for hold, entry in ledger.resolved.items()} == self.ended
        assert not set(ledger.holds) & set(ledger.resolved)

    def teardown(self) -> None:
        assert projections.snapshot(folded(self.story.records)) == projections.snapshot(self.story.state)

    # --- the model ----------------------------------------------------------------------------------
    def fresh(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def remember(self, command: Command, key: str | None, answer: dict[str, Any]) -> None:
        self.done.append((command, key, answer))

    def end(self, request_id: str, kind: str) -> None:
        assert request_id not in self.ended
        self.ended[request_id] = kind

    def give_back(self, request_id: str, kind: str) -> None:
        payer, held, _ = self.holds.pop(request_id)
        del self.units[request_id]
        self.free[payer] += held
        self.end(request_id, kind)


class LongBillingMachine(BillingMachine):
    """The same for longer."""


TestBilling = BillingMachine.TestCase
TestBilling.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestBillingLong = pytest.mark.slow(LongBillingMachine.TestCase)
TestBillingLong.settings = settings(max_examples=1000, stateful_step_count=50, deadline=None)
