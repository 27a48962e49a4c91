"""A head and two providers exchange receipts over calls that may fail at any moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import pytest

from p2pnode.commands import Command, FailRequest, SettleUnit
from p2pnode.compute.row_tally import RowTallies, TalliedStage, rank_part
from p2pnode.errors import (
    BadCheckpoint,
    BadReceipt,
    Forbidden,
    P2PNodeError,
    PeerUnreachable,
    RemoteProtocolError,
)
from p2pnode.events import receipt as receipts
from p2pnode.events.keys import LogKeys
from p2pnode.frame import DType, Frame, Kind
from p2pnode.limits import ROW_TALLIES_KEPT_MAX
from p2pnode.node import receipt_messages as exchange
from p2pnode.node.active import Place
from p2pnode.node.receipts import Receipts, RequestDone
from p2pnode.projections import MeshState, billing
from p2pnode.units import PeerId
from tests.kit.receipts import keys_of
from tests.kit.story import NOW_MS, Story, finish, serve

UNIT = 1_000_000
PLAN, SESSION = "plan", 7


class Book:
    """A ledger without a disk."""

    def __init__(self, peer: str) -> None:
        self.story = Story(peer)

    @property
    def state(self) -> MeshState:
        return self.story.state

    async def do(self, command: Command) -> dict[str, Any]:
        return self.story.do(command)


class Debts:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, int]] = []
        self.beside = 0

    def owed_beside(self, head: PeerId, key: tuple[str, int, tuple[int, int]]) -> int:
        return self.beside

    def given(self, head: PeerId, key: tuple[str, int, tuple[int, int]], microunits: int) -> None:
        self.told.append(("given", f"{key[0]} {key[2]}", microunits))

    def signed(self, head: PeerId, key: tuple[str, int, tuple[int, int]]) -> None:
        self.told.append(("signed", f"{key[0]} {key[2]}", 0))


@dataclass
class Peer:
    keys: LogKeys
    book: Book
    tallies: RowTallies = field(default_factory=RowTallies)
    debts: Debts = field(default_factory=Debts)
    methods: dict[str, Any] = field(default_factory=dict)
    receipts: Receipts | None = None

    @property
    def id(self) -> PeerId:
        return PeerId(self.keys.peer)


class Calls:
    """Calls between peers; `failing` says after which the answer is lost, or which never arrive."""

    def __init__(self) -> None:
        self.peers: dict[PeerId, Peer] = {}
        self.lost_before: set[str] = set()
        self.lost_after: set[str] = set()
        self.made: list[str] = []

    def add(self, name: str) -> Peer:
        keys = keys_of(name)
        peer = Peer(keys, Book(keys.peer))
        self.peers[peer.id] = peer

        async def call(
            to: PeerId, method: str, arguments: dict[str, Any], *, timeout_s: float
        ) -> dict[str, Any]:
            assert timeout_s > 0
            self.made.append(method)
            if method in self.lost_before or to not in self.peers:
                raise PeerUnreachable("gone")
            answer: dict[str, Any] = await self.peers[to].methods[method](peer.id, arguments, None)
            if method in self.lost_after:
                raise PeerUnreachable("gone meanwhile")
            return answer

        peer.receipts = Receipts(
            me=peer.id,
            record=peer.book,
            tallies=peer.tallies,
            debts=peer.debts,
            call=call,
            serve=peer.methods.__setitem__,
            keys=lambda: peer.keys,
            checkpoint=lambda: "p2pnode/x\n1\nAA==\n\n\u2014 p2pnode/x AAAAAAAA\n\u2014 witness AAAAAAAA\n",
            now_ms=lambda: NOW_MS,
            rng=lambda count: sha256(b"salt").digest()[:count],
        )
        return peer


def rows(position: int, count: int, content: bytes) -> Frame:
    return Frame(
        kind=Kind.ROWS,
        dtype=DType.F16,
        rows=count,
        columns=2,
        session=SESSION,
        payload=content,
        position_first=position,
    )


@dataclass
class Ring:
    calls: Calls
    head: Peer
    first: Peer
    second: Peer

    def work(self, request_id: str = "r1") -> RequestDone:
        """Ten positions through layers 4 to 8 and 8 to 12: prompt of eight, two tokens."""
        for position, count, wire in ((0, 8, b"prompt"), (8, 1, b"one"), (9, 1, b"two")):
            self.first.tallies.add(
                self.stage(4, 8), rows(position, count, b"a" + wire), rows(position, count, b"b" + wire)
            )
            self.second.tallies.add(
                self.stage(8, 12), rows(position, count, b"b" + wire), rows(position, count, b"c" + wire)
            )
        return self.done(request_id)

    def stage(self, first: int, end: int) -> TalliedStage:
        return TalliedStage(PLAN, self.head.id, (first, end))

    def done(self, request_id: str = "r1", session: int = SESSION) -> RequestDone:
        places = [self.place(self.head, 0, 4), self.place(self.first, 4, 8), self.place(self.second, 8, 12)]
        return self.asked(request_id, dict.fromkeys(places, 10), session)

    def place(self, peer: Peer, first: int, end: int, plan: str = PLAN, **rank: Any) -> Place:
        return Place(plan, peer.id, (first, end), **rank)

    def asked(self, request_id: str, positions: dict[Place, int], session: int = SESSION) -> RequestDone:
        return RequestDone(request_id, session, "bafkmodel", positions)

    def compute(self, place: Place, first: int = 0, count: int = 10, head: Peer | None = None) -> None:
        """Rows that a place's device computed for the head."""
        stage = TalliedStage(
            place.plan_id, (head or self.head).id, place.layers, place.rank, place.shares, layers_total=12
        )
        made = rows(first, count, b"rows")
        self.calls.peers[place.peer].tallies.add(stage, made, made)

    async def settle(self, done: RequestDone, path: str = "wan") -> int:
        """What the head does at the end of a request; answers how many receipts both signed."""
        assert self.head.receipts is not None
        self.head.book.story.do(serve(done.request_id, path=path))
        stages = await self.head.receipts.tally(done)
        work = done.work(stages)
        answer = self.head.book.story.do(finish(done.request_id, work=tuple(work.items())))
        return await self.head.receipts.collect(done, stages, work, dict(answer["shares"]))

    def given(self, provider: Peer) -> bytes:
        return provider.book.state.billing.given[self.head.id].receipt

    def earned(self, peer: Peer) -> int:
        return self.head.book.state.billing.accounts[peer.id].earned

    def agreed(self, provider: Peer) -> tuple[int, int]:
        """(sequence, micro-units) both books hold for a provider; they must be the same."""
        theirs = provider.book.state.billing.given[self.head.id]
        ours = self.head.book.state.billing.received[provider.id]
        assert (ours.agreed_sequence, ours.receipt) == (theirs.agreed_sequence, theirs.receipt)
        return theirs.agreed_sequence, theirs.agreed_microunits


