"""What the node of another mesh gets of this one: whole answers, which it pays for from outside, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from p2pnode.errors import (
    InsufficientCredit,
    InviteExpired,
    InviteUsed,
    NotAdmitted,
    P2PNodeError,
    RemoteProtocolError,
    RequestError,
    TransportError,
    WrongMesh,
)
from p2pnode.events.types import CreditSettled, ForwardedRequestEnded, RequestAccepted
from p2pnode.facade import Finished, GenerateRequest, SamplingParams
from p2pnode.machine import now_ms
from p2pnode.node.calls import CONTROL
from p2pnode.node.catalog import BLOB
from p2pnode.node.core import Node
from p2pnode.node.links import STATUS
from p2pnode.node.orders import STAGE
from p2pnode.node.roles import INFER
from p2pnode.projections import billing
from p2pnode.transport import messages
from p2pnode.transport.invite import decode_ticket
from p2pnode.transport.port import Stream
from p2pnode.units import UnixMs
from tests.kit.net import until
from tests.kit.node_here import node_here

DEMO = "p2pnode-demo"
UNIT = 1_000_000


@asynccontextmanager
async def two_meshes(folder: Path, role: str = "guest") -> AsyncIterator[tuple[Node, Node]]:
    async with node_here(folder / "studio", "studio") as studio, node_here(folder / "home", "home") as home:
        await home.others.add(await ticket(studio, role=role), "studio")
        yield home, studio


async def ticket(node: Node, **wish: Any) -> str:
    made = await node.mesh.invite(**{"uses": 1, "expires_s": 600, "role": "guest", "label": "", **wish})
    return str(made["ticket"])


async def ask(node: Node, model: str | None = f"{DEMO}@studio", **wish: Any) -> Finished:
    request = GenerateRequest(
        model=model, prompt="Once upon a time", max_tokens=5, sampling=SamplingParams(temperature=0.0), **wish
    )
    last = [event async for event in node.generate(request)][-1]
    assert isinstance(last, Finished)
    return last


@pytest.mark.parametrize("role", ["guest", "client", "worker"])
async def test_every_protocol_of_members_is_refused_to_a_guest(tmp_path: Path, role: str) -> None:
    async with two_meshes(tmp_path, role) as (home, studio):
        connection = home.transport.connection(studio.me)
        assert connection is not None
        spoken = set(studio.transport.router.protocols)  # type: ignore[attr-defined]  # QUIC's
        assert {BLOB, STATUS, CONTROL, STAGE, INFER} <= spoken
        members_only = {name for name in spoken if name.startswith("/p2pnode/")} - {INFER, "/p2pnode/admit/1"}
        for protocol in sorted(members_only):
            with pytest.raises(RemoteProtocolError):
                await connection.open_stream(protocol)
        assert home.me not in studio.links.links
        assert studio.me not in home.links.links
        assert (await ask(home)).completion_tokens == 5


async def test_it_pays_from_outside_by_its_credit_there_and_then_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address of the connection decides, here one from outside; the price is in both records."""
    monkeypatch.setattr("p2pnode.node.books.path_of", lambda address: "wan")
    async with two_meshes(tmp_path) as (home, studio):
        home.store.remove(DEMO)  # with the very same model it would answer itself in the end
        for number in range(1, 6):
            end = await ask(home)
            facts = [record.event for record in home.ledger.log.reader.find(end.request_id)]
            (told,) = [fact for fact in facts if isinstance(fact, ForwardedRequestEnded)]
            there = [record.event for record in studio.ledger.log.reader.find(told.served_as)]
            (accepted,) = [fact for fact in there if isinstance(fact, RequestAccepted)]
            (settled,) = [fact for fact in there if isinstance(fact, CreditSettled)]
            assert accepted.caller == settled.payer == home.me
            assert told.cost_microunits == settled.amount_microunits == end.cost_microunits == UNIT
            assert billing.available(studio.ledger.state.billing, home.me) == (5 - number) * UNIT
        with pytest.raises(InsufficientCredit, match="are there"):
            await ask(home)
        assert sum(billing.balances(studio.ledger.state.billing).values()) == 0


async def test_how_the_other_mesh_computes_is_not_for_a_guest_to_say(tmp_path: Path) -> None:
    async with two_meshes(tmp_path) as (home, studio):
        request = GenerateRequest(
            model=DEMO, prompt="Once", max_tokens=2, mode="pipeline", sampling=SamplingParams(temperature=0.0)
        )
        events = [event async for event in home.federation.ask(studio.me, request)]
        assert isinstance(events[-1], Finished)
        assert events[-1].mode == "local"


async def test_a_second_member_is_asked_when_the_first_is_gone(tmp_path: Path) -> None:
    """The guest knows it by the first one's grants and addresses."""
    async with node_here(tmp_path / "studio", "studio") as studio:
        invited = await ticket(studio, role="worker")
        async with (
            node_here(tmp_path / "annex", "annex", ticket=invited) as annex,
            node_here(tmp_path / "home", "home") as home,
        ):
            await until(lambda: any(m.holders for m in annex.catalog.known()))
            await annex.pulling.pull(DEMO)
            await until(lambda: annex.me in studio.where())
            guests_ticket = await ticket(studio)
            await home.others.add(guests_ticket, "studio")
            await until(lambda: annex.mesh.is_guest(home.me))  # by the next status of studio
            await home.others.refresh()
            assert {offer.peer for offer in home.others.offers()} == {studio.me, annex.me}
            home.store.remove(DEMO)
            await studio.transport.close()
            end = await ask(home)
            assert [stage["name"] for stage in end.stages] == ["annex of studio"]


