"""Two nodes with the real exchange between them; calls are lost, doubled and reordered, and nodes are killed.

Both serve paying callers with the other's help, as strangers from far away: every session is announced, every unit
tallied, settled and signed for. After every step a node is at most one unit ahead of the other's signature; when the
network has healed, both logs hold the same receipts with the same sums.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from p2pnode import limits, projections
from p2pnode.commands import Command, FailRequest, SettleUnit, StartNode, TopUp
from p2pnode.compute.row_tally import RowTallies, TalliedStage
from p2pnode.errors import ConnectionLost, NotFound, P2PNodeError, PeerUnreachable
from p2pnode.events.keys import LogKeys
from p2pnode.frame import DType, Frame, Kind
from p2pnode.node.active import Place
from p2pnode.node.grants import OPEN, Grants
from p2pnode.node.receipts import Receipts, RequestDone
from p2pnode.projections import MeshState, billing
from p2pnode.units import PeerId
from tests.kit.receipts import keys_of
from tests.kit.story import Story, finish, folded, serve

UNIT, LAYERS, UNIT_TOKENS = 1_000_000, 12, 4


class Book:
    """A node's ledger until it is killed; what a dead node still wanted to write is lost."""

    def __init__(self, story: Story) -> None:
        self.story, self.is_dead = story, False

    @property
    def state(self) -> MeshState:
        return self.story.state

    async def do(self, command: Command) -> dict[str, Any]:
        await asyncio.sleep(0)
        if self.is_dead:
            raise ConnectionLost("this node was killed")
        return self.story.do(command)


@dataclass
class Device:
    keys: LogKeys
    story: Story
    book: Book = field(init=False)
    tallies: RowTallies = field(init=False)
    grants: Grants = field(init=False)
    receipts: Receipts = field(init=False)
    methods: dict[str, Any] = field(default_factory=dict)
    stages: list[TalliedStage] = field(default_factory=list)
    """Prepared here for the other."""

    @property
    def id(self) -> PeerId:
        return PeerId(self.keys.peer)

    def stages_of(self, plan_id: str, head: PeerId) -> list[TalliedStage]:
        return [stage for stage in self.stages if (stage.plan_id, stage.head) == (plan_id, head)]

    @property
    def exposure(self) -> int:
        """What the other has not signed for, given or not."""
        return sum(
            billing.exposure(self.story.state.billing, head) + self.grants.owed_by(PeerId(head))
            for head in {stage.head for stage in self.stages}
        )