@pytest.fixture
def ring() -> Ring:
    calls = Calls()
    return Ring(calls, calls.add("head"), calls.add("first"), calls.add("second"))


async def test_every_stage_is_receipted_in_both_books(ring: Ring) -> None:
    assert await ring.settle(ring.work()) == 2
    parts = [ring.agreed(peer)[1] for peer in (ring.first, ring.second)]
    parts.append(billing.available(ring.head.book.state.billing, ring.head.id))
    assert sorted(parts) == [333_333, 333_333, 333_334]
    assert billing.available(ring.second.book.state.billing, ring.second.id) == parts[1]
    given = [
        receipts.decode(peer.book.state.billing.given[ring.head.id].receipt)
        for peer in (ring.first, ring.second)
    ]
    assert given[0].output_commitment == given[1].input_commitment
    assert given[0].input_commitment != given[0].output_commitment
    assert (given[0].position_first, given[0].position_end, given[0].layer_tokens) == (0, 10, 40)
    assert given[0].checkpoint.count("\u2014") == 1, "the witnesses' lines are left out"


async def test_free_work_is_receipted_too(ring: Ring) -> None:
    assert await ring.settle(ring.work(), path="lan") == 2
    assert ring.agreed(ring.first) == (1, 0)


@pytest.mark.parametrize("method", [exchange.ASK, exchange.AGREE])
@pytest.mark.parametrize("arrived", [True, False])
async def test_what_was_lost_is_made_up_for_with_the_next_request(
    ring: Ring, method: str, arrived: bool
) -> None:
    lost = ring.calls.lost_after if arrived else ring.calls.lost_before
    lost.add(method)
    assert await ring.settle(ring.work()) == 0
    lost.clear()
    await ring.settle(ring.work("r2"))
    nothing_was_given = method == exchange.ASK and not arrived
    assert ring.agreed(ring.first)[0] == (1 if nothing_was_given else 2)


async def test_a_stage_that_is_gone_or_knows_nothing_is_left_out(ring: Ring) -> None:
    ring.calls.lost_before.add(exchange.TALLY)
    assert await ring.settle(ring.work()) == 0
    ring.calls.lost_before.clear()
    done = ring.done("r2", session=99)
    assert await ring.settle(done) == 0
    assert exchange.ASK not in ring.calls.made


