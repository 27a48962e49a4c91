"""Real devices on QUIC: one of them shows two histories, and every member ends up with the proof."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from p2pnode import limits
from p2pnode.commands import AdmitPeer
from p2pnode.decide import may_compute
from p2pnode.errors import BadCheckpoint, CreditEnded, P2PNodeError
from p2pnode.events.fraud import check_fraud
from p2pnode.events.keys import encode_binding
from p2pnode.events.note import parse_checkpoint, parse_note
from p2pnode.events.receipt import fraud_proof
from p2pnode.events.types import PeerEquivocated
from p2pnode.events.verify import verify_folder
from p2pnode.node.core import Node
from p2pnode.node.life import Life
from p2pnode.node.witnessing import Witnessing
from tests.kit.log_events import started
from tests.kit.net import until
from tests.kit.node_here import node_here
from tests.kit.receipts import Channel, keys_of


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests say when checkpoints are carried and compared; nobody measures how fast these devices are."""
    monkeypatch.setattr(limits, "WITNESS_INTERVAL_S", 3600.0)
    monkeypatch.setattr(Life, "_measure", _nothing)


async def _nothing(self: Life) -> None:
    pass


@asynccontextmanager
async def member(folder: Path, name: str, *others: Node) -> AsyncIterator[Node]:
    """A device of the first one's mesh that knows all of them."""
    ticket = ""
    if not (folder / name).exists():
        made = await others[0].mesh.invite(uses=1, expires_s=600, role="worker", label="")
        ticket = str(made["ticket"])
    async with node_here(folder / name, name, ticket=ticket) as node:
        for other in others:
            node.links.know(other.me, addresses=other.addresses())
            await until(lambda other=other: hears(other, node) and hears(node, other))  # type: ignore[misc]
        yield node


def hears(node: Node, other: Node) -> bool:
    link = node.links.links.get(other.me)
    return link is not None and link.is_up and link.status is not None


async def write(node: Node, count: int, word: str) -> None:
    await node.ledger.log.append([started(word) for _ in range(count)])
    await node.ledger.log.seal()


def size_cosigned(witness: Node, log: Node) -> int:
    kept = witness.ledger.log.reader.witnessed(f"p2pnode/{log.me}")
    return 0 if kept is None else kept.size


def frauds(node: Node) -> list[PeerEquivocated]:
    events = [record.event for record in node.ledger.log.reader.frauds()]
    return [event for event in events if isinstance(event, PeerEquivocated)]


@asynccontextmanager
async def two_histories(folder: Path) -> AsyncIterator[tuple[Node, Node, Node]]:
    """alpha cosigned what beta's log was; beta, put back to an earlier copy, writes another one."""
    async with node_here(folder / "alpha") as alpha, member(folder, "gamma", alpha) as gamma:
        async with member(folder, "beta", alpha):
            pass
        shutil.copytree(folder / "beta", folder / "copy")
        async with member(folder, "beta", alpha) as beta:
            await write(beta, 20, "first")
            await beta.witnessing.ask(alpha.me)
        shutil.rmtree(folder / "beta")
        shutil.copytree(folder / "copy", folder / "beta")
        with pytest.MonkeyPatch.context() as cheating:
            cheating.setattr(Witnessing, "look_back", _no_question)
            async with member(folder, "beta", alpha, gamma) as beta:
                yield alpha, beta, gamma


async def _no_question(self: Witnessing) -> bool:
    return True


async def test_a_second_history_is_proved_and_told_to_all(tmp_path: Path) -> None:
    """At the first contact with a witness, by what the log itself sends; the others get the proof from there."""
    async with two_histories(tmp_path) as (alpha, beta, gamma):
        known = size_cosigned(alpha, beta)
        await write(beta, 60, "second")
        with pytest.raises(BadCheckpoint, match="another history"):
            await beta.witnessing.ask(alpha.me)
        (event,) = frauds(alpha)
        fraud = check_fraud(event.proof)
        assert (fraud.peer, fraud.size_first) == (beta.me, known)
        assert alpha.ledger.state.billing.accounts[beta.me].ended == "equivocated"
        assert not frauds(gamma)
        await alpha.histories.tell()
        assert [event.proof for event in frauds(gamma)] == [event.proof]
        assert gamma.ledger.state.billing.accounts[beta.me].ended == "equivocated"
        assert not frauds(beta), "it is not told to record it against itself"
        assert "signed two histories" in beta.histories.doubts[event.origin]["why"]
        await gamma.histories.tell()
        await alpha.histories.tell()
        assert len(frauds(alpha)) == len(frauds(gamma)) == 1


