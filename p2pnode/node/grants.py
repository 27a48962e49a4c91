"""Which requests this device computes for: announced by their head, as far as the head has signed for work.

Being a member lets a device ask for stages, not use those of others: a stage computes only for sessions
that the head of its plan announced (`session.open`), and a head from outside the local network only so far
that what it has not signed a receipt for is at most one unit by the price list. Who was caught signing two
things that cannot both be true gets nothing. Source: specs/09-billing.md#grants
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import msgspec

from p2pnode import limits
from p2pnode.compute.row_tally import RowTallies, TalliedStage
from p2pnode.decide import may_compute
from p2pnode.errors import (
    Busy,
    CreditEnded,
    Forbidden,
    NotFound,
    P2PNodeError,
    ReceiptOwed,
    RemoteProtocolError,
)
from p2pnode.events.fields import Count, Label
from p2pnode.frame import POSITION_MAX, Frame
from p2pnode.network import FREE_PATHS, Path
from p2pnode.node.orders import PROBE_SESSION
from p2pnode.projections import MeshState
from p2pnode.tracing import OFF, Passed, Span, Tracing, traceparent_of
from p2pnode.units import MICRO_PER_UNIT, PeerId

OPEN = "session.open"
Layers = tuple[int, int]
DebtKey = tuple[str, int, Layers]
"""Plan, session, layers."""


class Record(Protocol):
    @property
    def state(self) -> MeshState: ...


class Announcement(msgspec.Struct, frozen=True):
    """What a head says of a request before it feeds a plan's stages; the wire form of `session.open`."""

    plan_id: Label
    session: Count
    request_id: Label
    prompt_tokens: Annotated[int, msgspec.Meta(ge=0, le=POSITION_MAX)]
    """Positions before the unit of output that comes now: the prompt, and units receipts were exchanged for."""
    trace: Annotated[str, msgspec.Meta(max_length=limits.TRACEPARENT_CHARACTERS_MAX)] = ""
    """W3C traceparent of the request at its head, where it has one."""


@dataclass(slots=True)
class Grant:
    head: PeerId
    request_id: str
    prompt_tokens: int
    units: dict[Layers, int]
    """Receipts signed for each stage here; empty when nobody counts."""
    span: Span

    @property
    def reach(self) -> int:
        if not self.units:
            return POSITION_MAX
        # The last token of a unit is sampled by the head and fed only with the next unit.
        return self.prompt_tokens + limits.OUTPUT_TOKENS_PER_UNIT * (1 + min(self.units.values())) - 1


@dataclass(slots=True)
class Debt:
    """A stage's part of one unit that nobody signed for yet."""

    part: int
    microunits: int
    since_s: float


