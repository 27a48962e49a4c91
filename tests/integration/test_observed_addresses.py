"""What members observe of this node joins its addresses; every address that was tried is told with its reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from p2pnode import limits
from p2pnode.node.faces import Faces
from p2pnode.units import PeerId
from tests.kit.net import quic, running, until
from tests.kit.node_here import become_member, node_here, reach

OUTSIDE = "/ip4/203.0.113.7/udp/9481/quic-v1"


async def test_members_in_two_places_are_believed_strangers_are_not(tmp_path: Path) -> None:
    one, two, stranger = (
        quic(f"observer {number}", listen=(f"/ip4/127.0.0.{number}/udp/0/quic-v1",)) for number in (2, 3, 4)
    )
    async with running(one, two, stranger), node_here(tmp_path) as node:
        await become_member(one, node, "one")
        await become_member(two, node, "two")
        await reach(stranger, node)
        seen = {}
        for peer in (one, two, stranger):
            await until(lambda peer=peer: node.transport.connection(peer.peer_id) is not None)  # type: ignore[misc]
            seen[peer] = node.transport.connection(PeerId(peer.peer_id))
            await until(lambda peer=peer: seen[peer].identified is not None)  # type: ignore[misc]
        for peer in (one, stranger):
            node.reach.identified(seen[peer], replace(seen[peer].identified, observed_multiaddr=OUTSIDE))
        assert OUTSIDE not in node.addresses()
        node.reach.identified(seen[two], replace(seen[two].identified, observed_multiaddr=OUTSIDE))
        assert node.addresses()[-1] == OUTSIDE
        assert len(node.addresses()) <= limits.TICKET_ADDRESSES_MAX
        assert OUTSIDE in Faces(node).status()["addresses"][-1]


async def test_every_address_tried_is_told_with_its_reason(tmp_path: Path, monkeypatch) -> None:
    """Another device at the address, silence, a name that does not resolve, no address at all."""
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", 0.5)
    member, other = quic("member"), quic("other")
    async with running(member, other), node_here(tmp_path) as node:
        connection = await become_member(member, node)
        await connection.close()
        await until(lambda: not node.links.links[PeerId(member.peer_id)].is_up)
        await member.close()
        wrong = other.listen_multiaddrs[0]
        silent, name = "/ip4/127.0.0.1/udp/1/quic-v1", "/dns4/nobody.invalid/udp/1/quic-v1"
        node.links.forget(PeerId(member.peer_id))
        node.links.know(PeerId(member.peer_id), addresses=["/ip4/1.2.3.4/tcp/5", name, silent, wrong])

        def tried() -> dict[str, str]:
            rows = Faces(node).peers()["peers"]
            (row,) = [row for row in rows if row["peer"] == member.peer_id]
            return {entry["address"]: entry["reason"] for entry in row.get("tried", [])}

        await until(lambda: len(tried()) == 4)
        found = tried()
        assert other.peer_id in found[wrong]
        assert "no answer" in found[silent] or "refused" in found[silent]
        assert "does not resolve" in found[name]
        assert found["/ip4/1.2.3.4/tcp/5"]
