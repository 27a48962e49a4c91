"""Several nodes that compute for one another over a network that drops, doubles and reorders.

Heads serve paying callers, split each unit's price over stages, ranks of tensor groups and devices that have several
stages, and ask every provider for a receipt of each. After the
network heals, both books of every channel must agree and every debit must be somebody's credit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random

import pytest

from p2pnode import projections
from p2pnode.commands import (
    AcceptReceipts,
    FailRequest,
    GiveReceipts,
    OfferedReceipt,
    SettleUnit,
    StartNode,
    TopUp,
)
from p2pnode.decide import StageWork, divide, draft_receipts, may_compute, parts_of_share
from p2pnode.errors import CreditEnded, ReceiptOwed
from p2pnode.events import receipt as receipts
from p2pnode.events.keys import LogKeys
from p2pnode.events.receipt import Signed
from p2pnode.limits import EXPOSURE_MICROUNITS_MAX
from p2pnode.node.active import Place
from p2pnode.projections import billing
from p2pnode.units import PeerId
from tests.kit.receipts import HASH, keys_of, public
from tests.kit.story import Story, finish, folded, serve

UNIT = 1_000_000
LAYERS = 12


@dataclass
class Job:
    """A stage's share of a finished request, as the head told it to the provider."""

    head: str
    work: StageWork


@dataclass
class Node:
    keys: LogKeys
    story: Story
    owed: list[Job] = field(default_factory=list)
    """Work done and not yet receipted, oldest first."""
    told: dict[str, tuple[int, int]] = field(default_factory=dict)
    """As a head: what it asked for to (layer-tokens, micro-units) it will sign for."""
    pending: dict[str, GiveReceipts] = field(default_factory=dict)
    """As a provider: consumer to the receipts of one request that wait for its signatures."""

    @property
    def peer(self) -> str:
        return self.keys.peer


def work_of(places: list[Place], positions: int) -> dict[str, int]:
    work: dict[str, int] = {}
    for place in places:
        work[place.peer] = work.get(place.peer, 0) + place.layer_tokens(positions)
    return work


def stage_work(
    request_id: str, place: Place, positions: tuple[int, int], done: tuple[int, int], price: tuple[int, int]
) -> StageWork:
    return StageWork(
        request_id=request_id,
        model="bafkmodel",
        layers=place.layers,
        positions=positions,
        layer_tokens=done[0],
        request_layer_tokens=done[1],
        microunits=price[0],
        request_microunits=price[1],
        input_commitment=HASH,
        output_commitment=HASH,
    )


Message = tuple[str, str, str, tuple[Signed, ...]]
"""(kind, from, to, receipts with the sender's signature)"""