async def test_more_than_the_head_fed_is_never_signed(ring: Ring) -> None:
    done = ring.work()
    ring.first.tallies.add(ring.stage(4, 8), rows(10, 90, b"x"), rows(10, 90, b"y"))
    assert ring.head.receipts is not None
    stages = await ring.head.receipts.tally(done)
    assert [stage.layer_tokens for stage in stages] == [40, 40]


async def test_nothing_done_needs_no_receipt(ring: Ring) -> None:
    assert ring.head.receipts is not None
    ring.work()
    idle = ring.asked("r1", {ring.place(ring.first, 4, 8): 0})
    stages = await ring.head.receipts.tally(idle)
    assert await ring.head.receipts.collect(idle, stages, {}, {}) == 0


async def test_a_provider_signs_for_no_more_than_it_did(ring: Ring) -> None:
    done = ring.work()
    asked = _asked(ring, done)
    with pytest.raises(BadReceipt, match="40 layer-tokens"):
        await ring.first.methods[exchange.ASK](ring.head.id, {**asked, "layer_tokens": 41}, None)
    with pytest.raises(RemoteProtocolError):
        await ring.first.methods[exchange.ASK](ring.head.id, {**asked, "salt": b"short"}, None)
    with pytest.raises(P2PNodeError):
        await ring.first.methods[exchange.AGREE](
            ring.head.id, {"receipt": b"", "signature": b"", "keys": b""}, None
        )


def _asked(ring: Ring, done: RequestDone) -> dict[str, Any]:
    return {
        "plan_id": PLAN,
        "session": done.session,
        "layers": [4, 8],
        "request_id": done.request_id,
        "model": "m",
        "salt": bytes(32),
        "layer_tokens": 40,
        "microunits": 0,
        "request_layer_tokens": 40,
        "request_microunits": 0,
    }


async def test_two_stages_of_one_device_are_receipted_both(ring: Ring) -> None:
    """Around another's stage; its share is divided over them, and each receipt is a fair part of the price."""
    places = [
        ring.place(ring.head, 0, 1),
        ring.place(ring.first, 1, 2),
        ring.place(ring.second, 2, 9),
        ring.place(ring.first, 9, 12),
    ]
    for place in places[1:]:
        ring.compute(place)
    assert await ring.settle(ring.asked("r1", dict.fromkeys(places, 10))) == 3
    assert ring.agreed(ring.first) == (2, 333_334)
    assert ring.agreed(ring.second) == (1, 583_333)
    assert ring.calls.made.count(exchange.ASK) == 3


async def test_every_rank_of_a_group_is_receipted_by_its_width(ring: Ring) -> None:
    """The parts of all ranks are the stage's work."""
    group = [
        ring.place(peer, 4, 12, rank=rank, shares=(1, 2, 4))
        for rank, peer in enumerate((ring.head, ring.first, ring.second))
    ]
    places = [ring.place(ring.head, 0, 4), *group]
    for place in group[1:]:
        ring.compute(place)
    done = ring.asked("r1", dict.fromkeys(places, 10))
    assert sum(place.layer_tokens(10) for place in group) == 80
    assert await ring.settle(done) == 2
    parts = [receipts.decode(ring.given(peer)).layer_tokens for peer in (ring.first, ring.second)]
    assert parts == [23, 46]
    assert ring.agreed(ring.first)[1] == 23 * UNIT // 120 + 1
    assert sum(ring.earned(peer) for peer in (ring.head, ring.first, ring.second)) == UNIT