async def test_a_mesh_that_is_away_for_long_is_answered_for_here(tmp_path: Path) -> None:
    """By the very same model, as while it was known to be there; in the end it says that it is away."""
    async with two_meshes(tmp_path) as (home, studio):
        await studio.transport.close()
        await home.others.refresh()
        assert home.others.offers() == []
        assert [stage["name"] for stage in (await ask(home)).stages] == ["home"]
        home.store.remove(DEMO)
        with pytest.raises(TransportError, match="of studio"):
            await ask(home)


async def test_a_ticket_that_is_no_use_says_why(tmp_path: Path) -> None:
    async with (
        node_here(tmp_path / "studio", "studio") as studio,
        node_here(tmp_path / "home", "home") as home,
    ):
        with pytest.raises(WrongMesh, match="the mesh this device is in"):
            await home.others.add(await ticket(home))
        once = await ticket(studio)
        with pytest.raises(RequestError, match="cannot be called"):
            await home.others.add(once, "a@b")
        await home.others.add(once, "studio")
        async with node_here(tmp_path / "other", "other") as other:
            with pytest.raises(InviteUsed):
                await other.others.add(once)
            late = await ticket(studio, expires_s=1)
            await until(lambda: _is_late(late))
            with pytest.raises(InviteExpired):
                await other.others.add(late)
        with pytest.raises(RequestError, match="lets no device join it"):
            async with node_here(tmp_path / "another", "another", ticket=await ticket(studio)):
                pytest.fail("a guest's ticket made a member")


def _is_late(text: str) -> bool:
    try:
        decode_ticket(text, now_ms=UnixMs(now_ms()))
    except InviteExpired:
        return True
    return False


async def test_a_mesh_that_sent_this_one_away_says_so_and_takes_it_again_by_a_new_ticket(
    tmp_path: Path,
) -> None:
    async with two_meshes(tmp_path) as (home, studio):
        home.store.remove(DEMO)
        await studio.mesh.revoke(home.me, "no more")
        with pytest.raises(NotAdmitted, match="the mesh studio does not let this device in any more"):
            await ask(home)
        await home.others.refresh()
        (view,) = home.others.view()
        assert "does not let this device in any more" in view["trouble"]
        with pytest.raises(NotAdmitted, match="the mesh studio does not let this device in any more"):
            await ask(home)
        with pytest.raises(P2PNodeError, match="cannot be asked now"):
            await ask(home, "large@studio")
        with pytest.raises(NotAdmitted, match="was removed from this mesh"):
            await home.others.add(await ticket(studio))


async def test_a_mesh_of_an_older_version_is_named_as_such(tmp_path: Path) -> None:
    """It refuses the question in the words that versions before this one had."""

    async def old(stream: Stream) -> None:
        await messages.receive_message(stream)
        refused = messages.Refused(code="protocol_remote", message="an infer stream begins with generate")
        await messages.send_message(stream, refused)

    async with (
        node_here(tmp_path / "studio", "studio") as studio,
        node_here(tmp_path / "home", "home") as home,
    ):
        studio.transport.handle(INFER, old)
        view = await home.others.add(await ticket(studio), "studio")
        assert view["trouble"].endswith("runs an older version that does not say which models it has")
        assert view["models"] == []


async def test_a_member_that_tells_nonsense_costs_its_offers_and_nothing_else(tmp_path: Path) -> None:
    async def liar(stream: Stream) -> None:
        await messages.receive_message(stream)
        await messages.send_message(stream, messages.Progress(data={"model": {"name": 5}}))
        await asyncio.Event().wait()

    async with two_meshes(tmp_path) as (home, studio):
        studio.transport.handle(INFER, liar)
        await home.others.refresh()
        assert home.others.offers() == []
        (view,) = home.others.view()
        assert "cannot be read" in view["trouble"]


async def test_a_mesh_nearby_is_found_again_where_it_is_now(tmp_path: Path) -> None:
    """Its devices got other addresses while they were off; mDNS tells where they are, and the identity is checked."""
    async with node_here(tmp_path / "home", "home") as home:
        async with node_here(tmp_path / "studio", "studio") as studio:
            await home.others.add(await ticket(studio), "studio")
        async with node_here(tmp_path / "studio", "studio") as studio:
            home.presence._heard_nearby(home.me, ["/ip4/127.0.0.1/udp/1/quic-v1"])
            home.presence._heard_nearby(studio.me, studio.addresses())
            home.store.remove(DEMO)
            assert [stage["name"] for stage in (await ask(home)).stages] == ["studio of studio"]


async def test_what_is_remembered_may_be_damaged(tmp_path: Path) -> None:
    async with node_here(tmp_path / "studio", "studio") as studio:
        async with node_here(tmp_path / "home", "home") as home:
            await home.others.add(await ticket(studio), "studio")
        for damage in ("", "[]", '{"x": 5}', '{"x": {"grants": ["zz"], "addresses": {}}}'):
            (tmp_path / "home" / "other_meshes.json").write_text(damage)
            async with node_here(tmp_path / "home", "home") as home:
                (view,) = home.others.view()
                assert (view["name"], view["models"]) == ("studio", [])
