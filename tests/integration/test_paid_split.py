"""Paid requests over real devices, split in every way: both logs of a channel agree, and every debit is a credit.

Four nodes in this process, with real QUIC between them and real engines behind them. The devices take each other for
strangers from far away, and units are a few tokens long, so that signatures have to come while an answer runs.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from p2pnode.commands import TopUp
from p2pnode.compute.pipeline_route import PipelineRoute
from p2pnode.errors import PeerUnreachable
from p2pnode.events import receipt as receipts
from p2pnode.events.receipt_file import export_receipts, merge, verify_receipts
from p2pnode.events.types import ReceiptReceived
from p2pnode.facade import Finished, GenerateRequest, SamplingParams, TextDelta
from p2pnode.node.active import Active, StagePart
from p2pnode.node.core import Node
from p2pnode.node.receipt_messages import AGREE
from p2pnode.projections import billing
from p2pnode.units import PeerId
from tests.kit.mesh import kill_now
from tests.kit.net import until
from tests.kit.node_here import node_here

NAMES = ("alpha", "beta", "gamma", "delta")
CALLER, FAR_AWAY = "key:paying", "203.0.113.9"
UNIT, UNIT_TOKENS = 1_000_000, 8
LAYERS = 8
"""Of the demo model."""
PROMPT = "Once upon a time"


class Mesh:
    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.plans = 0
        self.texts: dict[str, str] = {}

    async def plan(self, *parts: tuple[int, int, int, tuple[int, ...], tuple[int, ...]]) -> Active:
        """(device, first layer, end layer, followers, shares); carried out by the first device."""
        head = self.nodes[0]
        self.plans += 1
        made = [
            StagePart(self.nodes[device].me, first, end, tuple(self.nodes[f].me for f in followers), shares)
            for device, first, end, followers, shares in parts
        ]
        return await head.routing.pipeline(
            f"plan{self.plans}", head.catalog.resolve(None), made, lambda data: None
        )

    async def ask(
        self, active: Active, tokens: int, told: Callable[[object], None] = lambda event: None
    ) -> Finished:
        request = GenerateRequest(
            model=None, prompt=PROMPT, max_tokens=tokens, sampling=SamplingParams(temperature=0.0),
            mode=active.mode, caller=CALLER, address=FAR_AWAY,  # type: ignore[arg-type]  # one of its modes
        )  # fmt: skip
        text = ""
        async for event in self.nodes[0].requests.generate(request):
            told(event)
            if isinstance(event, TextDelta):
                text += event.text
        assert isinstance(event, Finished)
        self.texts[event.request_id] = text
        return event

    async def agreed(self, request_id: str, count: int) -> list[receipts.Receipt]:
        """The receipts of a request, once both sides of each hold the same bytes with both signatures."""
        head = self.nodes[0]
        await until(lambda: len(self.received(request_id)) == count)
        for node in self.nodes[1:]:
            ours = head.ledger.state.billing.received.get(node.me)
            if ours is not None:
                await until(lambda node=node, ours=ours: self._has_agreed(node, ours.receipt))
        return self.received(request_id)

    def received(self, request_id: str) -> list[receipts.Receipt]:
        events = [record.event for record in self.nodes[0].ledger.log.reader.find(request_id)]
        return [
            receipts.decode(raw)
            for event in events
            if isinstance(event, ReceiptReceived)
            for raw, _, _ in event.receipts
        ]

    def _has_agreed(self, node: Node, receipt: bytes) -> bool:
        theirs = node.ledger.state.billing.given.get(self.nodes[0].me)
        return theirs is not None and (theirs.receipt, theirs.agreed_sequence) == (receipt, theirs.sequence)

    def is_even(self) -> bool:
        """Whether every provider has signed for what the head's settlements gave it."""
        ledger = self.nodes[0].ledger.state.billing
        return all(
            self._has_agreed(node, ledger.received[node.me].receipt)
            and ledger.received[node.me].agreed_microunits == ledger.accounts[node.me].earned
            for node in self.nodes[1:]
            if node.me in ledger.received
        )

    def check(self) -> None:
        """Both books of every channel agree, and what the caller paid is what all together earned."""
        head = self.nodes[0]
        ledger = head.ledger.state.billing
        earned = ledger.accounts[head.me].earned if head.me in ledger.accounts else 0
        for node in self.nodes[1:]:
            theirs, ours = node.ledger.state.billing.given.get(head.me), ledger.received.get(node.me)
            assert (theirs is None) == (ours is None)
            if theirs is None or ours is None:
                continue
            assert theirs.agreed_microunits == ours.agreed_microunits == ledger.accounts[node.me].earned
            assert theirs.agreed_layer_tokens == ours.agreed_layer_tokens
            assert billing.available(node.ledger.state.billing, node.me) == theirs.agreed_microunits
            assert node.grants.owed_by(head.me) == 0
            earned += theirs.agreed_microunits
        assert earned == ledger.accounts[CALLER].spent
        for node in self.nodes:
            assert sum(billing.balances(node.ledger.state.billing).values()) == 0


