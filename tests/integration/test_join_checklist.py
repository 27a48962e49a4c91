"""A device that joins is followed on both screens: what it prints, and what the page of the host says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from p2pnode.errors import AdmissionError, PeerUnreachable
from p2pnode.node.core import Node
from p2pnode.node.faces import Faces
from p2pnode.transport.invite import Ticket, decode_ticket, encode_ticket
from tests.kit.net import until
from tests.kit.node_here import node_here


def steps(node: Node) -> list[tuple[str, str]]:
    rows: list[dict[str, Any]] = Faces(node).peers()["joining"]
    return [(step["step"], step["state"]) for row in rows[:1] for step in row["steps"]]


async def test_both_screens_tell_the_same_steps(tmp_path: Path) -> None:
    told: list[str] = []
    news: list[str] = []
    async with node_here(tmp_path / "alpha") as alpha:
        alpha.telemetry.append(lambda item: news.append(item["kind"]))
        assert Faces(alpha).peers()["joining"] == []
        made = await alpha.mesh.invite(uses=1, expires_s=600, role="worker", label="")
        async with node_here(tmp_path / "beta", "beta", tell=told.append, ticket=made["ticket"]):
            await until(lambda: steps(alpha)[-1:] == [("status", "ok")])
            assert [step for step, _ in steps(alpha)] == ["connected", "ticket", "admitted", "status"]
            (row,) = Faces(alpha).peers()["joining"]
            assert (row["name"], row["done"]) == ("beta", True)
            assert "joining" in news, "the panel is told at once"
    assert [line.split()[0] for line in told[:3]] == ["ticket", "connected", "admitted"]


async def test_a_used_ticket_fails_at_its_step_on_both_screens(tmp_path: Path) -> None:
    async with node_here(tmp_path / "alpha") as alpha:
        made = await alpha.mesh.invite(uses=1, expires_s=600, role="worker", label="")
        async with node_here(tmp_path / "beta", "beta", ticket=made["ticket"]):
            pass
        told: list[str] = []
        with pytest.raises(AdmissionError) as refused:
            async with node_here(tmp_path / "gamma", "gamma", tell=told.append, ticket=made["ticket"]):
                pass
        assert steps(alpha) == [("connected", "ok"), ("ticket", "failed")]
        failed = Faces(alpha).peers()["joining"][0]["steps"][-1]["text"]
        assert refused.value.message in failed
        assert told[-1].startswith("connected to"), "as far as it came"


async def test_every_address_is_told_with_what_became_of_it(tmp_path: Path) -> None:
    async with node_here(tmp_path / "alpha") as alpha:
        made = await alpha.mesh.invite(uses=1, expires_s=600, role="worker", label="")
        ticket = decode_ticket(made["ticket"])
    nowhere = Ticket(
        ticket.mesh_key, ticket.inviter_key, ticket.secret, ticket.expires_ms, ticket.role, ticket.mesh_name,
        ("/dns4/no-such-device.invalid/udp/1/quic-v1",),
    )  # fmt: skip
    told: list[str] = []
    with pytest.raises(PeerUnreachable):
        async with node_here(tmp_path / "beta", "beta", tell=told.append, ticket=encode_ticket(nowhere)):
            pass
    assert told[0].startswith("ticket valid")
    assert told[1].startswith("✗ /dns4/no-such-device.invalid/udp/1/quic-v1: ")
