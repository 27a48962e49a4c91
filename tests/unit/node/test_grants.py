"""Who is computed for, and how far: sessions announced by heads, work nobody signed for yet."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from p2pnode import limits
from p2pnode.commands import ReportFraud
from p2pnode.compute.row_tally import RowTallies, TalliedStage
from p2pnode.errors import Busy, CreditEnded, Forbidden, NotFound, ReceiptOwed, RemoteProtocolError
from p2pnode.events import types as facts
from p2pnode.frame import POSITION_MAX, DType, Frame, Kind
from p2pnode.network import Path
from p2pnode.node.grants import OPEN, Announcement, Grants, unit_part
from p2pnode.node.orders import PROBE_SESSION
from p2pnode.units import PeerId
from tests.kit.net import until
from tests.kit.story import Story
from tests.unit.compute.test_scheduler import settle

HEAD, OTHER, ME = PeerId("head"), PeerId("other"), PeerId("me")
UNIT = 1_000_000


class World:
    def __init__(self) -> None:
        self.story = Story(ME)
        self.tallies = RowTallies()
        self.stages = [TalliedStage("p", HEAD, (0, 4), layers_total=8)]
        self.paths: dict[PeerId, Path] = {}
        self.now_s = 0.0
        self.methods: dict[str, Any] = {}
        self.grants = Grants(
            me=ME,
            record=self.story,
            tallies=self.tallies,
            stages_of=lambda plan, head: [s for s in self.stages if (s.plan_id, s.head) == (plan, head)],
            path=lambda peer: self.paths.get(peer, "lan"),
            serve=self.methods.__setitem__,
            now_s=lambda: self.now_s,
        )

    async def open(self, session: int, head: PeerId = HEAD, *, plan: str = "p", prompt: int = 10) -> int:
        return await self.grants.open(head, Announcement(plan, session, f"r{session}", prompt))

    def compute(self, session: int, rows: int = 10, position: int = 0, stage: int = 0) -> None:
        frame = Frame(
            kind=Kind.ROWS, dtype=DType.F32, rows=rows, columns=1, session=session, position_first=position,
            payload=bytes(4 * rows),
        )  # fmt: skip
        self.tallies.add(self.stages[stage], frame, frame)

    def signed(self, session: int, stage: int = 0) -> None:
        self.grants.signed(HEAD, ("p", session, self.stages[stage].layers))

    def fraud(self, peer: str) -> None:
        fraud = facts.PeerEquivocated(
            peer=peer, origin=f"me>{peer}", size_first=1, size_second=1, proof=b"two receipts"
        )
        self.story.do(ReportFraud(fraud=fraud))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(limits, "GRANT_WAIT_S_MAX", 0.01)
    return World()


async def test_only_the_probe_is_computed_for_nobody(world: World) -> None:
    gate = world.grants.gate(world.stages[0])
    assert gate.reach == {PROBE_SESSION: 1}


async def test_a_head_on_the_lan_is_let_in_without_end(world: World) -> None:
    gate = world.grants.gate(world.stages[0])
    for session in range(1, 9):
        assert await world.open(session) == POSITION_MAX == gate.reach[session]
    assert world.grants.owed_by(HEAD) == 0
    assert await world.methods[OPEN](
        HEAD, {"plan_id": "p", "session": 9, "request_id": "r", "prompt_tokens": 1}, None
    )


async def test_others_stages_and_wild_words_are_refused(world: World) -> None:
    with pytest.raises(NotFound, match="for you"):
        await world.open(1, OTHER)
    with pytest.raises(NotFound):
        await world.open(1, plan="q")
    for wild in ({}, {"plan_id": "p", "session": -1, "request_id": "r", "prompt_tokens": 1}, {"plan_id": 5}):
        with pytest.raises(RemoteProtocolError):
            await world.methods[OPEN](HEAD, wild, None)
    gate = world.grants.gate(world.stages[0])
    error = gate.refusal(Frame(kind=Kind.ROWS, dtype=DType.F32, rows=0, columns=1, session=7))
    assert isinstance(error, Forbidden)


async def test_a_head_from_outside_gets_one_unit_ahead_of_its_signature(world: World) -> None:
    """Half of the layers: two requests; the third has to wait for a receipt."""
    world.paths[HEAD] = "wan"
    assert await world.open(1) == await world.open(2) == 10 + 999
    assert world.grants.owed_by(HEAD) == UNIT
    with pytest.raises(ReceiptOwed):
        await world.open(3)
    world.compute(1)
    world.grants.close("p", 1)
    with pytest.raises(ReceiptOwed):
        await world.open(3)
    world.signed(1)
    assert await world.open(3) == 1009


async def test_a_waiting_request_goes_on_when_something_is_signed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "GRANT_WAIT_S_MAX", 30.0)
    monkeypatch.setattr(limits, "GRANTS_WAITING_MAX", 1)
    world.paths[HEAD] = "relay"
    for session in (1, 2):
        await world.open(session)
        world.compute(session)
        world.grants.close("p", session)
    waiting = asyncio.ensure_future(world.open(3))
    await settle()
    with pytest.raises(Busy):
        await world.open(4)
    assert not waiting.done()
    world.signed(2)
    await until(waiting.done)
    assert waiting.result() == 1009


async def test_a_session_reaches_one_unit_further_with_each_receipt(world: World) -> None:
    """Both stages of one device have to be signed for."""
    world.stages.append(TalliedStage("p", HEAD, (4, 8), layers_total=8))
    world.paths[HEAD] = "wan"
    gate = world.grants.gate(world.stages[0])
    assert await world.open(1) == 1009
    world.signed(1, stage=0)
    assert gate.reach[1] == 1009
    assert isinstance(
        gate.refusal(Frame(kind=Kind.ROWS, dtype=DType.F32, rows=0, columns=1, session=1)), ReceiptOwed
    )
    world.signed(1, stage=1)
    assert gate.reach[1] == 2009
    assert world.grants.owed_by(HEAD) == UNIT, "the next unit is ahead of its signature again"


async def test_a_given_receipt_is_counted_by_the_record_and_not_twice(world: World) -> None:
    world.paths[HEAD] = "wan"
    await world.open(1)
    world.grants.given(HEAD, ("p", 1, (0, 4)), 300_000)
    assert world.grants.owed_by(HEAD) == 200_000
    world.grants.given(HEAD, ("p", 9, (0, 4)), 300_000)
    assert world.grants.owed_by(HEAD) == 200_000


async def test_what_was_announced_and_not_computed_is_not_owed(world: World) -> None:
    world.paths[HEAD] = "wan"
    await world.open(1)
    world.compute(2)
    await world.open(2)
    for session in (1, 2):
        world.grants.close("p", session)
    assert world.grants.owed_by(HEAD) == UNIT // 2


async def test_debts_of_a_head_that_vanished_are_written_off(world: World) -> None:
    world.paths[HEAD] = "wan"
    for session in (1, 2):
        await world.open(session)
        world.compute(session)
    world.grants.close("p", 1)
    world.now_s = limits.DEBT_KEPT_S_MAX + 1
    world.grants.tick()
    assert world.grants.owed_by(HEAD) == UNIT // 2, "the other session still runs"


async def test_who_signed_two_truths_gets_nothing_more(world: World) -> None:
    """Not even from the LAN, not even in a session that runs."""
    gate = world.grants.gate(world.stages[0])
    await world.open(1)
    world.fraud(HEAD)
    world.grants.tick()
    assert 1 not in gate.reach
    with pytest.raises(CreditEnded):
        await world.open(2)
    with pytest.raises(CreditEnded):
        world.grants.check(HEAD)


async def test_what_leaves_no_receipts_is_for_the_local_network(world: World) -> None:
    world.grants.check_uncounted(HEAD)
    world.paths[HEAD] = "wan"
    with pytest.raises(Forbidden):
        world.grants.check_uncounted(HEAD)


async def test_an_old_streams_end_does_not_end_what_a_new_one_serves(world: World) -> None:
    old = world.grants.gate(world.stages[0])
    new = world.grants.gate(world.stages[0])
    await world.open(1)
    old.freed(1)
    assert 1 in new.reach
    new.freed(1)
    assert 1 not in new.reach


async def test_a_plan_without_open_sessions_still_stands(world: World) -> None:
    """The stream that was attached for it serves the next request too."""
    gate = world.grants.gate(world.stages[0])
    for session in (1, 2):
        await world.open(session)
        assert session in gate.reach
        gate.freed(session)
    assert gate.reach == {PROBE_SESSION: 1}


async def test_the_table_is_bounded_and_forgets_released_plans(world: World) -> None:
    gate = world.grants.gate(world.stages[0])
    for session in range(limits.GRANTS_PER_PLAN_MAX + 5):
        await world.open(session)
    assert len(gate.reach) == limits.GRANTS_PER_PLAN_MAX + 1
    assert 0 not in gate.reach
    world.stages[:] = [TalliedStage("q", HEAD, (0, 4), layers_total=8)]
    await world.open(1, plan="q")
    assert set(world.grants._plans) == set(world.grants._reach) == {"q"}
    assert not world.grants._gates


@pytest.mark.parametrize(
    ("stage", "part"),
    [
        (TalliedStage("p", "h", (0, 4), layers_total=8), 500_000),
        (TalliedStage("p", "h", (0, 1), layers_total=3), 333_334),
        (TalliedStage("p", "h", (0, 8), 1, (1, 3), 8), 750_000),
        (TalliedStage("p", "h", (0, 4)), UNIT),
    ],
)
def test_a_stages_part_of_a_unit(stage: TalliedStage, part: int) -> None:
    assert unit_part(stage) == part