@asynccontextmanager
async def mesh_of(folder: Path, count: int) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(node_here(folder / NAMES[0], NAMES[0]))
        nodes = [first]
        for name in NAMES[1:count]:
            invite = await first.mesh.invite(uses=1, expires_s=600, role="worker", label="")
            nodes.append(
                await stack.enter_async_context(node_here(folder / name, name, ticket=invite["ticket"]))
            )
        for node in nodes:
            await until(lambda node=node: all(is_known(node, other) for other in nodes if other is not node))
        await first.ledger.do(TopUp(account=CALLER, amount_microunits=1000 * UNIT, idempotency_key="t"))
        yield Mesh(nodes)


def is_known(node: Node, other: Node) -> bool:
    link = node.links.links.get(other.me)
    return link is not None and link.is_up and link.status is not None


@pytest.fixture(autouse=True)
def _short_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pnode.limits.OUTPUT_TOKENS_PER_UNIT", UNIT_TOKENS)
    monkeypatch.setattr("p2pnode.decide.price.OUTPUT_TOKENS_PER_UNIT", UNIT_TOKENS)


@pytest.fixture
def far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices take each other for strangers; else they are neighbours, whose engines pass rows on by themselves."""
    monkeypatch.setattr("p2pnode.node.links.path_of", lambda address: "wan")


WAYS: dict[str, tuple[list[tuple[int, int, int, tuple[int, ...], tuple[int, ...]]], int]] = {
    "pipeline": ([(0, 0, 2, (), ()), (1, 2, 6, (), ()), (2, 6, 8, (), ())], 2),
    "two stages on one device": (
        [(0, 0, 2, (), ()), (1, 2, 4, (), ()), (2, 4, 6, (), ()), (1, 6, 8, (), ())],
        3,
    ),
    "tensor": ([(0, 0, 8, (1, 2), (2, 1, 1))], 2),
    "hybrid": ([(0, 0, 2, (), ()), (1, 2, 6, (2,), (1, 3)), (3, 6, 8, (), ())], 3),
}


@pytest.mark.usefixtures("far_away")
@pytest.mark.parametrize("way", WAYS)
async def test_three_units_are_signed_one_by_one(tmp_path: Path, way: str) -> None:
    """Every place is receipted for every unit, and the places' parts are the price and the work of all."""
    # Lanes within the head's own device are nobody else's matter: it leads the group itself.
    await three_units(tmp_path, way, by_lanes=way == "tensor")


async def test_neighbours_sign_for_units_of_a_caller_from_far_away(tmp_path: Path) -> None:
    """What passed from engine to engine is counted to the row."""
    await three_units(tmp_path, "pipeline", by_lanes=True)


async def three_units(tmp_path: Path, way: str, *, by_lanes: bool) -> None:
    parts, places = WAYS[way]
    async with mesh_of(
        tmp_path, 1 + max(max(device, *followers, 0) for device, _, _, followers, _ in parts)
    ) as mesh:
        active = await mesh.plan(*parts)
        assert isinstance(active.route, PipelineRoute)
        assert active.route.by_lanes == by_lanes
        end = await mesh.ask(active, tokens=2 * UNIT_TOKENS + 3)
        assert end.completion_tokens == 2 * UNIT_TOKENS + 3
        assert end.cost_microunits == 3 * UNIT
        made = await mesh.agreed(end.request_id, 3 * places)
        positions = end.prompt_tokens + end.completion_tokens - 1
        work = {(receipt.position_first, receipt.request_layer_tokens) for receipt in made}
        assert sum(tokens for _, tokens in work) == LAYERS * positions
        assert all(receipt.microunits <= UNIT == receipt.request_microunits for receipt in made)
        assert all(receipt.position_end - receipt.position_first <= positions for receipt in made)
        mesh.check()
        again = await mesh.ask(active, tokens=3)
        await mesh.agreed(again.request_id, places)
        mesh.check()
        evidence = await exported(mesh, end.request_id)
        verdict = verify_receipts(json.dumps(evidence))
        assert verdict["ok"], verdict["problems"]
        assert len(verdict["receipts"]) == 3 * places
        for side in evidence["evidence"]:
            for piece in side["events"]:
                kept = piece["entry"]
                middle = len(kept) // 2
                piece["entry"] = kept[:middle] + ("0" if kept[middle] != "0" else "1") + kept[middle + 1 :]
                assert not verify_receipts(json.dumps(evidence))["ok"]
                piece["entry"] = kept