class World:
    def __init__(self, seed: int, count: int = 4) -> None:
        self.rng = Random(seed)
        nodes = [keys_of(f"node {number}") for number in range(count)]
        self.nodes = {keys.peer: Node(keys, Story(keys.peer)) for keys in nodes}
        self.wire: list[Message] = []
        self.number = 0
        self.loss = 0.3

    # --- work ---------------------------------------------------------------------------------------
    def request(self) -> None:
        """One caller asks one head for one to three units; providers that wait for a signature refuse to go on."""
        rng, self.number = self.rng, self.number + 1
        head = rng.choice(list(self.nodes.values()))
        request_id, caller = f"r{self.number}", f"caller{rng.randrange(3)}"
        tokens = rng.choice((1, 400, 1000, 1001, 2500))
        places = self.places(head, request_id)
        if not self.may_begin(head, places):
            return
        key = f"t{self.number}"
        head.story.do(TopUp(account=caller, amount_microunits=3 * UNIT, idempotency_key=key), key=key)
        path = rng.choice(("wan", "wan", "lan"))
        head.story.do(serve(request_id, caller=caller, path=path, network="", max_tokens=tokens))
        is_paid, begin, units = path == "wan", 0, -(-tokens // 1000)
        for unit in range(1, units):
            end = 10 + 1000 * unit
            work = work_of(places, end - begin)
            if is_paid:
                answer = head.story.do(SettleUnit(request_id=request_id, unit=unit, work=tuple(work.items())))
                self.tell(head, request_id, places, (begin, end), dict(answer["shares"]))
                begin = end
            if rng.random() < 0.2 or not self.may_begin(head, places):
                # Delivered units stay paid; what was done since earns nothing.
                head.story.do(FailRequest(request_id=request_id, code="receipt_owed", message="gone"))
                return
        end = 10 + tokens
        work = work_of(places, end - begin)
        paid = head.story.state.billing.holds[request_id].shares
        answer = head.story.do(finish(request_id, completion_tokens=tokens, work=tuple(work.items())))
        last = {account: share - paid.get(account, 0) for account, share in dict(answer["shares"]).items()}
        self.tell(head, request_id, places, (begin, end), last)

    def may_begin(self, head: Node, places: list[Place]) -> bool:
        """Whether every provider is ahead of its head's signatures by one unit at most, with the next one counted."""
        for peer in {place.peer for place in places} - {head.peer}:
            provider = self.nodes[peer]
            waiting = sum(job.work.microunits for job in provider.owed if job.head == head.peer)
            mine = sum(place.layer_tokens(1000) for place in places if place.peer == peer)
            try:
                may_compute(provider.story.state, head.peer, waiting + -(-UNIT * mine // (LAYERS * 1000)))
            except (ReceiptOwed, CreditEnded):
                return False
        return True

    def places(self, head: Node, plan_id: str) -> list[Place]:
        """A ring: stages of one device, of a device that has another one too, and of groups with uneven shares."""
        rng, peers = self.rng, [PeerId(peer) for peer in self.nodes]
        count = rng.randint(1, 5)
        bounds = [0, *sorted(rng.sample(range(1, LAYERS), count - 1)), LAYERS]
        places: list[Place] = []
        for number in range(count):
            layers = (bounds[number], bounds[number + 1])
            ranks = rng.sample(peers, min(rng.choice((1, 1, 2, 3)), len(peers)))
            shares = tuple(rng.randint(1, 3) for _ in ranks) if len(ranks) > 1 else ()
            places += [Place(plan_id, peer, layers, rank, shares) for rank, peer in enumerate(ranks)]
        if all(place.peer == head.peer for place in places):
            return self.places(head, plan_id)
        return places

    def tell(
        self,
        head: Node,
        request_id: str,
        places: list[Place],
        positions: tuple[int, int],
        shares: dict[str, int],
    ) -> None:
        """What each place did of a unit, and its part of the price."""
        work = work_of(places, positions[1] - positions[0])
        cost, total = sum(shares.values()), sum(work.values())
        assert total == LAYERS * (positions[1] - positions[0]), "the ranks' parts are the stages'"
        assert tuple(sorted((peer, share) for peer, share in shares.items() if share)) == divide(
            cost, list(work.items())
        )
        for peer in set(work) - {head.peer}:
            count = positions[1] - positions[0]
            # A rank whose share of a short answer rounds to nothing has nothing to be receipted.
            own = [place for place in places if place.peer == peer and place.layer_tokens(count)]
            if not own:
                continue
            pieces = [place.layer_tokens(count) for place in own]
            parts = parts_of_share(shares.get(peer, 0), cost, total, pieces)
            assert sum(parts) == shares.get(peer, 0)
            for place, done, microunits in zip(own, pieces, parts, strict=True):
                head.told[f"{peer} {request_id} {place.layers} {positions}"] = (done, microunits)
                self.nodes[peer].owed.append(
                    Job(
                        head.peer, stage_work(request_id, place, positions, (done, total), (microunits, cost))
                    )
                )

    # --- receipts -----------------------------------------------------------------------------------
    def send_receipts(self) -> None:
        """Every provider signs what is next in each channel, and says again what was not answered."""
        for node in self.nodes.values():
            for job in list(node.owed):
                if job.head not in node.pending:
                    together = self.together(node, job)
                    node.owed = [other for other in node.owed if other not in together]
                    node.pending[job.head] = self.give(node, *together)
            for consumer, command in node.pending.items():
                self.wire.append(("receipt", node.peer, consumer, command.receipts))

    def together(self, node: Node, first: Job) -> list[Job]:
        """The oldest of a request and those after it: all, or fewer, and never more than a unit."""
        own = [
            job for job in node.owed if (job.head, job.work.request_id) == (first.head, first.work.request_id)
        ]
        count = self.rng.randint(1, len(own))
        while sum(job.work.microunits for job in own[:count]) > UNIT:
            count -= 1
        return own[:count]

    def give(self, node: Node, *jobs: Job) -> GiveReceipts:
        works = [job.work for job in jobs]
        drafts = draft_receipts(node.story.state, jobs[0].head, works, "", node.story.now_ms)
        raws = [receipts.encode(draft) for draft in drafts]
        command = GiveReceipts(
            receipts=tuple(Signed(raw, receipts.sign(raw, node.keys.receipt)) for raw in raws),
            provider_key=public(node.keys),
        )
        node.story.do(command)
        return command

    def deliver(self) -> None:
        """Some of what is on the wire arrives, in any order, some of it twice."""
        self.rng.shuffle(self.wire)
        arriving, self.wire = self.wire, []
        for message in arriving:
            chance = self.rng.random()
            if chance < self.loss:
                continue
            if chance > 1 - self.loss / 2:
                self.wire.append(message)
            self.receive(*message)

    def receive(self, kind: str, sender: str, receiver: str, body: tuple[Signed, ...]) -> None:
        node, other = self.nodes[receiver], self.nodes[sender]
        if kind == "receipt":
            self.countersign(node, other, body)
        else:
            self.agreed(node, other, body)

    def countersign(self, node: Node, provider: Node, body: tuple[Signed, ...]) -> None:
        offers = []
        for one in body:
            receipt = receipts.decode(one.raw)
            layers = (receipt.layer_first, receipt.layer_end)
            positions = (receipt.position_first, receipt.position_end)
            done, microunits = node.told[f"{provider.peer} {receipt.request_id} {layers} {positions}"]
            signed = Signed(one.raw, one.signature, receipts.countersign(one.raw, node.keys.receipt))
            offers.append(
                OfferedReceipt(
                    signed=signed,
                    provider_keys=provider.keys.bound(),
                    layer_tokens_max=done,
                    microunits_max=microunits,
                )
            )
        command = AcceptReceipts(offers=tuple(offers), consumer_key=public(node.keys))
        answers = node.story.do(command)["answers"]
        if not all(answer["accepted"] for answer in answers):
            assert all("does not follow" in answer["refused"] for answer in answers)
            return  # a message from long ago
        agreed = tuple(offer.signed for offer in offers)
        self.wire.append(("agreed", node.peer, provider.peer, agreed))

    def agreed(self, node: Node, consumer: Node, body: tuple[Signed, ...]) -> None:
        command = node.pending.get(consumer.peer)
        if command is None or [one.raw for one in command.receipts] != [one.raw for one in body]:
            return  # an answer to something settled long ago
        node.story.do(
            GiveReceipts(receipts=body, provider_key=public(node.keys), consumer_key=public(consumer.keys))
        )
        del node.pending[consumer.peer]

    # --- trouble ------------------------------------------------------------------------------------
    def crash(self) -> None:
        """A node loses its memory: the record and what it had promised to sign are kept."""
        node = self.rng.choice(list(self.nodes.values()))
        node.story.state = folded(node.story.records)
        node.story.do(StartNode(version="1", platform="linux", device_name="n"))

    def heal(self) -> None:
        self.loss = 0.0
        for _ in range(10_000):
            if not any(node.owed or node.pending for node in self.nodes.values()):
                return
            self.send_receipts()
            self.deliver()
        raise AssertionError("the books never met")

    # --- checkers -----------------------------------------------------------------------------------
    def channels(self) -> Iterator[tuple[Node, Node]]:
        for head in self.nodes.values():
            for provider in self.nodes.values():
                if provider is not head:
                    yield head, provider

    def check_always(self) -> None:
        for node in self.nodes.values():
            assert sum(billing.balances(node.story.state.billing).values()) == 0
        for head, provider in self.channels():
            assert billing.exposure(provider.story.state.billing, head.peer) <= EXPOSURE_MICROUNITS_MAX
            ours = head.story.state.billing.received.get(provider.peer)
            theirs = provider.story.state.billing.given.get(head.peer)
            assert theirs is None or ours is None or theirs.agreed_sequence <= ours.sequence
            assert ours is None or (theirs is not None and ours.sequence <= theirs.sequence)

    def check_healed(self) -> None:
        credits = debits = 0
        for head, provider in self.channels():
            owed = head.story.state.billing.accounts.get(provider.peer)
            ours = head.story.state.billing.received.get(provider.peer)
            theirs = provider.story.state.billing.given.get(head.peer)
            if theirs is None:
                assert ours is None
                continue
            assert ours is not None
            assert (ours.sequence, ours.receipt) == (theirs.agreed_sequence, theirs.receipt)
            assert ours.agreed_layer_tokens == theirs.agreed_layer_tokens
            assert ours.agreed_microunits == theirs.agreed_microunits == (owed.earned if owed else 0)
            credits += theirs.agreed_microunits
        for node in self.nodes.values():
            ledger = node.story.state.billing
            debits += sum(entry.spent for entry in ledger.accounts.values())
            due = sum(-v for k, v in ledger.balances.items() if k.startswith(billing.DUE))
            own = ledger.accounts.get(node.peer)
            credits += (own.earned if own else 0) - due
        assert debits == credits > 0
        for node in self.nodes.values():
            assert projections.snapshot(folded(node.story.records)) == projections.snapshot(node.story.state)


def run(seed: int, rounds: int = 60) -> World:
    world = World(seed)
    for _ in range(rounds):
        match world.rng.randrange(8):
            case 0 | 1 | 2:
                world.request()
            case 3 | 4:
                world.send_receipts()
            case 5 | 6:
                world.deliver()
            case _:
                world.crash()
        world.check_always()
    world.heal()
    world.check_healed()
    return world


@pytest.mark.parametrize("seed", range(8))
def test_books_agree_after_the_network_heals(seed: int) -> None:
    run(seed)


@pytest.mark.slow
def test_books_agree_in_a_thousand_worlds() -> None:
    for seed in range(1000):
        run(seed)


def test_a_restored_backup_that_signs_again_is_caught_and_ends_credit() -> None:
    """A provider that forgets a receipt and gives another under its number convicts itself."""
    world = World(1, count=2)
    provider, head = world.nodes.values()
    backup = list(provider.story.records)
    while not provider.owed:
        world.request()
    world.loss = 0.0
    world.send_receipts()
    world.deliver()
    provider.story.records, provider.story.state = backup, folded(backup)
    work = StageWork(
        request_id="r1",
        model="bafkmodel",
        layers=(0, 1),
        positions=(0, 1),
        layer_tokens=1,
        request_layer_tokens=1,
        microunits=1,
        request_microunits=1,
        input_commitment=HASH,
        output_commitment=HASH,
    )
    (again,) = world.give(provider, Job(head.peer, work)).receipts
    offer = OfferedReceipt(
        signed=Signed(again.raw, again.signature, receipts.countersign(again.raw, head.keys.receipt)),
        provider_keys=provider.keys.bound(),
        layer_tokens_max=1,
        microunits_max=1,
    )
    answer = head.story.do(AcceptReceipts(offers=(offer,), consumer_key=public(head.keys)))
    assert answer == {"answers": [{"accepted": False, "fraud": True, "refused": ""}]}
    with pytest.raises(CreditEnded):
        head.story.do(serve("after", caller=provider.peer))
    proof = head.story.records[-1].event.proof  # type: ignore[union-attr]  # a PeerEquivocated
    first, second, _ = receipts.check_fraud(proof)
    assert sha256(receipts.encode(first)).digest() != sha256(receipts.encode(second)).digest()
