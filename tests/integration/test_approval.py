"""Devices without a ticket: they ask, both sides show a code, the owner decides; and members are revoked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from p2pnode import limits
from p2pnode.errors import Busy, NotAdmitted, NotFound, P2PNodeError, PeerTimeout, RemoteProtocolError
from p2pnode.node.approval import look, survey
from p2pnode.node.core import Node
from p2pnode.node.faces import Faces
from p2pnode.node.roles import ADMIT
from p2pnode.transport import messages
from p2pnode.transport.match import commitment
from p2pnode.transport.port import Stream
from tests.kit.mesh import mesh_of
from tests.kit.net import quic, running, until
from tests.kit.node_here import become_member, node_here, reach


def pending(node: Node) -> list[dict[str, Any]]:
    return [peer for peer in Faces(node).peers()["peers"] if peer["state"] == "pending"]


async def asking(folder: Path, alpha: Node, decide: Callable[[dict[str, Any]], Awaitable[None]]) -> list[str]:
    """What the asking device was told while `decide` answered for the owner; raises what it got."""
    told: list[str] = []
    addresses = tuple(f"{address}/p2p/{alpha.me}" for address in alpha.addresses())

    async def join() -> None:
        async with node_here(folder, "beta", tell=told.append, ask=True, peers=addresses) as beta:
            assert beta.mesh.mesh_name == alpha.mesh.mesh_name
            assert beta.mesh.my_role == "worker"
            await until(lambda: alpha.links.links[beta.me].status is not None)

    joining = asyncio.create_task(join())
    await until(lambda: bool(pending(alpha)) or joining.done())
    if not joining.done():
        await decide(pending(alpha)[0])
    await joining
    return told


async def test_an_approved_device_is_a_member(tmp_path: Path) -> None:
    async with node_here(tmp_path / "alpha") as alpha:

        async def approve(row: dict[str, Any]) -> None:
            assert row["name"] == "beta"
            with pytest.raises(NotFound):
                await Faces(alpha).command("approve_peer", {"peer": "nobody"})
            await Faces(alpha).command(
                "approve_peer", {"peer": f"{row['match_code'][:3]} {row['match_code'][3:]}"}
            )
            approved.append(row["match_code"])

        approved: list[str] = []
        told = await asking(tmp_path / "beta", alpha, approve)
        shown = next(text for text in told if "match code" in text)
        assert f"{approved[0][:3]} {approved[0][3:]}" in shown
        assert not pending(alpha)


async def test_a_refused_device_is_told(tmp_path: Path) -> None:
    async with node_here(tmp_path / "alpha") as alpha:

        async def refuse(row: dict[str, Any]) -> None:
            await Faces(alpha).command("refuse_peer", {"peer": row["peer"]})

        with pytest.raises(NotAdmitted, match="refused"):
            await asking(tmp_path / "beta", alpha, refuse)
        assert not pending(alpha)


async def test_a_question_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "APPROVAL_WAIT_S", 0.3)
    async with node_here(tmp_path / "alpha") as alpha:

        async def wait(_: dict[str, Any]) -> None:
            await until(lambda: not pending(alpha))

        with pytest.raises(PeerTimeout, match="nobody approved"):
            await asking(tmp_path / "beta", alpha, wait)


async def ask_by_hand(stream: Stream, nonce: bytes, committed: bytes) -> messages.AnyMessage:
    await messages.send_message(stream, messages.Ask(name="x", version="0", commitment=committed))
    answer = await messages.receive_message(stream)
    if isinstance(answer, messages.Pending):
        await messages.send_message(stream, messages.Reveal(nonce=nonce))
    return answer


async def test_strangers_cannot_cheat_or_fill_the_list(tmp_path: Path) -> None:
    strangers = [quic(f"stranger {n}") for n in range(limits.APPROVALS_PER_ADDRESS_MAX + 1)]
    nonce = bytes(16)
    async with running(*strangers), node_here(tmp_path) as alpha:
        cheat = await (await reach(strangers[0], alpha)).open_stream(ADMIT)
        await ask_by_hand(cheat, b"1" * 16, commitment(nonce))
        refused = await messages.receive_message(cheat)
        assert isinstance(refused, messages.Refused)
        assert refused.code == RemoteProtocolError.code
        streams = []
        for number, stranger in enumerate(strangers[:-1]):
            streams.append(await (await reach(stranger, alpha)).open_stream(ADMIT))
            await ask_by_hand(streams[-1], nonce, commitment(nonce))
            await until(lambda wanted=number + 1: len(pending(alpha)) == wanted)  # type: ignore[misc]
        last = await (await reach(strangers[-1], alpha)).open_stream(ADMIT)
        answer = await ask_by_hand(last, nonce, commitment(nonce))
        assert isinstance(answer, messages.Refused)
        assert answer.code == Busy.code
        again = await (await reach(strangers[0], alpha)).open_stream(ADMIT)
        answer = await ask_by_hand(again, nonce, commitment(nonce))
        assert isinstance(answer, messages.Refused)
        assert answer.code == "approval_pending"
        for stream in streams:
            stream.reset()
        await until(lambda: not pending(alpha))


async def test_a_stranger_may_see_which_mesh_is_here(tmp_path: Path) -> None:
    stranger, nobody = quic("stranger"), quic("nobody")
    async with running(stranger, nobody), node_here(tmp_path) as alpha:
        here = await look(stranger, alpha.me, alpha.addresses())
        assert (here.mesh_name, here.name) == (alpha.mesh.mesh_name, "alpha")
        found = {alpha.me: alpha.addresses(), nobody.peer_id: list(nobody.listen_multiaddrs)}
        assert list(await survey(stranger, found)) == [alpha.me]


async def test_a_revoked_device_stays_out_after_a_restart(tmp_path: Path) -> None:
    member = quic("member")
    async with running(member):
        async with node_here(tmp_path) as alpha:
            connection = await become_member(member, alpha)
            assert alpha.mesh.is_member(member.peer_id)
            await Faces(alpha).command("revoke_peer", {"peer": member.peer_id, "reason": "lost"})
            assert not alpha.mesh.is_member(member.peer_id)
            with pytest.raises(P2PNodeError):
                await connection.open_stream("/p2pnode/status/1")
            with pytest.raises(NotFound):
                await Faces(alpha).command("revoke_peer", {"peer": member.peer_id})
        async with node_here(tmp_path) as alpha:
            assert not alpha.mesh.is_member(member.peer_id)
            assert alpha.mesh.membership is not None
            assert len(alpha.mesh.membership.export_revocations()) == 1


def test_every_member_refuses_a_revoked_device(tmp_path: Path) -> None:
    """Three processes: what the first revokes, the third refuses with its next status."""
    with mesh_of(tmp_path, "alpha", "beta", "gamma") as mesh:
        alpha, beta, gamma = mesh.nodes
        alpha.api.post("/command/revoke_peer", {"peer": beta.peer_id, "reason": "sold"})
        for node in (alpha, gamma):
            node.until(
                "the revocation",
                "/peers",
                lambda view: {p["peer"]: p["state"] for p in view["peers"]}[beta.peer_id] == "revoked",
                within_s=limits.STATUS_INTERVAL_S * 2,
            )
        beta.until(
            "nobody to talk to",
            "/peers",
            lambda view: all(p["self"] or p["state"] != "online" or p.get("tried") for p in view["peers"]),
        )
        alpha.online(2)
        assert alpha.events("PeerRevoked")
        assert gamma.events("PeerRevoked")