async def test_one_story_here_and_another_there(tmp_path: Path) -> None:
    """Neither witness sees both by itself; what they cosigned is in their statuses."""
    async with two_histories(tmp_path) as (alpha, beta, gamma):
        known = size_cosigned(alpha, beta)
        await write(beta, 60, "second")
        await beta.witnessing.ask(gamma.me)
        assert size_cosigned(gamma, beta) > known
        await alpha.histories.compare()
        alpha.histories.doubts.clear()

        async def hear() -> None:
            gamma.histories.refresh()
            gamma.links.status_changed()
            status = alpha.links.links[gamma.me].status
            await until(lambda: alpha.links.links[gamma.me].status is not status)

        await hear()
        honest, beta.log_sharing.questions["tile"] = (
            beta.log_sharing.questions["tile"],
            lambda a: {"level": a["level"], "index": a["index"], "hashes": bytes(8192)},
        )
        await alpha.histories.compare()
        assert not frauds(alpha)
        doubt = alpha.histories.doubts[f"p2pnode/{beta.me}"]
        assert (doubt["peer"], doubt["sizes"][0]) == (beta.me, known)
        beta.log_sharing.questions["tile"] = honest
        await hear()
        await alpha.histories.compare()
        (event,) = frauds(alpha)
        assert check_fraud(event.proof).peer == beta.me
        assert not alpha.histories.doubts


async def test_a_restored_backup_asks_before_it_signs(tmp_path: Path) -> None:
    """It reaches a member that cosigned more, and goes on under another name: no fraud, no doubt, no gap."""
    async with node_here(tmp_path / "alpha") as alpha:
        async with member(tmp_path, "beta", alpha) as beta:
            await beta.ledger.log.seal()
            await beta.witnessing.ask(alpha.me)
        shutil.copytree(tmp_path / "beta", tmp_path / "copy")
        async with member(tmp_path, "beta", alpha) as beta:
            await write(beta, 60, "first")
            await beta.witnessing.ask(alpha.me)
        shutil.rmtree(tmp_path / "beta")
        shutil.copytree(tmp_path / "copy", tmp_path / "beta")
        async with member(tmp_path, "beta", alpha) as beta:
            await until(lambda: beta.ledger.log.keys.origin == f"p2pnode/{beta.me}/1")
            await write(beta, 60, "second")
            await beta.witnessing.ask(alpha.me)
            await alpha.histories.compare()
            reader = beta.ledger.log.reader
            signed = [parse_checkpoint(parse_note(block.checkpoint).text) for block in reader.blocks(0, 99)]
            old = max(one.size for one in signed if one.origin == f"p2pnode/{beta.me}")
            assert old < size_cosigned(alpha, beta), "nothing new was signed under the old name"
        assert not frauds(alpha)
        assert not alpha.histories.doubts
        assert verify_folder(tmp_path / "beta").ok


async def test_two_receipts_with_one_number_are_told_to_all(tmp_path: Path) -> None:
    """beta's own receipt key signs another receipt under a number that alpha has: gamma, who had no part in it,
    ends beta's credit too; what is told without proof, or against somebody else's keys, is not recorded."""
    async with (
        node_here(tmp_path / "alpha") as alpha,
        member(tmp_path, "gamma", alpha) as gamma,
        member(tmp_path, "beta", alpha, gamma) as beta,
    ):
        between = Channel(alpha.ledger.log.keys, beta.ledger.log.keys)
        first, second = between.signed(), Channel(between.consumer, between.provider)
        assert (await alpha.ledger.do(between.accept(first)))["answers"][0]["accepted"]
        lie = second.signed(second.next(request_id="r2"))
        answer = await alpha.ledger.do(second.accept(lie))
        assert answer == {"answers": [{"accepted": False, "fraud": True, "refused": ""}]}
        (event,) = frauds(alpha)
        assert event.origin == f"{alpha.me}>{beta.me}"
        await alpha.histories.tell()
        assert [one.proof for one in frauds(gamma)] == [event.proof]
        for node in (alpha, gamma):
            assert node.ledger.state.billing.accounts[beta.me].ended == "equivocated"
            with pytest.raises(CreditEnded):
                may_compute(node.ledger.state, beta.me, 0)
        assert not frauds(beta), "it is not told to record it against itself"
        assert "two receipts with one number" in beta.histories.doubts[event.origin]["why"]
        await gamma.histories.tell()
        await alpha.histories.tell()
        assert len(frauds(alpha)) == len(frauds(gamma)) == 1
        fields = msgspec.msgpack.decode(event.proof)
        fields[1] = encode_binding(gamma.ledger.log.keys.bound())
        for wrong in (msgspec.msgpack.encode(fields), event.proof[:-1]):
            with pytest.raises(P2PNodeError):
                await alpha.links.call(gamma.me, "log.fraud", {"proof": wrong})
        assert len(frauds(gamma)) == 1