class Grants:
    """Open sessions by plan, and what each head from outside has not signed for."""

    def __init__(
        self,
        *,
        me: PeerId,
        record: Record,
        tallies: RowTallies,
        stages_of: Callable[[str, PeerId], list[TalliedStage]],
        path: Callable[[PeerId], Path],
        serve: Callable[[str, Callable[[PeerId, dict[str, Any], Any], Any]], None],
        now_s: Callable[[], float] = time.monotonic,
        tracing: Tracing = OFF,
    ) -> None:
        self._me, self._record, self._tallies = me, record, tallies
        self._tracing = tracing
        self._stages_of, self._path, self._now_s = stages_of, path, now_s
        self._plans: dict[str, dict[int, Grant]] = {}
        self._heads: dict[str, PeerId] = {}
        self._reach: dict[str, dict[int, int]] = {}
        self._debts: dict[PeerId, dict[DebtKey, Debt]] = {}
        self._gates: dict[tuple[str, Layers], StageGate] = {}
        self._waiting = 0
        self._changed = asyncio.Event()
        serve(OPEN, self._serve_open)

    # --- heads ---------------------------------------------------------------------------------------
    def check(self, head: PeerId) -> None:
        """Whether this device does anything for a head. Raises: CreditEnded."""
        may_compute(self._record.state, head, 0)

    def check_uncounted(self, head: PeerId) -> None:
        """The same for work that leaves no receipts: only within the local network. Raises: Forbidden too."""
        self.check(head)
        if not self._is_free(head):
            raise Forbidden("work that cannot be receipted is done for devices of the local network only")

    def _is_free(self, head: PeerId) -> bool:
        return head == self._me or self._path(head) in FREE_PATHS

    # --- sessions ------------------------------------------------------------------------------------
    async def _serve_open(self, peer: PeerId, arguments: Mapping[str, Any], _: Any) -> dict[str, Any]:
        try:
            asked = msgspec.convert(arguments, Announcement)
        except msgspec.ValidationError as error:
            raise RemoteProtocolError(f"an announcement that cannot be read: {error}") from None
        return {"positions": await self.open(peer, asked)}

    async def open(self, head: PeerId, asked: Announcement) -> int:
        """Let a session in; how many positions may be computed now. A repeated call is the same call.

        Raises: NotFound, CreditEnded, ReceiptOwed, Busy.
        """
        stages = self._stages_of(asked.plan_id, head)
        if not stages:
            raise NotFound(f"this device holds no stage of plan {asked.plan_id[:40]} for you")
        self.check(head)
        parts = {} if self._is_free(head) else {stage.layers: unit_part(stage) for stage in stages}
        owed = {(asked.plan_id, asked.session, layers): part for layers, part in parts.items()}
        await self._room(head, owed)
        debts = self._debts.setdefault(head, {}) if owed else {}
        for key, part in owed.items():
            debts[key] = Debt(part, part, self._now_s())
        self._forget_released()
        self._heads[asked.plan_id] = head
        sessions = self._plans.setdefault(asked.plan_id, {})
        before = sessions.pop(asked.session, None)
        span = self._span_of(asked, head, stages, before)
        grant = Grant(head, asked.request_id, asked.prompt_tokens, dict.fromkeys(parts, 0), span)
        sessions[asked.session] = grant
        reach = self.reach_of(asked.plan_id)
        reach[asked.session] = grant.reach
        while len(sessions) > limits.GRANTS_PER_PLAN_MAX:
            self.close(asked.plan_id, next(iter(sessions)))
        return grant.reach

    def _span_of(
        self, asked: Announcement, head: PeerId, stages: list[TalliedStage], before: Grant | None
    ) -> Span:
        """One span of the head's trace for what is computed here of a request, also where it is announced again."""
        if before is not None and before.request_id == asked.request_id:
            return before.span
        if before is not None:
            before.span.end()
        parent = traceparent_of(asked.trace)
        if not parent:
            return Passed()
        return self._tracing.begin(
            "stage",
            parent,
            {
                "p2pnode.request_id": asked.request_id,
                "p2pnode.plan_id": asked.plan_id,
                "p2pnode.head": head,
                "p2pnode.layers": [f"{stage.layers[0]}-{stage.layers[1] - 1}" for stage in stages],
            },
            kind="server",
        )

    async def _room(self, head: PeerId, owed: Mapping[DebtKey, int]) -> None:
        """Wait a moment until a head has signed for enough: receipts follow the answer before this one."""
        try:
            async with asyncio.timeout(limits.GRANT_WAIT_S_MAX):
                while (refusal := self._refusal_of(head, owed)) is not None:
                    if self._waiting >= limits.GRANTS_WAITING_MAX:
                        raise Busy("too many requests wait here for signatures")
                    self._waiting += 1
                    try:
                        await self._changed.wait()
                    finally:
                        self._waiting -= 1
        except TimeoutError:
            assert refusal is not None
            raise refusal from None

    def _refusal_of(self, head: PeerId, owed: Mapping[DebtKey, int]) -> ReceiptOwed | None:
        if not owed:
            return None
        debts = self._debts.get(head, {})
        unsigned = sum(debt.microunits for key, debt in debts.items() if key not in owed)
        try:
            may_compute(self._record.state, head, unsigned + sum(owed.values()))
        except ReceiptOwed as error:
            return error
        return None

    def reach_of(self, plan_id: str) -> dict[int, int]:
        """By session: how many positions of it may be computed now."""
        return self._reach.setdefault(plan_id, {PROBE_SESSION: 1})

    def gate(self, stage: TalliedStage) -> StageGate:
        """For one stream of frames; the newest of a stage is the one whose end ends sessions."""
        self._heads[stage.plan_id] = PeerId(stage.head)
        made = StageGate(self, stage, self.reach_of(stage.plan_id))
        self._gates[stage.plan_id, stage.layers] = made
        return made

    def ended(self, gate: StageGate, session: int) -> None:
        if self._gates.get((gate.stage.plan_id, gate.stage.layers)) is gate:
            self.close(gate.stage.plan_id, session)

    def refusal(self, stage: TalliedStage, session: int) -> P2PNodeError:
        grant = self._plans.get(stage.plan_id, {}).get(session)
        if grant is None:
            return Forbidden(f"session {session} of plan {stage.plan_id[:40]} was not announced by its head")
        return ReceiptOwed(f"request {grant.request_id} goes on when its head has signed for the unit before")

    def close(self, plan_id: str, session: int) -> None:
        """A session is over: what was computed for it stays owed, what was not is not."""
        grant = self._plans.get(plan_id, {}).pop(session, None)
        if grant is None:
            return
        self.reach_of(plan_id).pop(session, None)
        grant.span.end()
        for layers in grant.units:
            tally = self._tallies.get(plan_id, session, layers)
            if tally is None or not tally.layer_tokens:
                self._pay(grant.head, (plan_id, session, layers))
        self._something_changed()

    def _forget_released(self) -> None:
        for plan_id, head in list(self._heads.items()):
            if self._stages_of(plan_id, head):
                continue
            for session in list(self._plans.get(plan_id, {})):
                self.close(plan_id, session)
            del self._heads[plan_id]
            self._plans.pop(plan_id, None)
            self._reach.pop(plan_id, None)
            for key in [key for key in self._gates if key[0] == plan_id]:
                del self._gates[key]

    # --- receipts ------------------------------------------------------------------------------------
    def given(self, head: PeerId, key: DebtKey, microunits: int) -> None:
        """A receipt waits for its signature: so much of the debt is counted by the record now."""
        debt = self._debts.get(head, {}).get(key)
        if debt is not None:
            debt.microunits = max(debt.part - microunits, 0)

    def signed(self, head: PeerId, key: DebtKey) -> None:
        """The head signed for a stage's part: the session may go on for one more unit."""
        plan_id, session, layers = key
        grant = self._plans.get(plan_id, {}).get(session)
        debt = self._debts.get(head, {}).get(key)
        if grant is None or layers not in grant.units or debt is None:
            self._pay(head, key)
        else:
            debt.microunits, debt.since_s = debt.part, self._now_s()
            grant.units[layers] += 1
            self.reach_of(plan_id)[session] = grant.reach
        self._something_changed()

    def _pay(self, head: PeerId, key: DebtKey) -> None:
        debts = self._debts.get(head, {})
        debts.pop(key, None)
        if not debts:
            self._debts.pop(head, None)

    def owed_beside(self, head: PeerId, keys: Collection[DebtKey]) -> int:
        debts = self._debts.get(head, {})
        return sum(debt.microunits for other, debt in debts.items() if other not in keys)

    def owed_by(self, head: PeerId) -> int:
        """Micro-units by the price list that a head from outside has not signed for."""
        return sum(debt.microunits for debt in self._debts.get(head, {}).values())

    # --- time ----------------------------------------------------------------------------------------
    def tick(self) -> None:
        """Old debts of sessions that are over are written off; heads whose credit ended get nothing more."""
        now_s = self._now_s()
        for head, debts in list(self._debts.items()):
            for key, debt in list(debts.items()):
                is_over = key[1] not in self._plans.get(key[0], {})
                if is_over and now_s - debt.since_s > limits.DEBT_KEPT_S_MAX:
                    self._pay(head, key)
        for plan_id, sessions in list(self._plans.items()):
            for session, grant in list(sessions.items()):
                if self._has_ended(grant.head):
                    self.close(plan_id, session)
        self._something_changed()

    def _has_ended(self, head: PeerId) -> bool:
        try:
            self.check(head)
        except CreditEnded:
            return True
        return False

    def _something_changed(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


@dataclass(slots=True, eq=False)
class StageGate:
    """What one stream of frames asks before it computes."""

    grants: Grants
    stage: TalliedStage
    reach: dict[int, int] = field(default_factory=dict)

    def refusal(self, frame: Frame) -> P2PNodeError:
        return self.grants.refusal(self.stage, frame.session)

    def freed(self, session: int) -> None:
        self.grants.ended(self, session)


def unit_part(stage: TalliedStage) -> int:
    """A stage's part of one unit by the price list, rounded up; the whole where the model is not known."""
    if not stage.layers_total:
        return MICRO_PER_UNIT
    width = sum(stage.shares) or 1
    layers = (stage.layers[1] - stage.layers[0]) * (stage.shares[stage.rank] if stage.shares else 1)
    return -(-MICRO_PER_UNIT * layers // (stage.layers_total * width))