@pytest.mark.usefixtures("far_away")
async def test_seven_places_on_three_devices_leave_few_facts(tmp_path: Path) -> None:
    """One fact holds what all devices signed for a unit; a device's, what it signed for all its stages."""
    stages = [(device, layer, layer + 1, (), ()) for layer, device in enumerate((0, 1, 2, 1, 2, 1, 2, 3))]
    async with mesh_of(tmp_path, 4) as mesh:
        end = await mesh.ask(await mesh.plan(*stages), tokens=3)
        made = await mesh.agreed(end.request_id, 7)
        assert sum(receipt.microunits for receipt in made) == UNIT * 7 // 8
        mesh.check()
        for node, most in zip(mesh.nodes, (6, 2, 2, 2), strict=True):
            kinds = [type(r.event).__name__ for r in node.ledger.log.reader.find(end.request_id)]
            assert len(kinds) <= most, kinds
        verdict = verify_receipts(json.dumps(await exported(mesh, end.request_id)))
        assert verdict["ok"], verdict["problems"]
        assert len(verdict["receipts"]) == 7


@pytest.mark.usefixtures("far_away")
async def test_a_head_that_owes_a_signature_gives_it_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signature of the first answer was lost on its way; the device refuses the second until it has it."""
    monkeypatch.setattr("p2pnode.limits.GRANT_WAIT_S_MAX", 0.05)
    async with mesh_of(tmp_path, 2) as mesh:
        head, provider = mesh.nodes
        active = await mesh.plan((0, 0, 2, (), ()), (1, 2, 8, (), ()))
        real, lost = head.receipts._call, 0

        async def call(peer: PeerId, method: str, arguments: dict[str, Any], **wish: Any) -> dict[str, Any]:
            nonlocal lost
            if method == AGREE and not lost:
                lost += 1
                raise PeerUnreachable("lost")
            return await real(peer, method, arguments, **wish)

        monkeypatch.setattr(head.receipts, "_call", call)
        await mesh.ask(active, tokens=3)
        await until(lambda: lost == 1)
        assert billing.exposure(provider.ledger.state.billing, head.me) == 750_000
        again = await mesh.ask(active, tokens=3)
        await mesh.agreed(again.request_id, 1)
        mesh.check()


@pytest.mark.usefixtures("far_away")
async def test_an_answer_that_moved_is_signed_for_on_every_plan(tmp_path: Path) -> None:
    """An engine dies in the second unit: its device still signs for what it did, and nothing is owed or lost."""
    async with mesh_of(tmp_path, 3) as mesh:
        active = await mesh.plan(*WAYS["pipeline"][0])
        seen = 0

        def kill_later(event: object) -> None:
            nonlocal seen
            seen += isinstance(event, TextDelta)
            if seen == UNIT_TOKENS + 3:
                (hosted,) = mesh.nodes[1].hosting.stages.values()
                kill_now(hosted.engine.client.pid)

        end = await mesh.ask(active, tokens=4 * UNIT_TOKENS, told=kill_later)
        assert end.completion_tokens == 4 * UNIT_TOKENS
        undisturbed = await mesh.ask(await mesh.plan((0, 0, LAYERS, (), ())), tokens=4 * UNIT_TOKENS)
        assert mesh.texts[end.request_id] == mesh.texts[undisturbed.request_id]
        assert mesh.nodes[0].ledger.state.sessions.requests[end.request_id].stages_recovered == 1
        await until(mesh.is_even)
        mesh.check()


async def exported(mesh: Mesh, request_id: str) -> dict[str, Any]:
    """A file with both sides' proofs."""
    evidence: dict[str, Any] | None = None
    for node in mesh.nodes:
        await node.ledger.log.seal()
        half = export_receipts(node.ledger.log.reader, request_id)
        evidence = half if evidence is None else merge(evidence, half)
    assert evidence is not None
    return evidence
