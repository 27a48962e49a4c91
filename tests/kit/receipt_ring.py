"""A head and two devices that computed for it, each with its book; calls between them may be lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from p2pnode.commands import Command
from p2pnode.compute.row_tally import RowTallies, TalliedStage
from p2pnode.errors import P2PNodeError, PeerUnreachable
from p2pnode.events.keys import LogKeys
from p2pnode.frame import DType, Frame, Kind
from p2pnode.node.active import Place
from p2pnode.node.receipt_messages import ASK, DebtKey
from p2pnode.node.receipts import Receipts, RequestDone
from p2pnode.projections import MeshState
from p2pnode.units import PeerId
from tests.kit.receipts import keys_of
from tests.kit.story import NOW_MS, Story, finish, serve

UNIT = 1_000_000
PLAN, SESSION = "plan", 7


class Book:
    """A ledger without a disk."""

    def __init__(self, peer: str) -> None:
        self.story = Story(peer)
        self.refuses: P2PNodeError | None = None

    @property
    def state(self) -> MeshState:
        return self.story.state

    async def do(self, command: Command) -> dict[str, Any]:
        if self.refuses is not None:
            raise self.refuses
        return self.story.do(command)


class Debts:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, int]] = []
        self.beside = 0
        self.besides: list[int] = []
        """What is told first, one after the other."""
        self.when_signed: Callable[[], None] = lambda: None

    def owed_beside(self, head: PeerId, keys: Collection[DebtKey]) -> int:
        return self.besides.pop(0) if self.besides else self.beside

    def given(self, head: PeerId, key: tuple[str, int, tuple[int, int]], microunits: int) -> None:
        self.told.append(("given", f"{key[0]} {key[2]}", microunits))

    def signed(self, head: PeerId, key: tuple[str, int, tuple[int, int]]) -> None:
        self.told.append(("signed", f"{key[0]} {key[2]}", 0))
        self.when_signed()


@dataclass
class Peer:
    keys: LogKeys
    book: Book
    tallies: RowTallies = field(default_factory=RowTallies)
    debts: Debts = field(default_factory=Debts)
    methods: dict[str, Any] = field(default_factory=dict)
    receipts: Receipts | None = None
    lies: bool = False
    """Signs other bytes than it gives."""

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
        self.slow: dict[tuple[PeerId, str], asyncio.Event] = {}
        self.note = "p2pnode/x\n1\nAA==\n\n\u2014 p2pnode/x AAAAAAAA\n\u2014 witness AAAAAAAA\n"

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
            if (to, method) in self.slow:
                await self.slow[to, method].wait()
            answer: dict[str, Any] = await self.peers[to].methods[method](peer.id, arguments, None)
            if self.peers[to].lies and method == ASK:
                answer["receipts"] = [[raw, bytes(64)] for raw, _ in answer["receipts"]]
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
            checkpoint=lambda: self.note,
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