class World:
    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.loss, self.deaths, self.now_s, self.count = 0.15, 0.02, 0.0, 0
        keys = [keys_of(f"{seed} {name}") for name in ("one", "two")]
        self.devices = {PeerId(k.peer): Device(k, Story(k.peer)) for k in keys}
        for device in self.devices.values():
            self.boot(device)

    def boot(self, device: Device) -> None:
        """What a node is after it started: its log and nothing else."""
        device.story.state = folded(device.story.records)
        device.story.do(StartNode(version="1", platform="linux", device_name="n"))
        device.book, device.tallies = Book(device.story), RowTallies()
        device.methods.clear()
        device.grants = Grants(
            me=device.id,
            record=device.book,
            tallies=device.tallies,
            stages_of=device.stages_of,
            path=lambda peer: "wan",
            serve=device.methods.__setitem__,
            now_s=lambda: self.now_s,
        )
        book = device.book

        async def call(to: PeerId, method: str, arguments: dict[str, Any], *, timeout_s: float) -> Any:
            if book.is_dead:
                raise ConnectionLost("this node was killed")
            return await self.call(device.id, to, method, arguments)

        device.receipts = Receipts(
            me=device.id,
            record=device.book,
            tallies=device.tallies,
            debts=device.grants,
            call=call,
            serve=device.methods.__setitem__,
            keys=lambda: device.keys,
            checkpoint=lambda: None,
            now_ms=lambda: device.story.now_ms,
            rng=self.rng.randbytes,
        )

    def kill(self, device: Device) -> None:
        device.book.is_dead = True
        self.boot(device)

    # --- the network --------------------------------------------------------------------------------
    async def call(
        self, sender: PeerId, to: PeerId, method: str, arguments: dict[str, Any]
    ) -> dict[str, Any]:
        """Lost on the way there or back, done twice, late, or met by a death."""
        rng, device = self.rng, self.devices[to]
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        if rng.random() < self.deaths:
            self.kill(device)
        if rng.random() < self.loss:
            raise PeerUnreachable("lost on the way there")
        answer: dict[str, Any] = await device.methods[method](sender, arguments, None)
        if rng.random() < self.loss:
            answer = await device.methods[method](sender, arguments, None)
        if rng.random() < self.deaths:
            self.kill(device)
        if rng.random() < self.loss:
            raise PeerUnreachable("lost on the way back")
        self.check()
        return answer

    # --- work ---------------------------------------------------------------------------------------
    async def request(self, head: Device, provider: Device) -> None:
        """Up to three units with one or two stages of the other, whole or as a rank of a group."""
        rng, self.count = self.rng, self.count + 1
        request_id, session, book = f"r{self.count}", self.count, head.book
        key = f"t{self.count}"
        head.story.do(TopUp(account="caller", amount_microunits=3 * UNIT, idempotency_key=key), key=key)
        tokens = rng.randint(1, 3 * UNIT_TOKENS)
        places = self.places(head, provider, request_id)
        theirs = [place for place in places if place.peer == provider.id]
        provider.stages += [
            TalliedStage(request_id, head.id, place.layers, place.rank, place.shares, LAYERS)
            for place in theirs
        ]
        try:
            await book.do(serve(request_id, caller="caller", network="", max_tokens=tokens))
            asked = {"plan_id": request_id, "session": session, "request_id": request_id, "prompt_tokens": 2}
            await self.call(head.id, provider.id, OPEN, asked)
            await self.answer(head, provider, places, request_id, tokens)
        except P2PNodeError as error:
            if not book.is_dead and request_id in book.state.billing.holds:
                with contextlib.suppress(ConnectionLost):
                    await book.do(FailRequest(request_id=request_id, code=error.code, message="gone"))
        provider.grants.close(request_id, session)
        provider.stages = [stage for stage in provider.stages if stage.plan_id != request_id]

    def places(self, head: Device, provider: Device, plan_id: str) -> list[Place]:
        first, second = sorted(self.rng.sample(range(1, LAYERS), 2))
        middle: list[Place] = [Place(plan_id, provider.id, (first, second))]
        if self.rng.random() < 0.4:
            shares = (self.rng.randint(1, 3), self.rng.randint(1, 3))
            middle = [
                Place(plan_id, peer, (first, second), n, shares)
                for n, peer in enumerate((head.id, provider.id))
            ]
        last = self.rng.choice((head, provider))
        return [Place(plan_id, head.id, (0, first)), *middle, Place(plan_id, last.id, (second, LAYERS))]

    async def answer(
        self, head: Device, provider: Device, places: list[Place], request_id: str, tokens: int
    ) -> None:
        receipts, book, begin, paid = head.receipts, head.book, 0, dict[str, int]()
        units = -(-tokens // UNIT_TOKENS)
        for unit in range(1, units + 1):
            end = 2 + min(tokens, unit * UNIT_TOKENS) - 1
            self.compute(provider, request_id, begin, end)
            self.check()
            done = RequestDone(
                request_id, int(request_id[1:]), "bafkmodel", dict.fromkeys(places, end - begin)
            )
            stages = await receipts.tally(done)
            work = done.work(stages)
            if unit < units:
                answer = await book.do(SettleUnit(request_id=request_id, unit=unit, work=tuple(work.items())))
                shares = dict(answer["shares"])
            else:
                answer = await book.do(finish(request_id, completion_tokens=tokens, work=tuple(work.items())))
                shares = {
                    a: n - paid.get(a, 0) for a, n in dict(answer["shares"]).items() if n > paid.get(a, 0)
                }
            for account, share in shares.items():
                paid[account] = paid.get(account, 0) + share
            await receipts.collect(done, stages, work, shares)
            begin = end

    def compute(self, provider: Device, plan_id: str, begin: int, end: int) -> None:
        """Only what the gate lets through; a refused row ends the request."""
        session = int(plan_id[1:])
        for stage in provider.stages:
            if stage.plan_id != plan_id:
                continue
            if end > provider.grants.gate(stage).reach.get(session, 0):
                raise NotFound("a frame was refused")
            frame = Frame(
                kind=Kind.ROWS, dtype=DType.F32, rows=end - begin, columns=1, session=session,
                position_first=begin, payload=bytes(4 * (end - begin)),
            )  # fmt: skip
            provider.tallies.add(stage, frame, frame)

    async def some_requests(self) -> None:
        pairs = [self.rng.sample(list(self.devices.values()), 2) for _ in range(self.rng.randint(1, 3))]
        await asyncio.gather(*(self.request(*pair) for pair in pairs))

    # --- checkers -----------------------------------------------------------------------------------
    def check(self) -> None:
        for device in self.devices.values():
            assert device.exposure <= limits.EXPOSURE_MICROUNITS_MAX
            assert sum(billing.balances(device.story.state.billing).values()) == 0

    async def heal(self) -> None:
        """No more losses; debts of what nobody remembers are written off; one more request each way."""
        self.loss = self.deaths = 0.0
        self.now_s += limits.DEBT_KEPT_S_MAX + 1
        one, two = self.devices.values()
        for device in (one, two):
            device.grants.tick()
        for head, provider in ((one, two), (two, one)):
            before = head.story.state.billing.received.get(provider.id)
            signed = 0 if before is None else before.sequence
            await head.receipts.make_up(provider.id)
            await self.request(head, provider)
            after = head.story.state.billing.received[provider.id]
            assert after.sequence > signed, "the channel is stuck"

    def check_healed(self) -> None:
        one, two = self.devices.values()
        for head, provider in ((one, two), (two, one)):
            ledger = head.story.state.billing
            ours, theirs = ledger.received[provider.id], provider.story.state.billing.given[head.id]
            assert (ours.sequence, ours.receipt) == (theirs.agreed_sequence, theirs.receipt)
            assert theirs.sequence == theirs.agreed_sequence
            assert ours.agreed_microunits == theirs.agreed_microunits <= ledger.accounts[provider.id].earned
            assert ours.agreed_layer_tokens == theirs.agreed_layer_tokens
            due = billing.balances(provider.story.state.billing).get(billing.DUE + head.id, 0)
            assert -due == theirs.agreed_microunits
        for device in (one, two):
            again = folded(device.story.records)
            assert projections.snapshot(again) == projections.snapshot(device.story.state)


async def run(seed: int, rounds: int = 8) -> None:
    world = World(seed)
    for _ in range(rounds):
        await world.some_requests()
        world.check()
        if world.rng.random() < 0.3:
            world.now_s += limits.DEBT_KEPT_S_MAX + 1
            for device in world.devices.values():
                device.grants.tick()
    await world.heal()
    world.check_healed()


@pytest.fixture(autouse=True)
def _short_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OUTPUT_TOKENS_PER_UNIT", UNIT_TOKENS)
    monkeypatch.setattr("p2pnode.decide.price.OUTPUT_TOKENS_PER_UNIT", UNIT_TOKENS)
    monkeypatch.setattr(limits, "GRANT_WAIT_S_MAX", 0.0)


@pytest.mark.parametrize("seed", range(20))
async def test_both_logs_agree_after_the_network_heals(seed: int) -> None:
    await run(seed)


@pytest.mark.slow
async def test_both_logs_agree_in_a_thousand_worlds() -> None:
    for seed in range(1000):
        await run(seed)