async def test_who_learns_later_of_a_convicted_peer_has_the_proof(tmp_path: Path) -> None:
    """gamma is told before it knows delta: it keeps the proof, and ends delta's credit when delta becomes known.
    Told again after gamma was restarted, which forgets what it had not recorded."""
    async with node_here(tmp_path / "alpha") as alpha:
        stranger = keys_of("delta")
        between = Channel(alpha.ledger.log.keys, stranger)
        other = Channel(between.consumer, stranger)
        proof = fraud_proof(
            between.signed(), stranger.bound(), other.signed(other.next(request_id="r2")), stranger.bound()
        )
        assert await alpha.ledger.log.convict(proof)
        async with member(tmp_path, "gamma", alpha) as gamma:
            await alpha.histories.tell()
            await gamma.histories.convict_known()
            assert not frauds(gamma)
        async with member(tmp_path, "gamma", alpha) as gamma:
            await alpha.histories.tell()
            await alpha.histories.tell()
            assert not frauds(gamma)
            await gamma.ledger.do(
                AdmitPeer(peer=stranger.peer, device_name="delta", grant=b"g", admitted_by=alpha.me)
            )
            for _ in range(2):
                await gamma.histories.convict_known()
                assert [one.proof for one in frauds(gamma)] == [proof]
            assert gamma.ledger.state.billing.accounts[stranger.peer].ended == "equivocated"


async def test_proofs_against_the_unknown_are_bounded(tmp_path: Path) -> None:
    """A member that makes devices up to accuse them fills nothing but its own few places."""
    async with node_here(tmp_path / "alpha") as alpha, member(tmp_path, "gamma", alpha) as gamma:
        for number in range(limits.FRAUDS_AHEAD_MAX + 2):
            liar = keys_of(f"made up {number}")
            one, two = Channel(alpha.ledger.log.keys, liar), Channel(alpha.ledger.log.keys, liar)
            lie = two.signed(two.next(request_id="r2"))
            proof = fraud_proof(one.signed(), liar.bound(), lie, liar.bound())
            await alpha.links.call(gamma.me, "log.fraud", {"proof": proof})
        assert len(gamma.histories._ahead[alpha.me]) == limits.FRAUDS_AHEAD_MAX


async def test_members_that_are_honest_agree(tmp_path: Path) -> None:
    """They grow, restart, rotate their keys and are compared all the time: nobody is accused or doubted."""
    async with node_here(tmp_path / "alpha") as alpha, member(tmp_path, "gamma", alpha) as gamma:
        for _ in range(3):
            async with member(tmp_path, "beta", alpha, gamma) as beta:
                for witness in (alpha, gamma):
                    await write(beta, 7, "honest")
                    await beta.witnessing.ask(witness.me)
                await beta.ledger.log.rotate_keys()
                beta.links.status_changed()
                for one, other in ((alpha, gamma), (gamma, alpha)):
                    one.histories.refresh()
                    one.links.status_changed()
                    status = other.links.links[one.me].status
                    await until(lambda o=other, n=one, s=status: o.links.links[n.me].status is not s)  # type: ignore[misc]
                    await other.histories.compare()
                newest = parse_checkpoint(parse_note(beta.ledger.log.checkpoint() or "").text)
                assert newest.size > size_cosigned(gamma, beta)
        for node in (alpha, gamma):
            assert not frauds(node)
            assert not node.histories.doubts
