"""Several nodes that compute for one another over a network that drops, doubles and reorders.

Heads serve paying callers, split each price over the stages and ask every provider for a receipt. After the
network heals, both books of every channel must agree and every debit must be somebody's credit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random

import pytest

from p2pnode import projections
from p2pnode.commands import AcceptReceipt, GiveReceipt, StartNode, TopUp
from p2pnode.decide import StageWork, divide, draft_receipt, may_compute
from p2pnode.errors import CreditEnded, ReceiptOwed
from p2pnode.events import receipt as receipts
from p2pnode.events.keys import LogKeys
from p2pnode.limits import EXPOSURE_MICROUNITS_MAX
from p2pnode.projections import billing
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
    """As a head: (provider, request) to (layer-tokens, micro-units) it will sign for."""
    pending: dict[str, GiveReceipt] = field(default_factory=dict)
    """As a provider: consumer to the receipt that waits for its signature."""

    @property
    def peer(self) -> str:
        return self.keys.peer


Message = tuple[str, str, str, tuple[bytes, bytes]]
"""(kind, from, to, (bytes, signature))"""


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
        """One caller asks one head; its stages may be refused to it by providers that wait for a signature."""
        rng, self.number = self.rng, self.number + 1
        head = rng.choice(list(self.nodes.values()))
        request_id, caller = f"r{self.number}", f"caller{rng.randrange(3)}"
        tokens = rng.choice((1, 400, 1000))
        positions = 10 + tokens
        stages = self.stages(head)
        try:
            for provider, layers in stages:
                if provider is not head:
                    waiting = sum(job.work.microunits for job in provider.owed if job.head == head.peer)
                    may_compute(
                        provider.story.state, head.peer, waiting + UNIT * (layers[1] - layers[0]) // LAYERS
                    )
        except (ReceiptOwed, CreditEnded):
            return
        key = f"t{self.number}"
        head.story.do(TopUp(account=caller, amount_microunits=UNIT, idempotency_key=key), key=key)
        path = rng.choice(("wan", "wan", "lan"))
        head.story.do(serve(request_id, caller=caller, path=path, network="", max_tokens=tokens))
        work = tuple((node.peer, (end - first) * positions) for node, (first, end) in stages)
        answer = head.story.do(finish(request_id, completion_tokens=tokens, work=work))
        self.tell(head, request_id, stages, positions, answer["cost_microunits"], answer["shares"])

    def stages(self, head: Node) -> list[tuple[Node, tuple[int, int]]]:
        others = [node for node in self.nodes.values() if node is not head]
        chosen = [head, *self.rng.sample(others, self.rng.randint(1, len(others)))]
        cuts = sorted(self.rng.sample(range(1, LAYERS), len(chosen) - 1))
        bounds = [0, *cuts, LAYERS]
        return [(node, (bounds[i], bounds[i + 1])) for i, node in enumerate(chosen)]

    def tell(
        self,
        head: Node,
        request_id: str,
        stages: list[tuple[Node, tuple[int, int]]],
        positions: int,
        cost: int,
        shares: list[list[object]],
    ) -> None:
        earned = {str(account): share for account, share in shares}
        total = LAYERS * positions
        assert tuple(earned.items()) == divide(
            cost, [(node.peer, (end - first) * positions) for node, (first, end) in stages]
        )
        for node, layers in stages:
            if node is head:
                continue
            done = (layers[1] - layers[0]) * positions
            microunits = int(str(earned.get(node.peer, 0)))
            head.told[f"{node.peer} {request_id}"] = (done, microunits)
            work = StageWork(
                request_id=request_id,
                model="bafkmodel",
                layers=layers,
                positions=(0, positions),
                layer_tokens=done,
                request_layer_tokens=total,
                microunits=microunits,
                request_microunits=cost,
                input_commitment=HASH,
                output_commitment=HASH,
            )
            node.owed.append(Job(head.peer, work))

    # --- receipts -----------------------------------------------------------------------------------
    def send_receipts(self) -> None:
        """Every provider signs what is next in each channel, and says again what was not answered."""
        for node in self.nodes.values():
            for job in list(node.owed):
                if job.head not in node.pending:
                    node.owed.remove(job)
                    node.pending[job.head] = self.give(node, job)
            for consumer, command in node.pending.items():
                self.wire.append(("receipt", node.peer, consumer, (command.receipt, command.signature)))

    def give(self, node: Node, job: Job) -> GiveReceipt:
        raw = receipts.encode(draft_receipt(node.story.state, job.head, job.work, "", node.story.now_ms))
        command = GiveReceipt(
            receipt=raw, signature=receipts.sign(raw, node.keys.receipt), provider_key=public(node.keys)
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

    def receive(self, kind: str, sender: str, receiver: str, body: tuple[bytes, bytes]) -> None:
        node, other = self.nodes[receiver], self.nodes[sender]
        if kind == "receipt":
            self.countersign(node, other, body)
        else:
            self.agreed(node, other, body)

    def countersign(self, node: Node, provider: Node, body: tuple[bytes, bytes]) -> None:
        raw, signature = body
        receipt = receipts.decode(raw)
        channel = node.story.state.billing.received.get(provider.peer)
        countersignature = receipts.countersign(raw, node.keys.receipt)
        if channel is None or receipt.sequence > channel.sequence:
            done, microunits = node.told[f"{provider.peer} {receipt.request_id}"]
            answer = node.story.do(
                AcceptReceipt(
                    receipt=raw,
                    signature=signature,
                    provider_key=public(provider.keys),
                    countersignature=countersignature,
                    consumer_key=public(node.keys),
                    layer_tokens_max=done,
                    microunits_max=microunits,
                )
            )
            assert answer["accepted"]
        self.wire.append(("agreed", node.peer, provider.peer, (raw, countersignature)))

    def agreed(self, node: Node, consumer: Node, body: tuple[bytes, bytes]) -> None:
        raw, countersignature = body
        command = node.pending.get(consumer.peer)
        if command is None or command.receipt != raw:
            return  # an answer to something settled long ago
        node.story.do(
            GiveReceipt(
                receipt=raw,
                signature=command.signature,
                provider_key=public(node.keys),
                countersignature=countersignature,
                consumer_key=public(consumer.keys),
            )
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
    again = world.give(provider, Job(head.peer, work))
    answer = head.story.do(
        AcceptReceipt(
            receipt=again.receipt,
            signature=again.signature,
            provider_key=public(provider.keys),
            countersignature=receipts.countersign(again.receipt, head.keys.receipt),
            consumer_key=public(head.keys),
            layer_tokens_max=1,
            microunits_max=1,
        )
    )
    assert answer == {"accepted": False, "fraud": True}
    with pytest.raises(CreditEnded):
        head.story.do(serve("after", caller=provider.peer))
    proof = head.story.records[-1].event.proof  # type: ignore[union-attr]  # a PeerEquivocated
    first, second, _ = receipts.check_fraud(proof)
    assert sha256(receipts.encode(first)).digest() != sha256(receipts.encode(second)).digest()
