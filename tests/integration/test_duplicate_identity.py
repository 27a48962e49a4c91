"""A copied data folder runs twice: the other member notices, both copies are told, all three record it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from p2pnode import limits
from p2pnode.events import types as facts
from p2pnode.node.core import Node
from p2pnode.node.faces import Faces
from tests.kit.net import until
from tests.kit.node_here import node_here


def recorded(node: Node) -> list[facts.IdentityDuplicated]:
    found = [record.event for record in node.ledger.log.read(0, node.ledger.log.size)]
    return [event for event in found if isinstance(event, facts.IdentityDuplicated)]


async def test_a_copied_folder_is_noticed_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STATUS_INTERVAL_S", 0.1)
    async with node_here(tmp_path / "alpha") as alpha:
        ticket = (await alpha.mesh.invite(uses=1, expires_s=600, role="worker", label=""))["ticket"]
        async with node_here(tmp_path / "beta", "beta", ticket=ticket) as first:
            beta = first.me
            await until(lambda: alpha.links.links[beta].is_up)
        async with node_here(tmp_path / "beta", "beta"):
            # A device that starts again is no duplicate.
            await until(lambda: alpha.links.links[beta].is_up)
            assert alpha.duplicates.of(beta) is None
        shutil.copytree(tmp_path / "beta", tmp_path / "copy")
        async with node_here(tmp_path / "beta", "beta") as one, node_here(tmp_path / "copy", "beta") as other:
            nodes = (alpha, one, other)
            await until(lambda: all(node.duplicates.of(beta) is not None for node in nodes))
            assert other.duplicates.mine.host in str(one.duplicates.of(beta))
            hosts = {one.duplicates.mine.host, other.duplicates.mine.host}
            assert set(alpha.duplicates.of(beta).details["hosts"]) == hosts
            await until(lambda: all(recorded(node) for node in nodes))
            for node in nodes:
                assert recorded(node)[0].peer == beta
                (row,) = [row for row in Faces(node).peers()["peers"] if row["peer"] == beta]
                assert row["duplicate"]["code"] == "duplicate_identity"
                assert row["duplicate"]["hint"]