async def test_all_plans_a_request_ran_on_are_receipted(ring: Ring) -> None:
    """First over two devices, then over one of them: what the lost one did is credited, and nobody can sign for it."""
    before, after = ring.place(ring.first, 4, 8), ring.place(ring.first, 4, 12, "other plan")
    lost = ring.place(ring.second, 8, 12)
    ring.compute(before, 0, 6)
    ring.compute(after, 0, 10)
    del ring.calls.peers[ring.second.id]
    done = ring.asked("r1", {ring.place(ring.head, 0, 4): 14, before: 6, lost: 6, after: 10})
    assert await ring.settle(done) == 2
    work = 4 * 14 + 4 * 6 + 4 * 6 + 8 * 10
    assert ring.agreed(ring.first)[1] == ring.earned(ring.first)
    assert ring.earned(ring.first) in (UNIT * 104 // work, UNIT * 104 // work + 1)
    assert ring.earned(ring.second) in (UNIT * 24 // work, UNIT * 24 // work + 1)


async def test_each_unit_of_a_long_request_is_signed_before_the_next(ring: Ring) -> None:
    """No receipt is for more than a unit, each is for its own positions, and the books agree after each."""
    mine, theirs = ring.place(ring.head, 0, 4), ring.place(ring.first, 4, 12)
    story = ring.head.book.story
    story.do(serve("r1", max_tokens=3000))
    assert ring.head.receipts is not None
    for unit in (1, 2):
        ring.compute(theirs, 1000 * (unit - 1), 1000)
        done = ring.asked("r1", {mine: 1000, theirs: 1000})
        stages = await ring.head.receipts.tally(done)
        work = done.work(stages)
        answer = story.do(SettleUnit(request_id="r1", unit=unit, work=tuple(work.items())))
        assert await ring.head.receipts.collect(done, stages, work, dict(answer["shares"])) == 1
        receipt = receipts.decode(ring.given(ring.first))
        assert (receipt.position_first, receipt.position_end) == (1000 * (unit - 1), 1000 * unit)
        assert ring.agreed(ring.first) == (unit, ring.earned(ring.first))
    assert ring.agreed(ring.first)[1] > UNIT


async def test_a_unit_whose_signature_was_lost_is_signed_with_the_next(ring: Ring) -> None:
    """Also when the request fails in between: what was settled is owed."""
    theirs = ring.place(ring.first, 4, 12)
    story = ring.head.book.story
    story.do(serve("r1", max_tokens=3000))
    assert ring.head.receipts is not None
    ring.compute(theirs)
    done = ring.asked("r1", {theirs: 10})
    stages = await ring.head.receipts.tally(done)
    answer = story.do(SettleUnit(request_id="r1", unit=1, work=tuple(done.work(stages).items())))
    ring.calls.lost_after.add(exchange.ASK)
    assert await ring.head.receipts.collect(done, stages, done.work(stages), dict(answer["shares"])) == 0
    ring.calls.lost_after.clear()
    story.do(FailRequest(request_id="r1", code="stage_lost", message="gone"))
    assert ring.first.id not in ring.head.book.state.billing.received
    ring.compute(theirs, 0, 5)
    await ring.settle(ring.asked("r2", {ring.place(ring.head, 0, 4): 5, theirs: 5}))
    assert ring.agreed(ring.first) == (2, ring.earned(ring.first))


@pytest.mark.parametrize("method", [exchange.ASK, exchange.AGREE])
@pytest.mark.parametrize("arrived", [True, False])
async def test_what_was_lost_is_made_up_for_without_more_work(ring: Ring, method: str, arrived: bool) -> None:
    """When the device is back, or refuses the next request: both books are even again, and stay so."""
    lost = ring.calls.lost_after if arrived else ring.calls.lost_before
    lost.add(method)
    assert await ring.settle(ring.work()) == 0
    lost.clear()
    assert ring.head.receipts is not None
    for _ in range(2):
        await ring.head.receipts.make_up(ring.first.id)
        assert ring.agreed(ring.first) == (1, ring.earned(ring.first))


async def test_a_receipt_that_would_exceed_the_bound_is_asked_for_again_later(ring: Ring) -> None:
    ring.first.debts.beside = UNIT
    assert await ring.settle(ring.work()) == 1
    assert ring.first.id not in ring.head.book.state.billing.received
    ring.first.debts.beside = 0
    assert ring.head.receipts is not None
    await ring.head.receipts.make_up(ring.first.id)
    assert ring.agreed(ring.first) == (1, ring.earned(ring.first))


async def test_a_repeated_receipt_is_bounded_by_what_was_earned(ring: Ring) -> None:
    """A provider that repeats a receipt for more than the settlement gave it is not signed for."""
    theirs = ring.place(ring.first, 4, 12)
    ring.compute(theirs)
    greedy = {
        **_asked(ring, ring.done()),
        "layers": [4, 12],
        "microunits": 900_000,
        "request_microunits": 900_000,
    }
    await ring.first.methods[exchange.ASK](ring.head.id, greedy, None)
    ring.compute(theirs)
    assert await ring.settle(ring.asked("r1", {ring.place(ring.head, 0, 8): 10, theirs: 10})) == 0
    assert ring.first.id not in ring.head.book.state.billing.received


async def test_receipts_are_for_the_head_of_the_plan_alone(ring: Ring) -> None:
    """Else another member could sign for work, at no price, before its head does."""
    done = ring.work()
    stranger = ring.calls.add("stranger")
    for method in (exchange.TALLY, exchange.ASK):
        with pytest.raises(Forbidden, match="only the head"):
            await ring.first.methods[method](stranger.id, _asked(ring, done), None)
    assert await ring.settle(done) == 2


async def test_who_watches_debts_hears_of_each_receipt(ring: Ring) -> None:
    await ring.settle(ring.work())
    share = ring.agreed(ring.first)[1]
    assert ring.first.debts.told == [("given", "plan (4, 8)", share), ("signed", "plan (4, 8)", 0)]


async def test_only_keys_an_identity_vouches_for_count(ring: Ring) -> None:
    done = ring.work()
    stranger = keys_of("stranger")
    ring.first.keys = LogKeys(
        stranger.identity, 0, stranger.origin, stranger.log, stranger.witness, stranger.receipt
    )
    assert await ring.settle(done) == 1
    assert ring.first.id not in ring.head.book.state.billing.received
    ring.work("r2")
    offer = await ring.second.methods[exchange.ASK](
        ring.head.id, {**_asked(ring, done), "layers": [8, 12]}, None
    )
    with pytest.raises(BadCheckpoint, match="not a binding"):
        await ring.second.methods[exchange.AGREE](ring.head.id, {**offer, "keys": b"x"}, None)


async def test_changed_keys_do_not_stop_a_channel(ring: Ring) -> None:
    ring.calls.lost_before.add(exchange.AGREE)
    await ring.settle(ring.work())
    ring.calls.lost_before.clear()
    for peer in (ring.first, ring.head):
        old = peer.keys
        peer.keys = LogKeys.derive(old.identity, old.generation + 1)
    assert await ring.settle(ring.work("r2")) == 2
    assert ring.agreed(ring.first)[0] == 2


async def test_a_provider_that_signs_one_number_twice_convicts_itself(ring: Ring) -> None:
    await ring.settle(ring.work())
    backup = Book(ring.first.id)
    ring.first.book.story = backup.story
    assert await ring.settle(ring.work("r2")) == 1
    assert ring.head.book.state.billing.accounts[ring.first.id].ended == "equivocated"
    assert await ring.settle(ring.work("r3")) == 1, "the others go on"


def test_tallies_are_bounded_and_count_a_replay_once() -> None:
    tallies = RowTallies()

    def stage(number: int) -> TalliedStage:
        return TalliedStage(f"p{number}", "head", (0, 2))

    for number in range(ROW_TALLIES_KEPT_MAX + 1):
        tallies.add(stage(number), rows(0, 5, b"x"), rows(0, 5, b"y"))
    assert tallies.get("p0", SESSION, (0, 2)) is None
    tally = tallies.get("p1", SESSION, (0, 2))
    assert tally is not None
    tally.add(rows(3, 4, b"z"), rows(3, 4, b"z"))
    assert (tally.rows, tally.position_first, tally.position_end, tally.layer_tokens) == (9, 0, 7, 14)
    assert len(tally.input_digest) == len(tally.output_digest) == 32
    tallies.add(stage(1), rows(0, 1, b"x"), rows(0, 1, b"y"))
    again = tallies.get("p1", SESSION, (0, 2))
    assert again is not None
    assert again.rows == 1, "a head that started again counts its sessions from the first"


def test_what_a_receipt_was_given_for_is_not_counted_again() -> None:
    tallies = RowTallies()
    stage = TalliedStage(PLAN, "head", (0, 2))
    tallies.add(stage, rows(0, 5, b"x"), rows(0, 5, b"y"))
    tally = tallies.get(PLAN, SESSION, (0, 2))
    assert tally is not None
    before = tally.input_digest
    tally.cut()
    assert (tally.layer_tokens, tally.rows) == (0, 0)
    tally.add(rows(0, 5, b"x"), rows(0, 5, b"y"))
    assert tally.layer_tokens == 0, "a replay of what was receipted"
    tally.add(rows(5, 2, b"z"), rows(5, 2, b"z"))
    assert (tally.position_first, tally.position_end, tally.layer_tokens) == (5, 7, 4)
    assert tally.input_digest != before


@pytest.mark.parametrize(
    ("work", "shares", "parts"),
    [
        (10, [], [10]),
        (10, [1], [10]),
        (10, [2, 2], [5, 5]),
        (10, [1, 1, 1], [4, 3, 3]),
        (7, [3, 1], [5, 2]),
        (1, [1, 1], [1, 0]),
    ],
)
def test_ranks_share_a_stages_work_by_their_width(work: int, shares: list[int], parts: list[int]) -> None:
    found = [rank_part(work, rank, shares) for rank in range(max(len(shares), 1))]
    assert found == parts
    assert sum(found) == work
